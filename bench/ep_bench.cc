#include "bench/ep_bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/ep_processes.h"
#include "bench/raw_lane.h"
#include "bench/spread.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_group.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kTimesMin = 5, kTimesMax = 2000;

// ---- one rank
struct Tokens {
  std::vector<float> hidden, weights;
  std::vector<int32_t> experts, positions;
};

Tokens RandomTokens(const BenchEpOptions& o, int rank, int count, int width) {
  std::mt19937 rng(rank);
  Tokens t;
  std::uniform_real_distribution<float> real(-1, 1);
  t.hidden.resize(static_cast<size_t>(count) * width);
  for (float& x : t.hidden) x = real(rng);
  t.weights.resize(static_cast<size_t>(count) * o.top_k, 1.0f / static_cast<float>(o.top_k));
  std::vector<int32_t> ids(o.experts);
  std::iota(ids.begin(), ids.end(), 0);
  for (int i = 0; i < count; ++i) {
    std::shuffle(ids.begin(), ids.end(), rng);
    t.experts.insert(t.experts.end(), ids.begin(), ids.begin() + o.top_k);
    t.positions.push_back(i);
  }
  return t;
}

// As it is by default, with tokens of 8 bits, with reduced outputs.
constexpr std::array<const char*, 3> kWays = {"default", "int8", "reduced"};

EpDispatcher::Options OptionsOf(const BenchEpOptions& o, size_t way, int count, int width) {
  return {.top_k = o.top_k,
          .hidden = width,
          .max_tokens = count,
          .int8_tokens = way == 1,
          .reduced = way == 2,
          .low_latency_tokens = o.low_latency_tokens};
}

// One exchange after another by one of several dispatchers.
class Exchanges {
 public:
  Exchanges(const BenchEpOptions& o, int rank, int count, int width)
      : tokens_(RandomTokens(o, rank, count, width)),
        out_(tokens_.hidden.size()),
        hidden_(tokens_.hidden.data(), {static_cast<size_t>(count), static_cast<size_t>(width)}),
        experts_(tokens_.experts.data(),
                 {static_cast<size_t>(count), static_cast<size_t>(o.top_k)}),
        weights_(tokens_.weights.data(), experts_.extents()) {}

  absl::Status Run(EpDispatcher& d) {
    ASSIGN_OR_RETURN(const DispatchHandle handle,
                     d.Send(0, hidden_, experts_, weights_, tokens_.positions));
    ASSIGN_OR_RETURN(const DispatchedRows in, d.Receive(handle));
    const size_t row_bytes = in.tokens.cols * SizeOf(in.tokens.dtype);
    bytes_.resize(std::max(bytes_.size(), in.index.size() * row_bytes));
    const Rows outputs(bytes_.data(), in.tokens.dtype, in.index.size(), in.tokens.cols, row_bytes);
    RETURN_IF_ERROR(d.CombineSend(handle, outputs, {out_.data(), hidden_.extents()}));
    return d.CombineReceive(handle);
  }

 private:
  const Tokens tokens_;
  std::vector<float> out_;
  std::vector<std::byte> bytes_;  // what experts would have made
  const Matrix<const float> hidden_;
  const Matrix<const int32_t> experts_;
  const Matrix<const float> weights_;
};

// All ways in turns, so that they meet the same disturbances.
absl::StatusOr<Json> MeasureExchange(const BenchEpOptions& o, EpGroup& group, int count,
                                     int width) {
  ASSIGN_OR_RETURN(Placement even, Placement::InOrder(1, 1, o.experts, o.ranks));
  const auto placement = std::make_shared<const Placement>(std::move(even));
  std::array<std::unique_ptr<EpDispatcher>, kWays.size()> dispatchers;
  for (size_t way = 0; way < kWays.size(); ++way) {
    ASSIGN_OR_RETURN(dispatchers[way],
                     EpDispatcher::Create(&group, placement, OptionsOf(o, way, count, width)));
  }
  Exchanges exchanges(o, group.rank(), count, width);
  // All ranks stop after the same round: rank 0 says when, in the step's header.
  const MonotonicClock clock;
  const absl::Time begin = clock.Now();
  std::array<std::vector<double>, kWays.size()> times;
  bool low_latency = false;
  for (size_t n = 0;; ++n) {
    const size_t round = n / kWays.size(), way = n % kWays.size();
    const bool enough =
        way == 0 && round >= kTimesMin &&
        (clock.Now() - begin > absl::Seconds(o.seconds * kWays.size()) || round >= kTimesMax);
    StepHeader mine;
    mine.rows = static_cast<uint32_t>(count);
    mine.wants = enough ? 1 : 0;
    ASSIGN_OR_RETURN(const auto headers, group.OpenStep(mine));
    if (headers[0].wants != 0) break;
    dispatchers[way]->BeginStep(headers);
    low_latency = EpDispatcher::UsesLowLatency(OptionsOf(o, way, count, width), headers);
    const absl::Time start = clock.Now();
    RETURN_IF_ERROR(exchanges.Run(*dispatchers[way]));
    if (round == 0) continue;  // it warms
    times[way].push_back(absl::ToDoubleSeconds(clock.Now() - start));
  }
  Json one = {
      {"hidden", width}, {"tokens", count}, {"path", low_latency ? "low latency" : "throughput"}};
  for (size_t way = 0; way < kWays.size(); ++way) {
    (way == 0 ? one : one[kWays[way]])
        .update({{"us", Median(times[way]) * 1e6},
                 {"bytes", dispatchers[way]->bytes_sent() / (times[way].size() + 1)}});
  }
  return one;
}

double CpuSeconds() {
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  return absl::ToDoubleSeconds(absl::DurationFromTimeval(used.ru_utime) +
                               absl::DurationFromTimeval(used.ru_stime));
}

absl::StatusOr<Json> RunRank(const BenchEpOptions& o, EpGroup& group) {
  Json exchanges = Json::array();
  for (const int width : o.hidden) {
    for (const int count : o.tokens) {
      ASSIGN_OR_RETURN(Json one, MeasureExchange(o, group, count, width));
      exchanges.push_back(std::move(one));
    }
  }
  const double before = CpuSeconds();
  const absl::Time end = group.clock().Now() + absl::Seconds(1);
  while (group.clock().Now() < end) group.Sleep(-1, end - group.clock().Now());
  return Json{{"exchanges", exchanges}, {"idle_cpu", CpuSeconds() - before}};
}

// ---- this process
absl::StatusOr<Json> RunLane(const BenchEpOptions& o, const std::string& lane) {
  ASSIGN_OR_RETURN(const RawLane raw, MeasureRawLane(lane));
  EpGroupOptions g;
  g.world = o.ranks;
  g.lanes = {lane};
  for (const int width : o.hidden) {
    for (const int count : o.tokens) {
      for (size_t way = 0; way < kWays.size(); ++way) {
        g.ring_bytes = EpDispatcher::RingBytes(OptionsOf(o, way, count, width), g.ring_bytes);
      }
    }
  }
  ASSIGN_OR_RETURN(const std::vector<Json> said,
                   RunEpProcesses(g, [&](EpGroup& group, int) { return RunRank(o, group); }));
  const Json& first = said[0];
  Json report = {{"lane", lane},
                 {"alpha_us", raw.alpha_seconds * 1e6},
                 {"beta_gb_per_s", raw.beta_bytes_per_s / 1e9},
                 {"idle_cpu", first["idle_cpu"]},
                 {"exchanges", Json::array()}};
  for (Json e : first["exchanges"]) {
    const double ideal = 2 * raw.alpha_seconds + e["bytes"].get<double>() / raw.beta_bytes_per_s;
    e["efficiency"] = ideal / (e["us"].get<double>() / 1e6);
    if (o.progress) {
      const auto way = [&e](const char* name) {
        return absl::StrFormat("  %s %.2f, %.2f", name,
                               e[name]["us"].get<double>() / e["us"].get<double>(),
                               e[name]["bytes"].get<double>() / e["bytes"].get<double>());
      };
      o.progress(absl::StrFormat(
          "%s  hidden %5d  tokens %5d  %-12s %10.1f us  %8.2f MB  eta %.2f"
          "  (time, bytes of it:%s%s)",
          lane, e["hidden"].get<int>(), e["tokens"].get<int>(), e["path"].get<std::string>(),
          e["us"].get<double>(), e["bytes"].get<double>() / 1e6, e["efficiency"].get<double>(),
          way("int8"), way("reduced")));
    }
    report["exchanges"].push_back(std::move(e));
  }
  return report;
}

}  // namespace

absl::StatusOr<Json> RunBenchEp(const BenchEpOptions& o) {
  if (o.experts % o.ranks != 0 || o.top_k > o.experts) {
    return absl::InvalidArgumentError(absl::StrCat(o.experts, " experts, top-", o.top_k, ", ",
                                                   o.ranks, " ranks: ranks must divide experts"));
  }
  Json lanes = Json::array();
  for (const std::string& lane : o.lanes) {
    ASSIGN_OR_RETURN(Json one, RunLane(o, lane));
    if (o.progress) {
      o.progress(
          absl::StrFormat("%s  bare lane: alpha %.2f us, beta %.2f GB/s each way; idle ranks "
                          "use %.1f%% of a core",
                          lane, one["alpha_us"].get<double>(), one["beta_gb_per_s"].get<double>(),
                          one["idle_cpu"].get<double>() * 100));
    }
    lanes.push_back(std::move(one));
  }
  return Json{{"ranks", o.ranks}, {"experts", o.experts}, {"top_k", o.top_k}, {"lanes", lanes}};
}

}  // namespace switchyard

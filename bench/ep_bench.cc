#include "bench/ep_bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/ep_processes.h"
#include "bench/raw_lane.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_group.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kTimesMin = 5, kTimesMax = 2000;

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

absl::StatusOr<Json> MeasureExchange(const BenchEpOptions& o, EpGroup& group, int count,
                                     int width) {
  const EpDispatcher::Options options = {.top_k = o.top_k,
                                         .hidden = width,
                                         .max_tokens = count,
                                         .low_latency_tokens = o.low_latency_tokens};
  ASSIGN_OR_RETURN(Placement even, Placement::InOrder(1, 1, o.experts, o.ranks));
  ASSIGN_OR_RETURN(
      const auto dispatcher,
      EpDispatcher::Create(&group, std::make_shared<const Placement>(std::move(even)), options));
  const Tokens t = RandomTokens(o, group.rank(), count, width);
  const auto rows = static_cast<size_t>(count);
  std::vector<float> out(t.hidden.size());
  std::vector<std::byte> bytes;  // what experts would have made
  const Matrix<const float> hidden(t.hidden.data(), {rows, static_cast<size_t>(width)});
  const Matrix<const int32_t> experts(t.experts.data(), {rows, static_cast<size_t>(o.top_k)});
  const Matrix<const float> weights(t.weights.data(), experts.extents());
  const auto exchange = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const DispatchHandle handle,
                     dispatcher->Send(0, hidden, experts, weights, t.positions));
    ASSIGN_OR_RETURN(const DispatchedRows in, dispatcher->Receive(handle));
    const size_t row_bytes = in.tokens.cols * SizeOf(in.tokens.dtype);
    bytes.resize(std::max(bytes.size(), in.index.size() * row_bytes));
    const Rows outputs(bytes.data(), in.tokens.dtype, in.index.size(), in.tokens.cols, row_bytes);
    RETURN_IF_ERROR(dispatcher->CombineSend(handle, outputs, {out.data(), hidden.extents()}));
    return dispatcher->CombineReceive(handle);
  };
  // All ranks stop after the same round: rank 0 says when, in the step's header.
  const MonotonicClock clock;
  const absl::Time begin = clock.Now();
  std::vector<double> times;
  bool low_latency = false;
  for (int n = 0;; ++n) {
    const bool enough =
        n >= kTimesMin && (clock.Now() - begin > absl::Seconds(o.seconds) || n >= kTimesMax);
    StepHeader mine;
    mine.rows = static_cast<uint32_t>(count);
    mine.wants = enough ? 1 : 0;
    ASSIGN_OR_RETURN(const auto headers, group.OpenStep(mine));
    if (headers[0].wants != 0) break;
    dispatcher->BeginStep(headers);
    low_latency = EpDispatcher::UsesLowLatency(options, headers);
    const absl::Time start = clock.Now();
    RETURN_IF_ERROR(exchange());
    if (n > 0) times.push_back(absl::ToDoubleSeconds(clock.Now() - start));  // the first one warms
  }
  std::sort(times.begin(), times.end());
  return Json{{"hidden", width},
              {"tokens", count},
              {"path", low_latency ? "low latency" : "throughput"},
              {"us", times[times.size() / 2] * 1e6},
              {"bytes", dispatcher->bytes_sent() / (times.size() + 1)}};
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
      g.ring_bytes = std::max(g.ring_bytes,
                              EpDispatcher::RingBytes({.top_k = o.top_k,
                                                       .hidden = width,
                                                       .max_tokens = count,
                                                       .low_latency_tokens = o.low_latency_tokens},
                                                      g.ring_bytes));
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
      o.progress(absl::StrFormat("%s  hidden %5d  tokens %5d  %-12s %10.1f us  %8.2f MB  eta %.2f",
                                 lane, e["hidden"].get<int>(), e["tokens"].get<int>(),
                                 e["path"].get<std::string>(), e["us"].get<double>(),
                                 e["bytes"].get<double>() / 1e6, e["efficiency"].get<double>()));
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

#include "bench/ep_step_bench.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/ep_processes.h"
#include "bench/spread.h"
#include "common/status_macros.h"
#include "model/model.h"
#include "moe/ep_dispatcher.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kRingBytes = 4 << 20;  // as workers have it
constexpr int kRoundsMin = 5, kWarmRounds = 8, kBlockTokens = 16;
// In the order of EpOverlap.
constexpr std::array<const char*, 3> kWays = {"auto", "on", "off"};

// One step's rows of a rank, and the memory behind them.
struct Rows {
  std::vector<int32_t> tokens, blocks, logit_rows;
  std::vector<AttentionSequence> sequences;
};

Rows MakeRows(const BenchEpStepOptions& o, int count, int vocab) {
  Rows r;
  for (int i = 0; i < count; ++i) r.tokens.push_back((i * 7919 + 13) % vocab);
  const int each = (o.context == 0 ? count : o.context + 1) + kBlockTokens - 1;
  const int blocks = each / kBlockTokens, sequences = o.context == 0 ? 1 : count;
  for (int i = 0; i < sequences * blocks; ++i) r.blocks.push_back(i);
  for (int i = 0; i < sequences; ++i) {
    const auto table = std::span(r.blocks).subspan(static_cast<size_t>(i) * blocks, blocks);
    r.sequences.push_back({i, o.context == 0 ? count : 1, o.context, table});
    r.logit_rows.push_back(o.context == 0 ? count - 1 : i);
  }
  return r;
}

struct Ranked {
  std::unique_ptr<Model> model;
  std::shared_ptr<const Placement> placement;
};

absl::StatusOr<Ranked> LoadRank(const BenchEpStepOptions& o, int rank) {
  Ranked r;
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(o.model_dir));
  ASSIGN_OR_RETURN(Placement placement,
                   Placement::InOrder(1, config.layers, config.gate.experts, o.ranks));
  r.placement = std::make_shared<const Placement>(std::move(placement));
  ModelOptions m;
  m.threads = o.threads;
  m.dummy_weights = true;
  m.max_batch_tokens = *std::max_element(o.tokens.begin(), o.tokens.end());
  m.placement = r.placement;
  m.rank = RankId(rank);
  ASSIGN_OR_RETURN(r.model, Model::Load(o.model_dir, m));
  return r;
}

// Rounds of a step in each way, by a dispatcher each, until rank 0 has enough.
absl::StatusOr<Json> MeasureSteps(const BenchEpStepOptions& o, EpGroup& group, Ranked& r,
                                  int count) {
  const ModelConfig& config = r.model->config();
  std::array<std::unique_ptr<EpDispatcher>, 3> dispatchers;
  for (int way = 0; way < 3; ++way) {
    ASSIGN_OR_RETURN(dispatchers[way],
                     EpDispatcher::Create(&group, r.placement,
                                          {.top_k = config.gate.top_k,
                                           .hidden = config.hidden_size,
                                           .max_tokens = r.model->options().max_batch_tokens,
                                           .dtype = r.model->options().dtype,
                                           .low_latency_tokens = o.low_latency_tokens,
                                           .overlap = static_cast<EpOverlap>(way)}));
  }
  const Rows rows = MakeRows(o, count, config.vocab_size);
  ASSIGN_OR_RETURN(KvStorage kv,
                   KvStorage::Create(config.KvLayoutFor(r.model->options().dtype, kBlockTokens),
                                     static_cast<int>(rows.blocks.size())));
  std::vector<float> logits(rows.logit_rows.size() * config.vocab_size);
  const Matrix<float> out(logits.data(),
                          {rows.logit_rows.size(), static_cast<size_t>(config.vocab_size)});
  std::array<std::vector<double>, 3> times, waits;
  const absl::Time begin = group.clock().Now();
  for (int round = 0;; ++round) {
    const bool over =
        round >= kWarmRounds + kRoundsMin && group.clock().Now() - begin > absl::Seconds(o.seconds);
    for (int turn = 0; turn < 3; ++turn) {
      const int way = (round + turn) % 3;
      EpDispatcher& d = *dispatchers[way];
      const StepHeader mine = {.rows = static_cast<uint32_t>(count),
                               .wants = over ? kWantsToLeave : 0,
                               .micros = d.step_micros()};
      ASSIGN_OR_RETURN(const auto headers, group.OpenStep(mine));
      if (headers[0].wants != 0) {
        return Json{{"times", times},
                    {"waits", waits},
                    {"split", dispatchers[0]->overlapped_steps()},
                    {"bytes", d.bytes_sent() / std::max(1, round)}};
      }
      d.BeginStep(headers);
      r.model->UseDispatcher(&d);
      const absl::Time start = group.clock().Now();
      const absl::Duration waited = d.waited().total();
      RETURN_IF_ERROR(
          r.model->Forward({rows.tokens, rows.sequences, rows.logit_rows}, kv, nullptr, out));
      if (round < kWarmRounds) continue;  // memory grows, and the policy tries both ways
      times[way].push_back(absl::ToDoubleMilliseconds(group.clock().Now() - start));
      waits[way].push_back(absl::ToDoubleMilliseconds(d.waited().total() - waited));
    }
  }
}

// off ÷ way, of the steps of the same round.
Json Ratio(const std::vector<double>& off, const std::vector<double>& way) {
  std::vector<double> v;
  for (size_t i = 0; i < off.size(); ++i) v.push_back(off[i] / way[i]);
  const Spread s = Summarise(std::move(v));
  return {{"median", s.median}, {"lowest", s.lowest}, {"highest", s.highest}};
}

Json RowOf(const Json& said, int tokens) {
  const auto times = said["times"].get<std::array<std::vector<double>, 3>>();
  const auto waits = said["waits"].get<std::array<std::vector<double>, 3>>();
  Json row = {{"tokens", tokens}, {"rounds", times[2].size()}, {"bytes", said["bytes"]}};
  for (int way = 2; way >= 0; --way) {
    row[kWays[way]] = {{"ms", Median(times[way])}, {"wait_ms", Median(waits[way])}};
  }
  row["off_over_on"] = Ratio(times[2], times[1]);
  row["off_over_auto"] = Ratio(times[2], times[0]);
  row["auto_split"] = said["split"];
  return row;
}

}  // namespace

absl::StatusOr<Json> RunBenchEpSteps(const BenchEpStepOptions& o) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(o.model_dir));
  EpGroupOptions g;
  g.world = o.ranks;
  g.net_devices = o.net_devices;
  g.ring_bytes =
      EpDispatcher::RingBytes({.top_k = config.gate.top_k,
                               .hidden = config.hidden_size,
                               .max_tokens = *std::max_element(o.tokens.begin(), o.tokens.end()),
                               .low_latency_tokens = o.low_latency_tokens},
                              kRingBytes);
  Json lanes = Json::array();
  for (const std::string& lane : o.lanes) {
    g.lanes = {lane};
    const auto body = [&](EpGroup& group, int rank) -> absl::StatusOr<Json> {
      ASSIGN_OR_RETURN(Ranked r, LoadRank(o, rank));
      Json steps = Json::array();
      for (const int count : o.tokens) {
        ASSIGN_OR_RETURN(Json one, MeasureSteps(o, group, r, count));
        steps.push_back(std::move(one));
      }
      return Json{{"steps", steps}};
    };
    ASSIGN_OR_RETURN(const std::vector<Json> said, RunEpProcesses(g, body, o.namespaces));
    Json steps = Json::array();
    for (size_t i = 0; i < o.tokens.size(); ++i) {
      const Json row = RowOf(said[0]["steps"][i], o.tokens[i]);
      if (o.progress) {
        o.progress(absl::StrFormat(
            "%s  tokens %5d  off %8.2f ms (waits %.2f)  on %8.2f ms (waits %.2f)  off/on %.2f "
            "[%.2f, %.2f]  off/auto %.2f [%.2f, %.2f]  %.2f MB sent",
            lane, o.tokens[i], row["off"]["ms"].get<double>(), row["off"]["wait_ms"].get<double>(),
            row["on"]["ms"].get<double>(), row["on"]["wait_ms"].get<double>(),
            row["off_over_on"]["median"].get<double>(), row["off_over_on"]["lowest"].get<double>(),
            row["off_over_on"]["highest"].get<double>(),
            row["off_over_auto"]["median"].get<double>(),
            row["off_over_auto"]["lowest"].get<double>(),
            row["off_over_auto"]["highest"].get<double>(), row["bytes"].get<double>() / 1e6));
      }
      steps.push_back(row);
    }
    lanes.push_back({{"lane", lane}, {"steps", steps}});
  }
  return Json{{"ranks", o.ranks}, {"context", o.context}, {"lanes", lanes}};
}

}  // namespace switchyard

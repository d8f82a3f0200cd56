#include "bench/ep_skew.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/kernel_set.h"
#include "moe/balancer.h"
#include "moe/rebalance_plan.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kRounds = 5;            // the median counts
constexpr int kLoadTokens = 1 << 14;  // by which the balancer judges

double ThreadSeconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Which experts tokens choose in one layer.
class Popularity {
 public:
  Popularity(const BenchEpSkewOptions& o, unsigned seed) : top_k_(o.top_k), weights_(o.experts) {
    std::mt19937 rng(seed);
    for (int i = 0; i < o.experts; ++i) weights_[i] = std::pow(i + 1.0, -o.zipf);
    std::shuffle(weights_.begin(), weights_.end(), rng);
  }
  // top_k distinct experts: those with the smallest of independent exponential times.
  std::vector<int32_t> Choose(std::mt19937& rng) const {
    std::exponential_distribution<double> time(1);
    std::vector<std::pair<double, int32_t>> times;
    for (size_t e = 0; e < weights_.size(); ++e) times.emplace_back(time(rng) / weights_[e], e);
    std::partial_sort(times.begin(), times.begin() + top_k_, times.end());
    std::vector<int32_t> out;
    for (int k = 0; k < top_k_; ++k) out.push_back(times[k].second);
    return out;
  }

 private:
  const int top_k_;
  std::vector<double> weights_;
};

class Skew {
 public:
  Skew(const BenchEpSkewOptions& o, KernelSet kernels)
      : o_(o), kernels_(std::move(kernels)), context_(1) {
    for (int l = 0; l < o.layers; ++l) popularity_.emplace_back(o, 100 + l);
    std::mt19937 rng(1);
    const size_t count = static_cast<size_t>(o.hidden) * o.intermediate;
    std::vector<Bf16> weight(count);
    for (Bf16& w : weight) w = ToBf16(static_cast<float>(rng() % 2001) * 1e-5f - 0.01f);
    const size_t hidden = o.hidden, width = o.intermediate;
    const WeightView up = {weight.data(), DType::kBfloat16, width, hidden};
    const WeightView down = {weight.data(), DType::kBfloat16, hidden, width};
    for (int e = 0; e < o.experts; ++e) {  // each in memory of its own
      experts_.push_back(kernels_.grouped_gemm->PackExpert(up, up, down, WeightFormat::kBfloat16));
    }
  }

  absl::StatusOr<Placement> Even(int redundant) const {
    const std::vector<double> loads(o_.experts, 1.0);
    ASSIGN_OR_RETURN(const std::vector<BalancedLayer> layer,
                     BalanceExperts({loads.data(), {1, loads.size()}},
                                    {.replicas = o_.experts + redundant, .ranks = o_.ranks}));
    std::vector<int32_t> table;
    for (int l = 0; l < o_.layers; ++l) {
      table.insert(table.end(), layer[0].physical_to_logical.begin(),
                   layer[0].physical_to_logical.end());
    }
    const size_t slots = o_.experts + redundant;
    return Placement::Create(1, o_.experts, o_.ranks,
                             {table.data(), {static_cast<size_t>(o_.layers), slots}});
  }

  absl::StatusOr<Placement> Balanced(const Placement& even) const {
    std::mt19937 rng(2);
    std::vector<int64_t> loads(static_cast<size_t>(o_.layers) * o_.experts);
    for (int l = 0; l < o_.layers; ++l) {
      for (int t = 0; t < kLoadTokens / o_.layers; ++t) {
        for (const int32_t e : popularity_[l].Choose(rng)) ++loads[l * o_.experts + e];
      }
    }
    ASSIGN_OR_RETURN(
        const RebalancePlan plan,
        PlanRebalance(
            even, {loads.data(), {static_cast<size_t>(o_.layers), static_cast<size_t>(o_.experts)}},
            {.threshold = 0, .fetched_experts_max = INT32_MAX / 2}));
    return plan.placement == nullptr ? even : *plan.placement;
  }

  // A step of `tokens` tokens of every rank.
  Json Step(const Placement& p, const std::string& name, int tokens) {
    RankBalance rows_balance;
    std::vector<double> steps, busy;
    for (int round = 0; round < kRounds; ++round) {
      std::mt19937 rng(10 + round);
      double step = 0, all = 0;
      for (int l = 0; l < o_.layers; ++l) {
        const auto rows = Rows(p, l, tokens * o_.ranks, rng);
        std::vector<double> seconds, counts;
        for (int r = 0; r < o_.ranks; ++r) {
          seconds.push_back(Compute(p, l, r, rows[r]));
          counts.push_back(std::accumulate(rows[r].begin(), rows[r].end(), 0.0));
        }
        const RankBalance time = RankBalance::Of(seconds);
        step += time.max;
        all += time.mean;
        rows_balance += RankBalance::Of(counts);
      }
      steps.push_back(step);
      busy.push_back(all);
    }
    std::sort(steps.begin(), steps.end());
    std::sort(busy.begin(), busy.end());
    const double step = steps[kRounds / 2];
    return Json{{"tokens", tokens},
                {"placement", name},
                {"balancedness", rows_balance.balancedness()},
                {"step_ms", step * 1e3},
                {"busy_ms", busy[kRounds / 2] * 1e3},
                {"tokens_per_s", tokens * o_.ranks / step}};
  }

 private:
  // [ranks][slots]: rows for each slot.
  std::vector<std::vector<int32_t>> Rows(const Placement& p, int layer, int tokens,
                                         std::mt19937& rng) const {
    std::vector<std::vector<int32_t>> rows(o_.ranks, std::vector<int32_t>(p.slots_per_rank()));
    for (int t = 0; t < tokens; ++t) {
      const auto position = static_cast<int64_t>(rng() % 4096);
      for (const int32_t e : popularity_[layer].Choose(rng)) {
        const Replica& at = p.Choose(layer, e, position);
        ++rows[at.rank.value()][at.physical.value() % p.slots_per_rank()];
      }
    }
    return rows;
  }

  double Compute(const Placement& p, int layer, int rank, const std::vector<int32_t>& rows) {
    std::vector<int32_t> offsets = {0};
    std::vector<const PackedExpert*> table;
    for (size_t s = 0; s < rows.size(); ++s) {
      offsets.push_back(offsets.back() + rows[s]);
      table.push_back(&experts_[p.Hosted(layer, RankId(rank))[s]]);
    }
    const auto count = static_cast<size_t>(offsets.back()), width = static_cast<size_t>(o_.hidden);
    in_.resize(std::max(in_.size(), count * width), 0.01f);
    out_.resize(in_.size());
    const double begin = ThreadSeconds();
    kernels_.grouped_gemm->ExpertFfn(context_, Matrix<const float>(in_.data(), {count, width}), {},
                                     offsets, table, Matrix<float>(out_.data(), {count, width}));
    return ThreadSeconds() - begin;
  }

  const BenchEpSkewOptions& o_;
  const KernelSet kernels_;
  KernelContext context_;
  std::vector<Popularity> popularity_;  // [layers]
  std::vector<PackedExpert> experts_;   // of every layer the same
  std::vector<float> in_, out_;
};

}  // namespace

absl::StatusOr<Json> RunBenchEpSkew(const BenchEpSkewOptions& o) {
  if (o.experts % o.ranks != 0 || (o.experts + o.redundant) % o.ranks != 0 || o.top_k > o.experts ||
      o.redundant > o.experts * (o.ranks - 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat(o.experts, " experts, ", o.redundant, " redundant, top-", o.top_k, ", ",
                     o.ranks, " ranks: ranks must divide experts, with replicas and without"));
  }
  ASSIGN_OR_RETURN(KernelSet kernels, SelectKernels("auto"));
  Skew skew(o, std::move(kernels));
  ASSIGN_OR_RETURN(const Placement even, skew.Even(0));
  ASSIGN_OR_RETURN(const Placement packed, skew.Balanced(even));
  ASSIGN_OR_RETURN(const Placement replicas, skew.Even(o.redundant));
  ASSIGN_OR_RETURN(const Placement balanced, skew.Balanced(replicas));
  Json rows = Json::array();
  for (const int tokens : o.tokens) {
    double first = 0;
    for (const auto& [name, placement] :
         {std::pair<std::string, const Placement*>("even", &even),
          {"balanced", &packed},
          {absl::StrCat("even, ", o.redundant, " redundant"), &replicas},
          {absl::StrCat("balanced, ", o.redundant, " redundant"), &balanced}}) {
      Json row = skew.Step(*placement, name, tokens);
      const auto rate = row["tokens_per_s"].get<double>();
      if (first == 0) first = rate;
      if (o.progress) {
        o.progress(absl::StrFormat(
            "%4d tokens a rank  %-24s balancedness %.2f  step %8.2f ms, busy %8.2f ms  "
            "%9.0f tokens/s  x %.2f",
            tokens, name, row["balancedness"].get<double>(), row["step_ms"].get<double>(),
            row["busy_ms"].get<double>(), rate, rate / first));
      }
      rows.push_back(std::move(row));
    }
  }
  return Json{{"ranks", o.ranks}, {"experts", o.experts}, {"zipf", o.zipf}, {"rows", rows}};
}

}  // namespace switchyard

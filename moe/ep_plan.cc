#include "moe/ep_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace switchyard {

void RankPlan::Clear() {
  tokens.clear();
  counts.clear();
  slots.clear();
  weights.clear();
}

void MakePlans(const Placement& placement, int layer, Matrix<const int32_t> experts,
               std::span<const int32_t> positions, std::span<RankPlan> plans,
               std::vector<int32_t>* rank_of, Matrix<const float> weights) {
  for (RankPlan& plan : plans) plan.Clear();
  rank_of->clear();
  const int slots = placement.slots_per_rank();
  const bool weighted = !weights.empty();
  for (size_t t = 0; t < experts.rows(); ++t) {
    for (size_t k = 0; k < experts.cols(); ++k) {
      const Replica& replica = placement.Choose(layer, experts(t, k), positions[t]);
      RankPlan& plan = plans[replica.rank.value()];
      const auto token = static_cast<int32_t>(t);
      if (plan.tokens.empty() || plan.tokens.back() != token) {
        plan.tokens.push_back(token);
        plan.counts.push_back(0);
      }
      ++plan.counts.back();
      plan.slots.push_back(static_cast<uint16_t>(replica.physical.value() % slots));
      if (weighted) plan.weights.push_back(weights(t, k));
      rank_of->push_back(replica.rank.value());
    }
  }
}

void OrderReduced(std::span<const int32_t> rank_of, int top_k, std::vector<ReturningRow>* rows) {
  rows->clear();
  for (size_t i = 0; i < rank_of.size(); i += top_k) {
    const auto token = static_cast<int32_t>(i / top_k);
    const auto first = static_cast<ptrdiff_t>(rows->size());
    for (const int32_t rank : rank_of.subspan(i, top_k)) rows->push_back({token, rank});
    std::sort(rows->begin() + first, rows->end(),
              [](const auto& a, const auto& b) { return a.rank < b.rank; });
    const auto same = [](const auto& a, const auto& b) { return a.rank == b.rank; };
    rows->erase(std::unique(rows->begin() + first, rows->end(), same), rows->end());
  }
}

void WritePlan(const RankPlan& plan, std::byte* to) {
  const size_t tokens = plan.counts.size();
  const auto counts = std::as_bytes(std::span(plan.counts));
  const auto slots = std::as_bytes(std::span(plan.slots));
  const auto weights = std::as_bytes(std::span(plan.weights));
  std::copy(counts.begin(), counts.end(), to);
  if (tokens % 2 != 0) to[tokens] = std::byte{0};
  to = std::copy(slots.begin(), slots.end(), to + (tokens + 1) / 2 * 2);
  std::copy(weights.begin(), weights.end(), to);
}

absl::Status ReadPlan(std::span<const std::byte> bytes, size_t tokens, size_t entries,
                      const PlanTerms& terms, RankPlan* plan) {
  plan->Clear();
  if (bytes.size() != PlanBytes(tokens, entries, terms.weighted)) {
    return absl::InvalidArgumentError(absl::StrCat("plan: ", bytes.size(), " bytes for ", tokens,
                                                   " tokens and ", entries, " entries"));
  }
  plan->counts.resize(tokens);
  plan->slots.resize(entries);
  std::copy_n(bytes.begin(), tokens, std::as_writable_bytes(std::span(plan->counts)).begin());
  plan->weights.resize(terms.weighted ? entries : 0);
  const auto slots = std::as_writable_bytes(std::span(plan->slots));
  const auto weights = std::as_writable_bytes(std::span(plan->weights));
  std::copy_n(bytes.end() - slots.size() - weights.size(), slots.size(), slots.begin());
  std::copy_n(bytes.end() - weights.size(), weights.size(), weights.begin());
  size_t sum = 0;
  for (const uint8_t n : plan->counts) {
    if (n < 1 || n > terms.top_k) {
      return absl::InvalidArgumentError(
          absl::StrCat("plan: a token with ", n, " entries, wanted 1 to ", terms.top_k));
    }
    sum += n;
  }
  if (sum != entries) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: tokens have ", sum, " entries, the header says ", entries));
  }
  for (const uint16_t slot : plan->slots) {
    if (slot >= terms.slots_per_rank) {
      return absl::InvalidArgumentError(
          absl::StrCat("plan: expert slot ", slot, ", there are ", terms.slots_per_rank));
    }
  }
  return absl::OkStatus();
}

absl::Status GroupByExpert(std::span<const RankPlan> plans, int slots_per_rank,
                           Grouping* grouping) {
  size_t total = 0;
  for (const RankPlan& plan : plans) total += plan.slots.size();
  if (total > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(total, " rows for one rank"));
  }
  std::vector<int32_t>& offsets = grouping->offsets;
  offsets.assign(slots_per_rank + 1, 0);
  for (const RankPlan& plan : plans) {
    for (const uint16_t slot : plan.slots) ++offsets[slot + 1];
  }
  for (int s = 0; s < slots_per_rank; ++s) offsets[s + 1] += offsets[s];
  grouping->rows.resize(plans.size());
  for (size_t r = 0; r < plans.size(); ++r) {
    grouping->rows[r].clear();
    for (const uint16_t slot : plans[r].slots) grouping->rows[r].push_back(offsets[slot]++);
  }
  // Each offset now stands at its slot's end, which is the next one's begin.
  std::copy_backward(offsets.begin(), offsets.end() - 1, offsets.end());
  offsets[0] = 0;
  grouping->index.resize(total);
  grouping->tokens = 0;
  for (size_t r = 0; r < plans.size(); ++r) {
    const int32_t* row = grouping->rows[r].data();
    for (const int entries : plans[r].counts) {
      for (int n = 0; n < entries; ++n) {
        grouping->index[*row++] = static_cast<int32_t>(grouping->tokens);
      }
      ++grouping->tokens;
    }
  }
  return absl::OkStatus();
}

}  // namespace switchyard

#include "kernels/gate.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace switchyard {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// The scores of one token, from its logits.
void Score(GateScoring scoring, const float* logits, std::span<float> scores) {
  const size_t n = scores.size();
  if (scoring == GateScoring::kSigmoid) {
    for (size_t e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float highest = *std::max_element(logits, logits + n);
  float sum = 0;
  for (size_t e = 0; e < n; ++e) sum += scores[e] = std::exp(logits[e] - highest);
  for (float& s : scores) s /= sum;
}

// The k best of `scores`, descending, ties to the lowest index; taken [scores.size()] tells which.
// k <= scores.size(), both small.
template <typename Emit>
void TopK(std::span<const float> scores, int k, char* taken, Emit emit) {
  std::fill_n(taken, scores.size(), 0);
  for (int slot = 0; slot < k; ++slot) {
    int best = -1;
    for (size_t i = 0; i < scores.size(); ++i) {
      if (!taken[i] && (best < 0 || scores[i] > scores[best])) best = static_cast<int>(i);
    }
    taken[best] = 1;
    emit(slot, best);
  }
}

// The score of a group of experts: its best, or the sum of its two best.
float GroupScore(std::span<const float> group, bool top2) {
  float first = kLowest, second = kLowest;
  for (const float s : group) {
    if (s > first) {
      second = first;
      first = s;
    } else if (s > second) {
      second = s;
    }
  }
  return top2 && group.size() > 1 ? first + second : first;
}

// Scores of experts outside the chosen groups become −∞.
void MaskGroups(const GateConfig& c, std::span<float> selection, std::span<float> group_scores,
                char* taken) {
  const size_t size = c.experts / c.groups;
  for (int g = 0; g < c.groups; ++g) {
    group_scores[g] = GroupScore(selection.subspan(g * size, size), c.group_score_top2);
  }
  TopK(group_scores, c.groups_chosen, taken, [](int, int) {});
  for (int g = 0; g < c.groups; ++g) {
    if (!taken[g]) std::fill_n(selection.begin() + g * size, size, kLowest);
  }
}

// One token. `scratch` is of the thread that runs it.
void ChooseForToken(const GateConfig& c, const float* logits, std::span<const float> bias,
                    Scratch& scratch, int32_t* experts, float* weights) {
  const size_t n = c.experts;
  const std::span<float> scores(scratch.Get<float>(0, n), n);
  const std::span<float> selection(scratch.Get<float>(1, n), n);
  const std::span<float> group_scores(scratch.Get<float>(2, c.groups), c.groups);
  char* taken = scratch.Get<char>(3, n);
  Score(c.scoring, logits, scores);
  for (size_t e = 0; e < n; ++e) selection[e] = scores[e] + (bias.empty() ? 0.0f : bias[e]);
  if (c.groups_chosen < c.groups) MaskGroups(c, selection, group_scores, taken);
  TopK(selection, c.top_k, taken, [&](int slot, int expert) {
    experts[slot] = expert;
    weights[slot] = scores[expert];
  });
  if (c.normalize) {
    float sum = 0;
    for (int slot = 0; slot < c.top_k; ++slot) sum += weights[slot];
    // DeepSeek-V3's guard against sigmoid scores that are all zero; a softmax does not feel it.
    for (int slot = 0; slot < c.top_k; ++slot) weights[slot] /= sum + 1e-20f;
  }
  for (int slot = 0; slot < c.top_k; ++slot) weights[slot] *= c.scale;
}

}  // namespace

void ChooseExperts(KernelContext& ctx, const GateConfig& c, Matrix<const float> logits,
                   std::span<const float> bias, Matrix<int32_t> experts, Matrix<float> weights) {
  SY_CHECK_MSG(c.experts >= 1 && c.groups >= 1 && c.experts % c.groups == 0, c.experts,
               " experts in ", c.groups, " groups");
  SY_CHECK_MSG(c.groups_chosen >= 1 && c.groups_chosen <= c.groups && c.top_k >= 1 &&
                   c.top_k <= c.experts / c.groups * c.groups_chosen,
               "top_k ", c.top_k, " of ", c.groups_chosen, " groups");
  SY_CHECK_MSG(bias.empty() || bias.size() == static_cast<size_t>(c.experts), bias.size());
  const size_t cost = static_cast<size_t>(c.experts) * (c.top_k + 4);
  ctx.pool.ForRanges(logits.rows(), cost, [&](size_t begin, size_t end, int thread) {
    for (size_t t = begin; t < end; ++t) {
      ChooseForToken(c, logits.row(t), bias, ctx.thread_scratch[thread], experts.row(t),
                     weights.row(t));
    }
  });
}

}  // namespace switchyard

// kernels/gate.h: the choice of experts from gate logits.
#pragma once

#include <cstdint>
#include <span>

#include "common/tensor_view.h"
#include "kernels/context.h"

namespace switchyard {

enum class GateScoring { kSoftmax, kSigmoid };

// E experts, K slots per token.
struct GateConfig {
  GateScoring scoring = GateScoring::kSoftmax;
  int experts = 0;
  int top_k = 0;
  int groups = 1;         // experts in equal consecutive groups; 1: no grouping
  int groups_chosen = 1;  // experts of other groups score −∞
  bool group_score_top2 =
      false;               // group score: sum of its two best (DeepSeek-V3), else its best (V2)
  bool normalize = false;  // weights of the chosen divided by their sum
  float scale = 1.0f;      // multiplies the weights, after normalising
};

// logits [T, E] FP32; bias [E] or empty is added to the scores for the choice only (DeepSeek-V3,
// section 2.1.2, auxiliary-loss-free balancing). Out: experts [T, K] and weights [T, K] in slots by
// descending selection score, ties to the lowest id.
void ChooseExperts(KernelContext& ctx, const GateConfig& config, Matrix<const float> logits,
                   std::span<const float> bias, Matrix<int32_t> experts, Matrix<float> weights);

}  // namespace switchyard

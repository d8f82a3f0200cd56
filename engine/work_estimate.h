// engine/work_estimate.h: what tokens and steps cost by config.json alone: floating-point
// operations, and bytes of weights that are read; what attention over the context adds depends on
// every sequence's length.
#pragma once

#include <optional>

#include "kernels/gemm.h"
#include "model/config.h"

namespace switchyard {

struct WorkEstimate {
  double token_flops = 0;  // 2 per weight of the layers that one token meets
  double step_bytes = 0;   // weights that each step reads, whatever it computes
  // Of a key and its value, all layers: for a token that looks at it, and in the cache; and for a
  // prompt's token, where that sees them expanded. (To expand each once is in token_flops: the same
  // weights.)
  double key_flops = 0, key_bytes = 0, prompt_key_flops = 0;
  // Routed experts, in each of `moe_layers`: `experts` of `expert_bytes`, `top_k` for a token.
  double expert_bytes = 0;
  int moe_layers = 0, experts = 0, top_k = 0;
  int ranks = 1;  // that share them

  // Of `tokens` in `steps` equal steps. An expert is read once in a step, if a token of any rank
  // chose it; choices count as even and independent.
  double ReadBytes(double tokens, double steps) const;
};

WorkEstimate EstimateWork(const ModelConfig& config, DType dtype,
                          std::optional<WeightFormat> quantization, int ranks,
                          bool expands_prompts = false);

}  // namespace switchyard

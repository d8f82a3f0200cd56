#include "engine/work_estimate.h"

#include <algorithm>
#include <cmath>

namespace switchyard {
namespace {

double AttentionWeights(const ModelConfig& c) {
  const double h = c.hidden_size, heads = c.heads;
  if (c.attention == ModelConfig::Attention::kGqa) {
    return h * c.head_dim * (2 * heads + 2.0 * c.kv_heads);  // q and o, k and v
  }
  const double qk = c.qk_nope_head_dim + c.qk_rope_head_dim;
  const double q = c.q_lora_rank > 0 ? (h + heads * qk) * c.q_lora_rank : h * heads * qk;
  const double kv = h * (c.kv_lora_rank + c.qk_rope_head_dim) +
                    heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim);
  return q + kv + heads * c.v_head_dim * h;
}

}  // namespace

WorkEstimate EstimateWork(const ModelConfig& c, DType dtype, int ranks) {
  const double bytes = dtype == DType::kFloat32 ? 4 : 2;
  const auto moe_layers = std::count(c.layer_is_moe.begin(), c.layer_is_moe.end(), true);
  const double ffn = 3.0 * c.hidden_size;  // gate, up, down
  const double expert = ffn * c.moe_intermediate_size;
  const double always =
      c.layers * AttentionWeights(c) +
      static_cast<double>(c.layers - moe_layers) * ffn * c.intermediate_size +
      static_cast<double>(moe_layers) *
          (c.shared_experts * expert + static_cast<double>(c.hidden_size) * c.gate.experts);
  WorkEstimate w;
  w.token_flops = 2 * (always + static_cast<double>(moe_layers) * c.gate.top_k * expert);
  w.step_bytes = bytes * (always + static_cast<double>(c.vocab_size) * c.hidden_size);
  w.expert_bytes = bytes * expert;
  w.moe_layers = static_cast<int>(moe_layers);
  w.experts = c.gate.experts;
  w.top_k = c.gate.top_k;
  w.ranks = ranks;
  return w;
}

double WorkEstimate::ReadBytes(double tokens, double steps) const {
  if (steps <= 0) return 0;
  double met = 0;  // experts of this rank in a layer of a step
  if (experts > 0) {
    const double missed = 1 - static_cast<double>(top_k) / experts;
    met = experts * (1 - std::pow(missed, ranks * tokens / steps)) / ranks;
  }
  return steps * (step_bytes + moe_layers * met * expert_bytes);
}

}  // namespace switchyard

#include "engine/work_estimate.h"

#include <algorithm>
#include <cmath>

#include "model/weight_source.h"

namespace switchyard {

WorkEstimate EstimateWork(const ModelConfig& c, DType dtype,
                          std::optional<WeightFormat> quantization, int ranks,
                          bool expands_prompts) {
  const double bytes = SizeOf(dtype);
  const double quantised = BytesPerWeight(quantization.value_or(FormatOf(dtype)));
  const AttentionParameters attention = CountAttentionParameters(c);
  const auto moe_layers = std::count(c.layer_is_moe.begin(), c.layer_is_moe.end(), true);
  const double ffn = 3.0 * c.hidden_size;  // gate, up, down
  const double expert = ffn * c.moe_intermediate_size;
  const double always = static_cast<double>(c.layers * attention.projections) +
                        static_cast<double>(c.layers - moe_layers) * ffn * c.intermediate_size +
                        static_cast<double>(moe_layers) * c.shared_experts * expert;
  const auto absorbed = static_cast<double>(c.layers * attention.absorbed);
  const double gates = static_cast<double>(moe_layers) * c.hidden_size * c.gate.experts;
  WorkEstimate w;
  w.token_flops =
      2 * (always + absorbed + gates + static_cast<double>(moe_layers) * c.gate.top_k * expert);
  w.step_bytes = quantised * always +
                 bytes * (absorbed + static_cast<double>(c.vocab_size) * c.hidden_size) +
                 sizeof(float) * gates;
  if (c.attention == ModelConfig::Attention::kGqa) {
    w.key_flops = w.prompt_key_flops = 4.0 * c.layers * c.heads * c.head_dim;
    w.key_bytes = 2 * bytes * c.layers * c.kv_heads * c.head_dim;
  } else {  // absorbed: the latent is the value too
    const double key = c.kv_lora_rank + c.qk_rope_head_dim;
    const double expanded = c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim;
    w.key_flops = 2.0 * c.layers * c.heads * (key + c.kv_lora_rank);
    w.prompt_key_flops = expands_prompts ? 2.0 * c.layers * c.heads * expanded : w.key_flops;
    w.key_bytes = bytes * c.layers * key;
  }
  w.expert_bytes = quantised * expert;
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

#include <algorithm>

#include "common/status_macros.h"
#include "model/cuda/layers.h"
#include "model/head_share.h"

namespace switchyard::cuda {

absl::StatusOr<Workspace> MakeWorkspace(const ModelConfig& c, int rows_max, DeviceArena* memory) {
  const bool mla = c.attention == ModelConfig::Attention::kMla;
  const auto rows = static_cast<size_t>(rows_max), heads = static_cast<size_t>(c.heads);
  const auto hidden = static_cast<size_t>(c.hidden_size);
  const auto latent = static_cast<size_t>(c.kv_lora_rank),
             nope = static_cast<size_t>(c.qk_nope_head_dim);
  const size_t key = mla ? latent + c.qk_rope_head_dim : c.head_dim;
  const size_t value = mla ? c.v_head_dim : c.head_dim;
  const size_t query = mla ? nope + c.qk_rope_head_dim : c.head_dim;
  const auto groups = static_cast<size_t>(OutputGroups(c.heads));
  const auto top_k = static_cast<size_t>(std::max(c.gate.top_k, 1));
  const auto experts = static_cast<size_t>(std::max(c.gate.experts, 1));
  const auto moe = static_cast<size_t>(c.moe_intermediate_size);
  const size_t dense = std::max<size_t>(c.intermediate_size, moe * c.shared_experts);
  // In elements; as wide as products want their inputs.
  const size_t hidden_elements = std::max(top_k * PaddedK(moe), size_t(PaddedK(dense)));
  const size_t input_elements =
      std::max({top_k * PaddedK(hidden), hidden_elements, heads * PaddedCols(nope),
                heads * PaddedCols(latent), groups * PaddedK(heads / groups * value),
                size_t(PaddedK(c.q_lora_rank))});
  constexpr size_t kWide = sizeof(float);

  Workspace w;
  w.rows = rows_max;
  w.expert_rows = rows_max * static_cast<int>(top_k);
  const struct {
    float** to;
    size_t per_row;
  } floats[] = {
      {&w.residual, hidden},
      {&w.normed, hidden},
      {&w.summed, hidden},
      {&w.q_low, static_cast<size_t>(c.q_lora_rank)},
      {&w.q, heads * query},
      {&w.wide, heads * std::max(key, value)},
      {&w.k, mla ? key : key * c.kv_heads},
      {&w.v, mla ? 0 : value * c.kv_heads},
      {&w.by_head, mla ? heads * latent : 0},
      {&w.parts, groups * hidden},
      {&w.gate_logits, experts},
      {&w.gate_weights, top_k},
      {&w.input_scales, input_elements / kQuantGroup + 1},
  };
  for (const auto& [to, per_row] : floats) {
    ASSIGN_OR_RETURN(*to, memory->Allocate<float>(rows * per_row));
  }
  const struct {
    int32_t** to;
    size_t count;
  } indices[] = {
      {&w.heads_first, mla ? rows * heads : 0},
      {&w.tokens_first, mla ? rows * heads : 0},
      {&w.groups_first, rows * (mla ? heads : groups)},
      {&w.experts, rows * top_k},
      {&w.order.index, rows * top_k},
      {&w.order.where, rows * top_k},
      {&w.order.offsets, experts + 1},
      {&w.order.counts, experts},
  };
  for (const auto& [to, count] : indices) {
    ASSIGN_OR_RETURN(*to, memory->Allocate<int32_t>(count));
  }
  ASSIGN_OR_RETURN(w.hidden, memory->Allocate(rows * hidden_elements * kWide));
  ASSIGN_OR_RETURN(w.outputs, memory->Allocate(rows * top_k * PaddedCols(hidden) * kWide));
  ASSIGN_OR_RETURN(w.input, memory->Allocate(rows * input_elements * kWide));
  ASSIGN_OR_RETURN(w.gathered, memory->Allocate(rows * input_elements * kWide));
  return w;
}

}  // namespace switchyard::cuda

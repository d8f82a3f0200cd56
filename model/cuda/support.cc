#include "model/cuda/support.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/head_share.h"

namespace switchyard::cuda {
namespace {

template <typename... T>
absl::Status Refuse(const T&... what) {
  return absl::UnimplementedError(absl::StrCat("device cuda: ", what...));
}

// Rows of BF16 that products read must start at multiples of 16 bytes, and no kernel clears what a
// product leaves between them: widths of what one product gives to the next.
absl::Status CheckWidths(const ModelConfig& c) {
  const int value = c.attention == ModelConfig::Attention::kMla ? c.v_head_dim : c.head_dim;
  const struct {
    const char* name;
    int width;
  } widths[] = {{"a group of heads", c.heads / OutputGroups(c.heads) * value},
                {"moe_intermediate_size", c.moe_intermediate_size},
                {"intermediate_size", c.intermediate_size}};
  for (const auto& [name, width] : widths) {
    if (width % kRowUnit == 0) continue;
    return Refuse(name, " is ", width, " values wide, a multiple of ", kRowUnit, " is wanted");
  }
  return absl::OkStatus();
}

// Products of single heads have tiles of rows for each head, experts for each expert.
absl::Status CheckRows(const ModelConfig& c, const ModelOptions& o, GemmPath path) {
  const DeviceFormat format = o.dtype == DType::kFloat32 ? DeviceFormat::kFloat32
                              : o.quantization           ? DeviceFormat::kInt8
                                                         : DeviceFormat::kBfloat16;
  const int64_t tile = TileRows(path, format), rows = o.max_batch_tokens;
  const int64_t heads =
      c.attention == ModelConfig::Attention::kMla ? c.heads : OutputGroups(c.heads);
  const int64_t by_head = heads * ((rows + tile - 1) / tile);
  const int64_t by_expert = (rows * c.gate.top_k + tile - 1) / tile + c.gate.experts;
  if (std::max(by_head, by_expert) <= kRowTilesMax) return absl::OkStatus();
  return Refuse("--max-num-batched-tokens ", rows, ": a product would have ",
                std::max(by_head, by_expert), " blocks of ", tile, " rows, a grid has at most ",
                kRowTilesMax);
}

}  // namespace

AttentionShape AttentionShapeOf(const ModelConfig& c) {
  if (c.attention == ModelConfig::Attention::kMla) {
    return {.heads = c.heads,
            .kv_heads = 1,
            .qk_dim = c.kv_lora_rank + c.qk_rope_head_dim,
            .v_dim = c.kv_lora_rank,
            .scale = c.attention_scale};
  }
  return {.heads = c.heads,
          .kv_heads = c.kv_heads,
          .qk_dim = c.head_dim,
          .v_dim = c.head_dim,
          .scale = c.attention_scale,
          .window = c.sliding_window};
}

absl::Status CheckSupported(const ModelConfig& c, const ModelOptions& o, GemmPath path,
                            const DeviceProperties& device) {
  if (o.tensor_ranks > 1) return Refuse("tensor parallelism of attention is not built");
  if (o.ep_payload == EpPayload::kInt8) return Refuse("--ep-payload int8 is not built");
  if (o.reduced_combine) return Refuse("--ep-combine reduced is not built");
  RETURN_IF_ERROR(CheckWidths(c));
  RETURN_IF_ERROR(CheckRows(c, o, path));
  const bool mla = c.attention == ModelConfig::Attention::kMla;
  ASSIGN_OR_RETURN(const size_t shared, AttentionSharedBytes(AttentionShapeOf(c), mla, o.dtype));
  if (shared <= device.shared_bytes) return absl::OkStatus();
  return Refuse("attention takes ", shared, " bytes of shared memory, a block of ", device.name,
                " (compute capability ", device.major, ".", device.minor, ") has at most ",
                device.shared_bytes);
}

std::string NumericsPath(GemmPath path, const DeviceProperties& device) {
  return absl::StrCat(path == GemmPath::kWgmma ? "cuda_wgmma" : "cuda_mma", "_sm", device.major,
                      device.minor);
}

}  // namespace switchyard::cuda

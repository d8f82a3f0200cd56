// model/cuda/device_weights.h: a model's weights in the memory of a device: uploaded layer by layer
// while the host loads the next, so that the host never holds them all. Immutable once loaded, but
// for which experts there are.
//
// Letters as in model/weights.h; G groups of heads of the output projection, h query heads.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "common/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "model/weights.h"

namespace switchyard::cuda {

struct DeviceAttention {
  // GQA
  DeviceWeight q, k, v;
  const float *q_norm = nullptr, *k_norm = nullptr;  // null: none, as all vectors here
  int q_norm_width = 0, k_norm_width = 0;            // a head's, or all of q's and k's
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;
  // MLA
  DeviceWeight q_a, q_b, kv_a;
  const float *q_a_norm = nullptr, *q_a_bias = nullptr, *kv_a_bias = nullptr, *kv_a_norm = nullptr;
  DeviceWeight uk, uv;  // h groups

  DeviceWeight o;  // G groups of [H, heads of a group · v]
  const float* o_bias = nullptr;
};

// FFNs of one width, as groups of two products.
struct DeviceFfn {
  DeviceWeight gate_up, down;
};

// The experts of an MoE layer, in memory of their own: other ones may take their places.
struct DeviceExperts {
  DeviceFfn ffn;                 // a group for each slot, those of empty slots undefined
  std::vector<int32_t> logical;  // [slots] which ones; negative: none
  std::vector<DeviceBuffer> memory;
};

struct DeviceLayer {
  const float *input_norm = nullptr, *post_norm = nullptr;
  DeviceAttention attention;
  DeviceWeight gate;
  const float* gate_bias = nullptr;
  DeviceFfn dense;
  DeviceExperts experts;  // MoE
  std::optional<DeviceFfn> shared;
};

struct DeviceWeights {
  explicit DeviceWeights(size_t slab_bytes) : memory(slab_bytes) {}

  DeviceArena memory;
  const std::byte* embedding = nullptr;  // [V, H]
  DType embedding_dtype = DType::kBfloat16;
  const float* final_norm = nullptr;
  DeviceWeight head;
  std::vector<DeviceLayer> layers;
  // [positions, dim/2]
  const float *rope_cos = nullptr, *rope_sin = nullptr;
  int rope_positions = 0;

  size_t bytes() const;  // of the device
};

// Uploads pieces of a model that was packed by Packers(). Errors: kResourceExhausted says how much
// was wanted.
class WeightUploader {
 public:
  WeightUploader(DeviceWeights* to, const OwnedStream& stream) : to_(*to), stream_(stream) {}

  // `host` is emptied but for what names its experts.
  absl::Status Layer(LayerWeights* host);
  // What is of no layer.
  absl::Status Rest(const ModelWeights& host, const RopeTable& rope);
  // Makes layer `layer` host `wanted` [slots]: from its own experts and from `spare`, which has the
  // others and keeps what nobody wants. On an error it hosts what it did before. Nothing may be
  // computed meanwhile.
  absl::Status Rehost(int layer, std::span<const int32_t> wanted, SpareExperts* spare);

 private:
  // One group, on the host or on the device; null: empty.
  struct Group {
    const std::byte* data = nullptr;
    const std::byte* scales = nullptr;
  };
  using Owned = std::vector<DeviceBuffer>;
  static Group GroupOf(const PackedWeight& host);
  static Group GroupOf(const DeviceWeight& weight, size_t slot);
  absl::StatusOr<const float*> Vector(std::span<const float> host);
  // `own`: into memory of its own; null: into the model's.
  absl::StatusOr<std::byte*> Allocate(size_t bytes, Owned* own);
  // Groups of one shape, that of `like`. An empty one leaves its place undefined.
  absl::StatusOr<DeviceWeight> Weight(WeightFormat format, size_t n, size_t k,
                                      std::span<const Group> groups, Owned* own);
  absl::StatusOr<DeviceWeight> Weight(std::span<const PackedWeight* const> groups,
                                      Owned* own = nullptr);
  absl::Status One(const PackedWeight& host, DeviceWeight* to);
  absl::Status Attention(const AttentionWeights& host, DeviceAttention* to);
  absl::StatusOr<DeviceFfn> Ffn(std::span<const PackedExpert* const> experts, Owned* own = nullptr);

  DeviceWeights& to_;
  const OwnedStream& stream_;
};

}  // namespace switchyard::cuda

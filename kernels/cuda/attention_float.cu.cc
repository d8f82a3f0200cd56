// Attention over an FP32 cache, for checking: a warp for each row and head, by fma. A lane has
// scores of its own, one chain each; then columns of its own, one chain over a segment's keys.
#include "kernels/cuda/attention_parts.h"

namespace switchyard::cuda {
namespace {

constexpr int kColumnsMax = 512 / kWarp;  // of values, of a lane

__global__ void __launch_bounds__(kWarp) FloatKernel(AttentionArguments a) {
  const DeviceSequence s = a.batch.sequences[static_cast<int>(blockIdx.x) / a.batch.rows_max];
  const int token = static_cast<int>(blockIdx.x) % a.batch.rows_max;
  if (token >= s.count) return;
  float* weights = SharedMemory<float>();  // [kAttentionSegment]
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (a.shape.heads / a.shape.kv_heads);
  const int64_t row = s.first_row + token;
  const int32_t* table = a.batch.tables + s.table_offset;
  const float* cache = reinterpret_cast<const float*>(a.base);
  const float* q = a.q.data + row * a.q.stride + static_cast<int64_t>(head) * a.shape.qk_dim;
  const KeyRange keys = KeysOf(a.shape, s.first_position + token);
  Softmax all;
  float values[kColumnsMax] = {};
  for (int segment = keys.begin / kAttentionSegment * kAttentionSegment; segment < keys.end;
       segment += kAttentionSegment) {
    const int begin = keys.begin > segment ? keys.begin : segment;
    const int end = keys.end < segment + kAttentionSegment ? keys.end : segment + kAttentionSegment;
    Softmax here;
    for (int j = segment + Lane(); j < end; j += kWarp) {
      if (j < begin) continue;
      const float* k = cache + ElementOf(a.kv, table, kv_head, j, false);
      float dot = 0;
      for (int i = 0; i < a.shape.qk_dim; ++i) dot = fmaf(q[i], k[i], dot);
      weights[j - segment] = dot * a.shape.scale;
      if (weights[j - segment] > here.max) here.max = weights[j - segment];
    }
    here.max = WarpMax(here.max);
    for (int j = segment + Lane(); j < end; j += kWarp) {
      if (j < begin) continue;
      weights[j - segment] = Exp(weights[j - segment] - here.max);
      here.sum = here.sum + weights[j - segment];
    }
    here.sum = WarpSum(here.sum);
    __syncwarp();
    const MergeFactors f = Merge(all, here);
    SY_UNROLL
    for (int c = 0; c < kColumnsMax; ++c) {
      const int column = c * kWarp + Lane();
      float value = 0;
      for (int j = begin; column < a.shape.v_dim && j < end; ++j) {
        value = fmaf(weights[j - segment], cache[ElementOf(a.kv, table, kv_head, j, true) + column],
                     value);
      }
      values[c] = Merged(values[c], value, f);
    }
    __syncwarp();
  }
  float* out = a.out.data + row * a.out.stride + static_cast<int64_t>(head) * a.shape.v_dim;
  SY_UNROLL
  for (int c = 0; c < kColumnsMax; ++c) {
    const int column = c * kWarp + Lane();
    if (column < a.shape.v_dim) out[column] = Normalized(values[c], all.sum);
  }
}

}  // namespace

absl::StatusOr<size_t> AttentionFloatSharedBytes(const AttentionShape& shape) {
  if (shape.v_dim <= kColumnsMax * kWarp) return kAttentionSegment * sizeof(float);
  return absl::UnimplementedError(
      absl::StrCat("attention on CUDA: values of ", shape.v_dim, " elements; at most 512"));
}

absl::Status AttentionFloat(Stream stream, const AttentionArguments& a) {
  const absl::StatusOr<size_t> shared = AttentionFloatSharedBytes(a.shape);
  if (!shared.ok()) return shared.status();
  return Launch("PagedAttention, FP32", FloatKernel,
                {.x = int64_t{a.batch.count} * a.batch.rows_max,
                 .y = a.shape.heads,
                 .threads = kWarp,
                 .shared_bytes = *shared},
                stream, a);
}

}  // namespace switchyard::cuda

#include <algorithm>
#include <cmath>

#include "kernels/reference/reference.h"

namespace switchyard {
namespace {

// The cached keys and values of one sequence and one kv head.
class Cache {
 public:
  Cache(const KvAddressing& a, const std::byte* kv, std::span<const int32_t> blocks, int head)
      : a_(a), kv_(kv), blocks_(blocks), head_(head) {}

  float K(int position, int i) const {
    return At(a_.k_offset + head_ * a_.k_head_stride, a_.k_token_stride, position, i);
  }
  float V(int position, int i) const {
    return At(a_.v_offset + head_ * a_.v_head_stride, a_.v_token_stride, position, i);
  }

 private:
  float At(size_t offset, size_t token_stride, int position, int i) const {
    const size_t block = blocks_[position / a_.block_tokens];
    const size_t index = block * a_.block_stride + offset +
                         (position % a_.block_tokens) * token_stride + static_cast<size_t>(i);
    return a_.dtype == DType::kFloat32 ? reinterpret_cast<const float*>(kv_)[index]
                                       : ToFloat(reinterpret_cast<const Bf16*>(kv_)[index]);
  }

  const KvAddressing& a_;
  const std::byte* kv_;
  std::span<const int32_t> blocks_;
  size_t head_;
};

// One query of one head over keys [begin, context). weights [context] is scratch. `round`: what is
// multiplied with a key or a value is rounded as these are; the sum of the weights is not.
void Attend(const AttentionShape& shape, const Cache& cache, int begin, int context, bool round,
            const float* q, float* weights, float* out) {
  const auto rounded = [=](float f) { return round ? RoundToBf16(f) : f; };
  float highest = -INFINITY;
  for (int j = begin; j < context; ++j) {
    float dot = 0;
    for (int i = 0; i < shape.qk_dim; ++i) dot += rounded(q[i]) * cache.K(j, i);
    weights[j] = dot * shape.scale;
    highest = std::max(highest, weights[j]);
  }
  float sum = 0;
  for (int j = begin; j < context; ++j) {
    weights[j] = std::exp(weights[j] - highest);
    sum += weights[j];
  }
  for (int i = 0; i < shape.v_dim; ++i) {
    float value = 0;
    for (int j = begin; j < context; ++j) value += rounded(weights[j]) * cache.V(j, i);
    out[i] = value / sum;
  }
}

}  // namespace

void ReferenceAttention::PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                                        const KvAddressing& addressing, const std::byte* kv,
                                        std::span<const AttentionSequence> sequences,
                                        Matrix<const float> q, Matrix<float> out) const {
  SY_CHECK_MSG(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, shape.heads, " heads, ",
               shape.kv_heads, " kv heads");
  const int sharing = shape.heads / shape.kv_heads;
  for (const AttentionSequence& s : sequences) {
    if (s.count == 0) continue;
    const int context_max = s.first_position + s.count;
    SY_CHECK_MSG(s.blocks.size() * addressing.block_tokens >= static_cast<size_t>(context_max),
                 s.blocks.size(), " blocks for ", context_max, " positions");
    ctx.pool.ParallelFor(static_cast<size_t>(s.count) * shape.heads, [&](size_t task, int thread) {
      const int row = static_cast<int>(task / shape.heads);
      const int head = static_cast<int>(task % shape.heads);
      const Cache cache(addressing, kv, s.blocks, head / sharing);
      const int context = s.first_position + row + 1;
      Attend(shape, cache, shape.window > 0 ? std::max(0, context - shape.window) : 0, context,
             addressing.dtype == DType::kBfloat16,
             q.row(s.first_row + row) + static_cast<size_t>(head) * shape.qk_dim,
             ctx.thread_scratch[thread].Get<float>(0, context_max),
             out.row(s.first_row + row) + static_cast<size_t>(head) * shape.v_dim);
    });
  }
}

}  // namespace switchyard

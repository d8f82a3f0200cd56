// model/attention_parts.h: what attention of every kind is made of, for the stages that compute it.
// All of it runs on the engine thread and uses the step's threads.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "absl/status/statusor.h"
#include "model/stages.h"

namespace switchyard {

inline Matrix<float> Columns(Matrix<float> m, size_t begin, size_t count) {
  return {m.data() + begin, {m.rows(), count}, m.row_stride()};
}

// Into and out of the cache's elements.
template <typename T>
void StoreRow(const float* from, size_t width, T* to) {
  if constexpr (std::is_same_v<T, Bf16>) {
    std::transform(from, from + width, to, ToBf16);
  } else {
    std::copy_n(from, width, to);
  }
}
template <typename T>
void LoadRow(const T* from, size_t width, float* to) {
  if constexpr (std::is_same_v<T, Bf16>) {
    std::transform(from, from + width, to, ToFloat);
  } else {
    std::copy_n(from, width, to);
  }
}

// [A, H]: the input norm of every row; every rank norms its own and gathers the others'.
absl::StatusOr<Matrix<float>> InputNorm(StepContext& step, const LayerWeights& w, MicroBatch& b);

// y [T, N] += bias [N], or empty.
void AddBias(std::span<const float> bias, Matrix<float> y);

// Rotates `heads` parts of x's rows, `head_stride` apart.
void Rope(StepContext& step, const MicroBatch& b, int heads, size_t head_stride, Matrix<float> x);

// Where one head's row of each token goes in a block, in elements.
struct KvPlace {
  size_t offset, head_stride, token_stride;
};
// rows [A, heads·width] of this step into the blocks of their sequences, rounded as the cache is.
void WriteKv(StepContext& step, const KvAddressing& a, const KvPlace& place, int layer, int heads,
             Matrix<const float> rows, const MicroBatch& b);

// residual += o_proj(heads_out), heads_out [A, h·v], summed over the ranks of all heads.
absl::Status ProjectOutput(StepContext& step, const LayerWeights& w, Matrix<float> heads_out,
                           MicroBatch& b);

}  // namespace switchyard

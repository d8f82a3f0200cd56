// kernels/cuda/permute.h: where rows go: into the order of experts and back, from token by token to
// head by head; and the two smallest things that are done to rows.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

// Which rows experts get: in order of expert, within one in order of the token and its slot.
struct ExpertOrder {
  int32_t* index = nullptr;    // [T·K] row r is of token index[r]; -1 past the last row
  int32_t* where = nullptr;    // [T, K] the row of a token's slot; -1: none
  int32_t* offsets = nullptr;  // [E + 1] rows of expert e: [offsets[e], offsets[e + 1])
  int32_t* counts = nullptr;   // [E] the same as counts
};
// experts [T, K], each in [0, E). A token whose slots[t] is negative is padding and has no rows;
// slots null: there is none. Two launches of a block of 256 threads for each expert.
absl::Status GroupByExpert(Stream stream, const int32_t* experts, const int64_t* slots, int tokens,
                           int top_k, int expert_count, const ExpertOrder& out);

// out[(g·a + i)·b + j] = (g·b + j)·a + i, for g < batches, i < a, j < b: the index by which
// GatherRows transposes rows.
absl::Status TransposeIndex(Stream stream, int batches, int a, int b, int32_t* out);

// y[t][i] += bias[i].
absl::Status AddBias(Stream stream, const float* bias, DeviceMatrix<float> y);
// x[t][i] into [-limit, limit]; NaN stays.
absl::Status Clip(Stream stream, float limit, DeviceMatrix<float> x);

}  // namespace switchyard::cuda

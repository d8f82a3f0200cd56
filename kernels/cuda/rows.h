// kernels/cuda/rows.h: what is done to rows of activations between the matrix products: norm, RoPE,
// SiLU, rounding, gathering, summing. All arithmetic is FP32.
//
// Grids: one block of 256 threads per row (RmsNorm: the row is read twice, the second time from
// L1/L2), or one thread per element in blocks of 256. Sums run in an order that depends on the
// row's length alone: thread t adds elements t, t + 256, … and a fixed tree adds the threads.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

// y[t][i] = x[t][i] / sqrt(mean_j x[t][j]² + eps) · weight[i] (kernels/norm.h). weight [H]. y FP32
// or BF16; an FP32 y may be x.
absl::Status RmsNorm(Stream stream, DeviceMatrix<const float> x, const float* weight, float eps,
                     DeviceRows y);

// cos, sin [positions, dim/2], as RopeTable of kernels/rope.h, in device memory.
struct DeviceRopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int dim = 0, positions = 0;
  bool interleaved = false;  // RopeStyle::kInterleaved
};
// Rotates x[t][head·head_stride + i], i in [0, dim), in place, as ApplyRope of kernels/rope.h; the
// same bits. positions [T], each < table.positions. x.cols is not used.
absl::Status ApplyRope(Stream stream, const DeviceRopeTable& table, const int32_t* positions,
                       int heads, int64_t head_stride, DeviceMatrix<float> x);

// out[r][i] = SiLU(x[r][i]) · x[r][I + i]: gate's columns, then up's. x [R, 2I], out [R, I].
absl::Status SiluMul(Stream stream, DeviceMatrix<const float> x, DeviceRows out);

// y += x. Both [T, H].
absl::Status AddRows(Stream stream, DeviceRows x, DeviceMatrix<float> y);

// out[r] = in[index[r]], converted (FP32 -> BF16 rounds to nearest even). An index outside
// [0, in.rows) gives a row of 0: padding. index null: r. Serves the embedding, the permutation
// into expert order, and plain rounding.
absl::Status GatherRows(Stream stream, DeviceRows in, const int32_t* index, DeviceRows out);

// out[t][i] (+)= Σ_k weights[t][k] · rows[where[t][k]][i]: a chain of product-then-sum from slot 0,
// as moe/dispatch.h sums; a negative `where` is left out. weights, where [T, K], dense. `add`: the
// chain's result is added to out, else it replaces it.
absl::Status CombineSlots(Stream stream, DeviceRows rows, const int32_t* where,
                          const float* weights, int slots, bool add, DeviceMatrix<float> out);

}  // namespace switchyard::cuda

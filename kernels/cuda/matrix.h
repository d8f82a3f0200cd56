// kernels/cuda/matrix.h: what the CUDA kernels are given: a stream and borrowed device memory.
//
// Every function of kernels/cuda launches on `stream` and returns at once; nothing is allocated,
// nothing waits, so that all of it can be captured in a CUDA graph. Pointers are device memory
// unless said otherwise and must stay valid until the stream has passed the call. Errors: kInternal
// with CUDA's words if a launch fails; shapes are the caller's invariants (SY_CHECK). 0 rows: no
// launch. Thread-safe.
//
// Bits: a row's result depends on its own values alone, never on how many rows a call has, where
// the row lies among them or how a grid was cut (docs/cuda.md). No CUDA header is needed here, so
// that the same sources run under kernels/cuda/simt.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/bf16.h"

struct CUstream_st;

namespace switchyard::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Rows of `cols` elements, `stride` elements apart.
template <typename T>
struct DeviceMatrix {
  T* data = nullptr;
  int rows = 0, cols = 0;
  int64_t stride = 0;

  DeviceMatrix() = default;
  DeviceMatrix(T* data, int rows, int cols, int64_t stride)
      : data(data), rows(rows), cols(cols), stride(stride) {}
  DeviceMatrix(T* data, int rows, int cols) : DeviceMatrix(data, rows, cols, cols) {}
  template <typename U>
  requires(sizeof(U) == sizeof(T))
      DeviceMatrix(const DeviceMatrix<U>& m)  // NOLINT: a mutable matrix is a const one
      : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}
};

// Rows of BF16 that a GEMM multiplies start 16-byte aligned, their stride is a multiple of this,
// and the columns up to the next multiple of it are 0: kernels that write BF16 rows see to it where
// the stride leaves them room.
inline constexpr int kRowUnit = 8;
constexpr int64_t PaddedCols(int64_t cols) { return (cols + kRowUnit - 1) / kRowUnit * kRowUnit; }

// Activations of either type, as experts get and give them.
struct DeviceRows {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rows = 0, cols = 0;
  int64_t stride = 0;  // elements

  DeviceRows() = default;
  DeviceRows(DeviceMatrix<float> m)  // NOLINT: implicit on purpose
      : data(m.data), rows(m.rows), cols(m.cols), stride(m.stride) {}
  DeviceRows(DeviceMatrix<Bf16> m)  // NOLINT: implicit on purpose
      : data(m.data), dtype(DType::kBfloat16), rows(m.rows), cols(m.cols), stride(m.stride) {}
};

}  // namespace switchyard::cuda

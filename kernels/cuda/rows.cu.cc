#include "kernels/cuda/rows.h"

#include "kernels/cuda/device.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;

// The columns that a row of BF16 has past its end: 0, up to the unit of a GEMM.
template <typename T>
__device__ void ZeroTail(const DeviceMatrix<T>& m, T* row) {
  if (sizeof(T) != sizeof(Bf16)) return;
  const int64_t padded = PaddedCols(m.cols), end = padded < m.stride ? padded : m.stride;
  const int64_t i = m.cols + static_cast<int64_t>(threadIdx.x);
  if (i < end) Store(row + i, 0.0f);
}

template <typename Out>
__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(DeviceMatrix<const float> x, const float* weight, float eps,
                  DeviceMatrix<Out> y) {
  float* scratch = SharedMemory<float>();
  const float* from = x.data + blockIdx.x * x.stride;
  Out* to = y.data + blockIdx.x * y.stride;
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < x.cols; i += kThreads) {
    squares = fmaf(from[i], from[i], squares);
  }
  const float mean = BlockSum<kThreads>(squares, scratch) / static_cast<float>(x.cols);
  const float inverse = 1.0f / sqrtf(mean + eps);
  for (int i = static_cast<int>(threadIdx.x); i < x.cols; i += kThreads) {
    Store(to + i, from[i] * inverse * weight[i]);
  }
  ZeroTail(y, to);
}

__global__ void __launch_bounds__(kThreads)
    RopeKernel(DeviceRopeTable table, const int32_t* positions, int heads, int64_t head_stride,
               DeviceMatrix<float> x) {
  const int half = table.dim / 2;
  const int64_t at = positions[blockIdx.x] * static_cast<int64_t>(half);
  const int step = table.interleaved ? 2 : 1, apart = table.interleaved ? 1 : half;
  for (int i = static_cast<int>(threadIdx.x); i < heads * half; i += kThreads) {
    const int head = i / half, pair = i % half;
    float* first = x.data + blockIdx.x * x.stride + head * head_stride + pair * step;
    float* second = first + apart;
    const float a = *first, b = *second, cos = table.cos[at + pair], sin = table.sin[at + pair];
    *first = a * cos - b * sin;
    *second = b * cos + a * sin;
  }
}

template <typename Out>
__global__ void __launch_bounds__(kThreads)
    SiluMulKernel(DeviceMatrix<const float> x, DeviceMatrix<Out> out) {
  const float* gate = x.data + blockIdx.x * x.stride;
  const float* up = gate + out.cols;
  Out* to = out.data + blockIdx.x * out.stride;
  for (int i = static_cast<int>(threadIdx.x); i < out.cols; i += kThreads) {
    Store(to + i, Silu(gate[i]) * up[i]);
  }
  ZeroTail(out, to);
}

template <typename In>
__global__ void __launch_bounds__(kThreads)
    AddKernel(DeviceMatrix<const In> x, DeviceMatrix<float> y) {
  const In* from = x.data + blockIdx.x * x.stride;
  float* to = y.data + blockIdx.x * y.stride;
  for (int i = static_cast<int>(threadIdx.x); i < y.cols; i += kThreads) {
    to[i] = to[i] + Load(from + i);
  }
}

template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    GatherKernel(DeviceMatrix<const In> in, const int32_t* index, DeviceMatrix<Out> out) {
  const int64_t r = blockIdx.x;
  const int64_t source = index == nullptr ? r : index[r];
  const bool there = source >= 0 && source < in.rows;
  const In* from = in.data + (there ? source * in.stride : 0);
  Out* to = out.data + r * out.stride;
  for (int i = static_cast<int>(threadIdx.x); i < out.cols; i += kThreads) {
    Store(to + i, there ? Load(from + i) : 0.0f);
  }
  ZeroTail(out, to);
}

template <typename In>
__global__ void __launch_bounds__(kThreads)
    CombineKernel(DeviceMatrix<const In> rows, const int32_t* where, const float* weights,
                  int slots, bool add, DeviceMatrix<float> out) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * slots;
  float* to = out.data + blockIdx.x * out.stride;
  for (int i = static_cast<int>(threadIdx.x); i < out.cols; i += kThreads) {
    float sum = 0;
    for (int k = 0; k < slots; ++k) {
      const int64_t row = where[first + k];
      if (row >= 0) sum = sum + weights[first + k] * Load(rows.data + row * rows.stride + i);
    }
    to[i] = add ? to[i] + sum : sum;
  }
}

template <typename T>
DeviceMatrix<T> As(const DeviceRows& r) {
  return {static_cast<T*>(r.data), r.rows, r.cols, r.stride};
}

// Calls f with a DeviceMatrix of the type that `r` has.
template <typename F>
absl::Status WithType(const DeviceRows& r, F f) {
  return r.dtype == DType::kFloat32 ? f(As<float>(r)) : f(As<Bf16>(r));
}

Grid RowGrid(int rows) { return {.x = rows, .threads = kThreads, .shared_bytes = 0}; }

}  // namespace

absl::Status RmsNorm(Stream stream, DeviceMatrix<const float> x, const float* weight, float eps,
                     DeviceRows y) {
  SY_CHECK_MSG(x.rows == y.rows && x.cols == y.cols && x.cols >= 1, x.rows, " by ", x.cols);
  return WithType(y, [&]<typename T>(DeviceMatrix<T> to) {
    Grid grid = RowGrid(x.rows);
    grid.shared_bytes = kWarp * sizeof(float);
    return Launch("RmsNorm", RmsNormKernel<T>, grid, stream, x, weight, eps, to);
  });
}

absl::Status ApplyRope(Stream stream, const DeviceRopeTable& table, const int32_t* positions,
                       int heads, int64_t head_stride, DeviceMatrix<float> x) {
  SY_CHECK_MSG(table.dim >= 0 && table.dim % 2 == 0, table.dim);
  if (table.dim == 0) return absl::OkStatus();
  return Launch("ApplyRope", RopeKernel, RowGrid(x.rows), stream, table, positions, heads,
                head_stride, x);
}

absl::Status SiluMul(Stream stream, DeviceMatrix<const float> x, DeviceRows out) {
  SY_CHECK_MSG(x.rows == out.rows && x.cols == 2 * out.cols, x.cols, " for ", out.cols);
  return WithType(out, [&]<typename T>(DeviceMatrix<T> to) {
    return Launch("SiluMul", SiluMulKernel<T>, RowGrid(x.rows), stream, x, to);
  });
}

absl::Status AddRows(Stream stream, DeviceRows x, DeviceMatrix<float> y) {
  SY_CHECK_MSG(x.rows == y.rows && x.cols == y.cols, x.rows, " by ", x.cols);
  return WithType(x, [&]<typename T>(DeviceMatrix<T> from) {
    return Launch("AddRows", AddKernel<T>, RowGrid(y.rows), stream, from, y);
  });
}

absl::Status GatherRows(Stream stream, DeviceRows in, const int32_t* index, DeviceRows out) {
  SY_CHECK_MSG(in.cols == out.cols && (index != nullptr || in.rows >= out.rows), in.cols, " for ",
               out.cols);
  return WithType(in, [&]<typename In>(DeviceMatrix<In> from) {
    return WithType(out, [&]<typename Out>(DeviceMatrix<Out> to) {
      return Launch("GatherRows", GatherKernel<In, Out>, RowGrid(to.rows), stream, from, index, to);
    });
  });
}

absl::Status CombineSlots(Stream stream, DeviceRows rows, const int32_t* where,
                          const float* weights, int slots, bool add, DeviceMatrix<float> out) {
  SY_CHECK_MSG(rows.cols == out.cols && slots >= 1, rows.cols, " for ", out.cols);
  return WithType(rows, [&]<typename In>(DeviceMatrix<In> from) {
    return Launch("CombineSlots", CombineKernel<In>, RowGrid(out.rows), stream, from, where,
                  weights, slots, add, out);
  });
}

}  // namespace switchyard::cuda

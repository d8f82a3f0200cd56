// FP32 products, one fma chain over ascending k for each output, and the choice among the kernels.
#include "kernels/cuda/gemm.h"

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/tiles.h"

namespace switchyard::cuda {
namespace {

// 16 × 16 threads with 2 × 2 outputs each: FP32 is for checking, not for speed. A thread's columns
// are neighbours, as the epilogue wants them.
constexpr int kSide = 16, kThreads = kSide * kSide, kEach = 2, kWide = kSide * kEach, kDepth = 32;

static_assert(kWide == TileRows(GemmPath::kMmaSync, DeviceFormat::kFloat32));

struct Tile {
  float x[kWide][kDepth + 1];
  float w[kWide][kDepth + 1];
};

__global__ void __launch_bounds__(kThreads) FloatKernel(GemmArguments a) {
  const TileOfRows t =
      FindTile(a.groups, a.w.groups, a.x.rows, kWide, static_cast<int>(blockIdx.y));
  if (t.begin >= t.end) return;
  Tile& tile = *SharedMemory<Tile>();
  const int first_column = static_cast<int>(blockIdx.x) * kWide;
  const int64_t padded = PaddedK(a.w.k);
  const float* x = static_cast<const float*>(a.x.values);
  const float* w = reinterpret_cast<const float*>(a.w.data) + a.w.n * padded * t.group;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kSide * kEach, column = thread % kSide * kEach;
  float sums[kEach][kEach] = {};
  for (int k = 0; k < a.w.k; k += kDepth) {
    __syncthreads();
    for (int i = thread; i < kWide * kDepth; i += kThreads) {
      const int r = t.begin + i / kDepth, n = first_column + i / kDepth, at = k + i % kDepth;
      tile.x[i / kDepth][i % kDepth] = r < t.end && at < a.w.k ? x[r * a.x.stride + at] : 0.0f;
      tile.w[i / kDepth][i % kDepth] = n < a.w.n ? w[n * padded + at] : 0.0f;
    }
    __syncthreads();
    for (int j = 0; j < kDepth; ++j) {
      SY_UNROLL
      for (int r = 0; r < kEach; ++r) {
        SY_UNROLL
        for (int c = 0; c < kEach; ++c) {
          sums[r][c] = fmaf(tile.x[row + r][j], tile.w[column + c][j], sums[r][c]);
        }
      }
    }
  }
  SY_UNROLL
  for (int r = 0; r < kEach; ++r) {
    const int to_row = t.begin + row + r;
    if (to_row >= t.end) continue;
    StorePair(a.epilogue, a.y, to_row, first_column + column, a.w.n, sums[r][0], sums[r][1]);
  }
}

}  // namespace

absl::Status GemmFloat(Stream stream, const GemmArguments& a) {
  const Grid grid{.x = Ceil(a.w.n, kWide),
                  .y = TilesMax(a.groups, a.w.groups, a.x.rows, kWide),
                  .threads = kThreads,
                  .shared_bytes = sizeof(Tile)};
  return Launch("GemmFloat", FloatKernel, grid, stream, a);
}

absl::Status Gemm(Stream stream, GemmPath path, const GemmInput& x, const DeviceWeight& w,
                  const RowGroups& groups, Epilogue epilogue, DeviceRows y) {
  SY_CHECK_MSG(w.n >= 1 && w.k >= 1 && w.groups >= 1, w.groups, " weights ", w.n, " by ", w.k);
  SY_CHECK_MSG(y.rows == x.rows && y.cols == (epilogue == Epilogue::kSiluMul ? w.n / 2 : w.n),
               "y is ", y.rows, " by ", y.cols);
  SY_CHECK_MSG(groups.offsets != nullptr || groups.counts != nullptr || w.groups == 1, w.groups,
               " groups of rows that nobody told apart");
  SY_CHECK_MSG(groups.counts == nullptr || int64_t{groups.rows_per_group} * w.groups <= x.rows,
               groups.rows_per_group, " rows for each of ", w.groups);
  if (x.rows == 0) return absl::OkStatus();
  const GemmArguments a{x, w, groups, epilogue, y};
  switch (w.format) {
    case DeviceFormat::kFloat32:
      return GemmFloat(stream, a);
    case DeviceFormat::kBfloat16:
      SY_CHECK_MSG(x.stride % kRowUnit == 0, "stride ", x.stride);
      return path == GemmPath::kWgmma ? GemmWgmma(stream, a) : GemmBf16(stream, a);
    default:
      SY_CHECK_MSG(x.scales != nullptr && w.scales != nullptr, "no scales");
      return path == GemmPath::kWgmma && w.format == DeviceFormat::kFp8 ? GemmWgmma(stream, a)
                                                                        : GemmScaled(stream, a);
  }
}

absl::StatusOr<GemmPath> PathOfDevice() {
#if defined(__CUDACC__)
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA: ", cudaGetErrorString(error)));
  }
  if (major < 8) {
    return absl::FailedPreconditionError(absl::StrCat(
        "CUDA device ", device, " has compute capability ", major, ".x, 8.0 is least"));
  }
  return major == 9 ? GemmPath::kWgmma : GemmPath::kMmaSync;
#else
  return GemmPath::kMmaSync;
#endif
}

}  // namespace switchyard::cuda

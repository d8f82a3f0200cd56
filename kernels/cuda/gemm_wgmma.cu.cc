// BF16 on Hopper: 128 rows by 128 columns by two warpgroups of wgmma m64n128k16, fed by one thread
// of a ninth warp through the tensor memory accelerator: four stages of 32 KB with the 128-byte
// swizzle, a pair of mbarriers each.
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/tiles.h"
#include "kernels/cuda/wgmma.h"

namespace switchyard::cuda {
namespace {

constexpr int kStages = 4, kConsumers = 2, kWarpgroup = 128;
constexpr int kRows = 64 * kConsumers, kColumns = 128;
static_assert(kRows == TileRows(GemmPath::kWgmma, DeviceFormat::kBfloat16));
constexpr int kWgmmaThreads = kConsumers * kWarpgroup + kWarp;

struct Stage {
  Bf16 x[kRows][kTileK];
  Bf16 w[kColumns][kTileK];
};
static_assert(sizeof(Stage) % 1024 == 0);

struct Shared {
  Stage stages[kStages];
  uint64_t full[kStages];   // the stage has landed
  uint64_t empty[kStages];  // every warp that multiplies is done with it
};

#if SY_HOPPER
__device__ void Produce(const TensorMap& x, const TensorMap& w, const GemmArguments& a,
                        const TileOfRows& t, int steps, Shared& s) {
  const int first_row_of_w = t.group * a.w.n + static_cast<int>(blockIdx.x) * kColumns;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    const unsigned round = static_cast<unsigned>(step / kStages);
    WaitPhase(&s.empty[stage], (round & 1) ^ 1);  // at once in the first round
    ArriveExpecting(&s.full[stage], sizeof(Stage));
    CopyTensor(s.stages[stage].x, x, step * kTileK, t.begin, &s.full[stage]);
    CopyTensor(s.stages[stage].w, w, step * kTileK, first_row_of_w, &s.full[stage]);
  }
}

__device__ void Consume(const GemmArguments& a, const TileOfRows& t, int steps, Shared& s) {
  const int group = WarpIndex() / 4;
  float sums[64] = {};
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    WaitPhase(&s.full[stage], static_cast<unsigned>(step / kStages) & 1);
    const uint64_t x = Descriptor(s.stages[stage].x[group * 64]);
    const uint64_t w = Descriptor(s.stages[stage].w);
    FenceWgmma();
    SY_UNROLL
    for (int k = 0; k < kTileK / 16; ++k) {
      // 16 columns further, in units of 16 bytes.
      Wgmma(sums, x + static_cast<uint64_t>(2 * k), w + static_cast<uint64_t>(2 * k));
    }
    CommitWgmma();
    WaitWgmma();
    if (Lane() == 0) Arrive(&s.empty[stage]);
  }
  SY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = t.begin + WarpIndex() * 16 + half * 8 + Lane() / 4;
    if (row >= t.end) continue;
    SY_UNROLL
    for (int j = 0; j < kColumns / 8; ++j) {
      const int column = static_cast<int>(blockIdx.x) * kColumns + j * 8 + Lane() % 4 * 2;
      StorePair(a.epilogue, a.y, row, column, a.w.n, sums[4 * j + 2 * half],
                sums[4 * j + 2 * half + 1]);
    }
  }
}
#endif

__global__ void __launch_bounds__(kWgmmaThreads, 1)
    WgmmaKernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
                const __grid_constant__ GemmArguments a) {
#if SY_HOPPER
  const TileOfRows t =
      FindTile(a.groups, a.w.groups, a.x.rows, kRows, static_cast<int>(blockIdx.y));
  if (t.begin >= t.end) return;
  Shared& s = *SharedMemory<Shared>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      InitMbarrier(&s.full[i], 1);
      InitMbarrier(&s.empty[i], kConsumers * 4);
    }
    FenceMbarriers();
  }
  __syncthreads();
  const int steps = (a.w.k + kTileK - 1) / kTileK;
  if (WarpIndex() == kConsumers * 4) {
    if (Lane() == 0) Produce(x, w, a, t, steps, s);
  } else {
    Consume(a, t, steps, s);
  }
#endif
}

#if defined(__CUDACC__)
using Encode = decltype(&cuTensorMapEncodeTiled);

// Of the driver; null if it has none.
Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  const bool there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return there ? reinterpret_cast<Encode>(function) : nullptr;
}
#endif

// Boxes of 64 columns by 128 rows of a BF16 matrix; what is outside it reads as 0.
absl::StatusOr<TensorMap> MapOf(const void* data, int64_t rows, int64_t columns, int64_t stride) {
#if defined(__CUDACC__)
  static const Encode encode = FindEncode();  // looked up once: a step has hundreds of products
  if (encode == nullptr) {
    return absl::InternalError("the CUDA driver has no cuTensorMapEncodeTiled");
  }
  TensorMap map;
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * sizeof(Bf16)};
  const cuuint32_t box[2] = {kTileK, kRows}, steps[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), extents, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("cuTensorMapEncodeTiled: error ",
                                            static_cast<int>(result), " for ", rows, " by ",
                                            columns, ", stride ", stride));
  }
  return map;
#else
  return TensorMap{data, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows),
                   static_cast<uint64_t>(stride) * sizeof(Bf16), kRows};
#endif
}

}  // namespace

absl::Status GemmWgmma(Stream stream, const GemmArguments& a) {
  static_assert(kRows == kColumns);  // one shape of box for both
  const auto x = MapOf(a.x.values, a.x.rows, a.w.k, a.x.stride);
  if (!x.ok()) return x.status();
  const int64_t padded = PaddedK(a.w.k);
  const auto w = MapOf(a.w.data, int64_t{a.w.groups} * a.w.n, padded, padded);
  if (!w.ok()) return w.status();
  const Grid grid{.x = Ceil(a.w.n, kColumns),
                  .y = TilesMax(a.groups, a.w.groups, a.x.rows, kRows),
                  .threads = kWgmmaThreads,
                  .shared_bytes = sizeof(Shared),
                  .hopper = true};
  return Launch("GemmWgmma", WgmmaKernel, grid, stream, *x, *w, a);
}

}  // namespace switchyard::cuda

// BF16 and FP8 on Hopper: 128 rows by 128 columns by two warpgroups of wgmma, fed by one thread of
// a ninth warp through the tensor memory accelerator: four stages of 32 KB with the 128-byte
// swizzle, a pair of mbarriers each. A stage is 128 bytes of k of every row, so that both formats
// have one pipeline: 64 BF16 in four m64n128k16, or 128 E4M3, which share their scales, in four
// m64n128k32.
//
// FP8: the tensor cores sum 128 products, no more, because their sums of FP8 keep fewer bits than
// FP32 (DeepSeek-V3, section 3.3.2); then fma(part, row's scale · weight's scale, sum) in FP32.
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/tiles.h"
#include "kernels/cuda/wgmma.h"

namespace switchyard::cuda {
namespace {

constexpr int kStages = 4, kConsumers = 2, kWarpgroup = 128;
constexpr int kRows = 64 * kConsumers, kColumns = 128, kRowBytes = 128;
static_assert(kRows == TileRows(GemmPath::kWgmma, DeviceFormat::kBfloat16) &&
              kRows == TileRows(GemmPath::kWgmma, DeviceFormat::kFp8));
constexpr int kWgmmaThreads = kConsumers * kWarpgroup + kWarp;

constexpr int BytesOf(DeviceFormat format) { return format == DeviceFormat::kFp8 ? 1 : 2; }

struct Stage {
  uint8_t x[kRows][kRowBytes];
  uint8_t w[kColumns][kRowBytes];
};
static_assert(sizeof(Stage) % 1024 == 0);

struct Shared {
  Stage stages[kStages];
  uint64_t full[kStages];   // the stage has landed
  uint64_t empty[kStages];  // every warp that multiplies is done with it
};

#if SY_HOPPER
template <DeviceFormat kFormat>
__device__ void Produce(const TensorMap& x, const TensorMap& w, const GemmArguments& a,
                        const TileOfRows& t, int steps, Shared& s) {
  const int first_row_of_w = t.group * a.w.n + static_cast<int>(blockIdx.x) * kColumns;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    const unsigned round = static_cast<unsigned>(step / kStages);
    WaitPhase(&s.empty[stage], (round & 1) ^ 1);  // at once in the first round
    ArriveExpecting(&s.full[stage], sizeof(Stage));
    const int column = step * (kRowBytes / BytesOf(kFormat));
    CopyTensor(s.stages[stage].x, x, column, t.begin, &s.full[stage]);
    CopyTensor(s.stages[stage].w, w, column, first_row_of_w, &s.full[stage]);
  }
}

// Of this thread's two rows and the tile's columns, in one group of k; 0 past the last.
struct Scales {
  float rows[2] = {}, weight = 0;
};
__device__ __forceinline__ Scales ScalesOf(const GemmArguments& a, const TileOfRows& t, int g) {
  static_assert(kColumns == kQuantGroup && kRowBytes == kQuantGroup);
  const int groups = (a.w.k + kQuantGroup - 1) / kQuantGroup;
  const int blocks = (a.w.n + kQuantGroup - 1) / kQuantGroup;
  Scales s;
  if (g >= groups) return s;
  const int block = t.group * blocks + static_cast<int>(blockIdx.x);
  s.weight = a.w.scales[static_cast<int64_t>(block) * groups + g];
  SY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = t.begin + WarpIndex() * 16 + half * 8 + Lane() / 4;
    if (row < t.end) s.rows[half] = a.x.scales[static_cast<int64_t>(row) * groups + g];
  }
  return s;
}

// The products of one stage.
template <DeviceFormat kFormat>
__device__ __forceinline__ void Multiply(const Stage& stage, float (&d)[64]) {
  constexpr bool kFp8 = kFormat == DeviceFormat::kFp8;
  const uint64_t x = Descriptor(stage.x[WarpIndex() / 4 * 64]), w = Descriptor(stage.w);
  FenceWgmma(d);
  Wgmma<kFp8, /*kAdd=*/!kFp8>(d, x, w);
  SY_UNROLL
  for (int k = 1; k < kRowBytes / 32; ++k) {
    // 32 bytes further, in units of 16.
    Wgmma<kFp8, /*kAdd=*/true>(d, x + static_cast<uint64_t>(2 * k),
                               w + static_cast<uint64_t>(2 * k));
  }
  CommitWgmma();
  WaitWgmma(d);
}

template <DeviceFormat kFormat>
__device__ void Consume(const GemmArguments& a, const TileOfRows& t, int steps, Shared& s) {
  constexpr bool kFp8 = kFormat == DeviceFormat::kFp8;
  float sums[64] = {};
  [[maybe_unused]] float part[64] = {};
  [[maybe_unused]] Scales next;
  if constexpr (kFp8) next = ScalesOf(a, t, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    [[maybe_unused]] const Scales scales = next;
    if constexpr (kFp8) next = ScalesOf(a, t, step + 1);
    WaitPhase(&s.full[stage], static_cast<unsigned>(step / kStages) & 1);
    if constexpr (kFp8) {
      Multiply<kFormat>(s.stages[stage], part);
    } else {
      Multiply<kFormat>(s.stages[stage], sums);
    }
    if (Lane() == 0) Arrive(&s.empty[stage]);
    if constexpr (kFp8) {
      SY_UNROLL
      for (int i = 0; i < 64; ++i) {
        sums[i] = fmaf(part[i], scales.rows[i / 2 % 2] * scales.weight, sums[i]);
      }
    }
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

template <DeviceFormat kFormat>
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
  constexpr int kDepth = kRowBytes / BytesOf(kFormat);
  const int steps = (a.w.k + kDepth - 1) / kDepth;
  if (WarpIndex() == kConsumers * 4) {
    if (Lane() == 0) Produce<kFormat>(x, w, a, t, steps, s);
  } else {
    Consume<kFormat>(a, t, steps, s);
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

// Boxes of 128 bytes by 128 rows of a matrix; what is outside it reads as 0.
absl::StatusOr<TensorMap> MapOf(DeviceFormat format, const void* data, int64_t rows,
                                int64_t columns, int64_t stride) {
  const int bytes = BytesOf(format);
#if defined(__CUDACC__)
  static const Encode encode = FindEncode();  // looked up once: a step has hundreds of products
  if (encode == nullptr) {
    return absl::InternalError("the CUDA driver has no cuTensorMapEncodeTiled");
  }
  TensorMap map;
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride * bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kRowBytes / bytes), kRows}, steps[2] = {1, 1};
  const CUresult result =
      encode(&map,
             format == DeviceFormat::kFp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             2, const_cast<void*>(data), extents, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("cuTensorMapEncodeTiled: error ",
                                            static_cast<int>(result), " for ", rows, " by ",
                                            columns, ", stride ", stride));
  }
  return map;
#else
  return TensorMap{data,
                   static_cast<uint64_t>(columns),
                   static_cast<uint64_t>(rows),
                   static_cast<uint64_t>(stride * bytes),
                   kRows,
                   static_cast<uint32_t>(bytes)};
#endif
}

template <DeviceFormat kFormat>
absl::Status LaunchWgmma(Stream stream, const GemmArguments& a) {
  static_assert(kRows == kColumns);  // one shape of box for both
  const auto x = MapOf(kFormat, a.x.values, a.x.rows, a.w.k, a.x.stride);
  if (!x.ok()) return x.status();
  const int64_t padded = PaddedK(a.w.k);
  const auto w = MapOf(kFormat, a.w.data, int64_t{a.w.groups} * a.w.n, padded, padded);
  if (!w.ok()) return w.status();
  const Grid grid{.x = Ceil(a.w.n, kColumns),
                  .y = TilesMax(a.groups, a.w.groups, a.x.rows, kRows),
                  .threads = kWgmmaThreads,
                  .shared_bytes = sizeof(Shared),
                  .hopper = true};
  return Launch("GemmWgmma", WgmmaKernel<kFormat>, grid, stream, *x, *w, a);
}

}  // namespace

absl::Status GemmWgmma(Stream stream, const GemmArguments& a) {
  return a.w.format == DeviceFormat::kFp8 ? LaunchWgmma<DeviceFormat::kFp8>(stream, a)
                                          : LaunchWgmma<DeviceFormat::kBfloat16>(stream, a);
}

}  // namespace switchyard::cuda

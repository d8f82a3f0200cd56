// FP8 and integers: raw values come by cp.async, three stages ahead, and become BF16 in shared
// memory, which holds all of them exactly; tensor cores sum the products of 128 of a row, and FP32
// adds group after group, fma(sum, row's scale · weight's scale, y). A sum of 128 integers of 8
// bits is below 2^24 and so exact: the reference's bits.
#include "kernels/cuda/fp8.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/tiles.h"

namespace switchyard::cuda {
namespace {

constexpr int kStages = 3;

// What arrives. A thread converts the 16 bytes that it has copied itself: no barrier is between.
// Rows of integers of 4 bits take half of theirs.
struct Raw {
  uint8_t x[kTileRows][kTileK];
  uint8_t w[kTileCols][kTileK];
};

struct Shared {
  Raw raw[kStages];
  Bf16 x[kTileRows][kTileStride];
  Bf16 w[kTileCols][kTileStride];
  float row_scales[kTileRows], column_scales[kTileCols];  // of the group of k
};
// Two blocks on a multiprocessor of sm_80.
static_assert(sizeof(Shared) <= 80 * 1024);

constexpr int kBytes = 16;  // of a copy

constexpr int BitsOf(DeviceFormat format) { return format == DeviceFormat::kInt4 ? 4 : 8; }
constexpr DeviceFormat LeftOf(DeviceFormat format) {
  return format == DeviceFormat::kFp8 ? format : DeviceFormat::kInt8;
}

// Element `i` of four bytes.
template <DeviceFormat kFormat>
__device__ __forceinline__ float Decode(uint32_t word, int i) {
  if (kFormat == DeviceFormat::kFp8) return FromE4m3(static_cast<uint8_t>(word >> (8 * i)));
  // Shifted to the top and back, so that the sign comes along.
  constexpr int kBits = BitsOf(kFormat);
  return static_cast<float>(static_cast<int32_t>(word << (32 - kBits - kBits * i)) >> (32 - kBits));
}

// The values of kBytes bytes.
template <DeviceFormat kFormat>
__device__ __forceinline__ void Convert(const uint8_t* from, Bf16* to) {
  constexpr int kEach = 32 / BitsOf(kFormat);  // in a word
  const uint32_t* words = reinterpret_cast<const uint32_t*>(from);
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
  SY_UNROLL
  for (int i = 0; i < kBytes / 4 * kEach; i += 2) {
    const uint32_t word = words[i / kEach];
    pairs[i / 2] = PackBf16(Decode<kFormat>(word, i % kEach), Decode<kFormat>(word, i % kEach + 1));
  }
}

// Calls f(row, first byte) for this thread's parts of kRows rows of kTileK values.
template <DeviceFormat kFormat, int kRows, typename F>
__device__ __forceinline__ void ForParts(F f) {
  constexpr int kParts = kTileK * BitsOf(kFormat) / 8 / kBytes;
  SY_UNROLL
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kParts; i += kTileThreads) {
    f(i / kParts, i % kParts * kBytes);
  }
}

// Starts the copies of columns [k, k + kTileK); rows past the last are 0.
template <DeviceFormat kFormat>
__device__ __forceinline__ void Fetch(const GemmArguments& a, const TileOfRows& t, int first_column,
                                      int64_t k, Raw& to) {
  const int64_t padded = PaddedK(a.w.k), row_bytes = padded * BitsOf(kFormat) / 8;
  const uint8_t* x = static_cast<const uint8_t*>(a.x.values);
  const uint8_t* w = reinterpret_cast<const uint8_t*>(a.w.data) + a.w.n * row_bytes * t.group;
  ForParts<LeftOf(kFormat), kTileRows>([&](int row, int byte) {
    const bool there = t.begin + row < t.end;
    CopyAsync(&to.x[row][byte], there ? x + (t.begin + row) * a.x.stride + k + byte : x, there);
  });
  ForParts<kFormat, kTileCols>([&](int row, int byte) {
    const int n = first_column + row;
    CopyAsync(&to.w[row][byte], n < a.w.n ? w + n * row_bytes + k * BitsOf(kFormat) / 8 + byte : w,
              n < a.w.n);
  });
}

template <DeviceFormat kFormat>
__device__ __forceinline__ void ConvertStage(const Raw& raw, Shared& to) {
  ForParts<LeftOf(kFormat), kTileRows>(
      [&](int row, int byte) { Convert<LeftOf(kFormat)>(&raw.x[row][byte], &to.x[row][byte]); });
  ForParts<kFormat, kTileCols>([&](int row, int byte) {
    Convert<kFormat>(&raw.w[row][byte], &to.w[row][byte * 8 / BitsOf(kFormat)]);
  });
}

// A thread's scales of a group of k: of a column, and of a row if there is one.
struct Scales {
  float column, row;
};

// 0 past the last row, column or group.
template <DeviceFormat kFormat>
__device__ __forceinline__ Scales ScalesOf(const GemmArguments& a, const TileOfRows& t,
                                           int first_column, int g) {
  const int groups = static_cast<int>(PaddedK(a.w.k)) / kQuantGroup;
  const int blocks = (a.w.n + kQuantGroup - 1) / kQuantGroup;
  const int i = static_cast<int>(threadIdx.x), n = first_column + i;
  static_assert(kTileThreads == kTileCols && kTileRows <= kTileThreads);
  const int64_t weight = kFormat == DeviceFormat::kFp8
                             ? static_cast<int64_t>(t.group) * blocks + n / kQuantGroup
                             : static_cast<int64_t>(t.group) * a.w.n + n;
  Scales s{0, 0};
  if (g >= groups) return s;
  if (n < a.w.n) s.column = a.w.scales[weight * groups + g];
  if (i < kTileRows && t.begin + i < t.end) {
    s.row = a.x.scales[static_cast<int64_t>(t.begin + i) * groups + g];
  }
  return s;
}

// sums += part · scales.
__device__ __forceinline__ void AddScaled(const Shared& s, const Sums& part, Sums& sums) {
  const int lane = Lane(), warp = WarpIndex();
  SY_UNROLL
  for (int j = 0; j < 8; ++j) {
    SY_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float right = s.column_scales[warp % 2 * 64 + j * 8 + lane % 4 * 2 + c];
      SY_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float left = s.row_scales[warp / 2 * 32 + r * 8 + lane / 4];
        float& sum = sums[r / 2][j][r % 2 * 2 + c];
        sum = fmaf(part[r / 2][j][r % 2 * 2 + c], left * right, sum);
      }
    }
  }
}

template <DeviceFormat kFormat>
__global__ void __launch_bounds__(kTileThreads) ScaledKernel(GemmArguments a) {
  const TileOfRows t =
      FindTile(a.groups, a.w.groups, a.x.rows, kTileRows, static_cast<int>(blockIdx.y));
  if (t.begin >= t.end) return;
  Shared& s = *SharedMemory<Shared>();
  const int first_column = static_cast<int>(blockIdx.x) * kTileCols;
  constexpr int kOfGroup = kQuantGroup / kTileK;
  const int steps = static_cast<int>(PaddedK(a.w.k)) / kTileK;
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) Fetch<kFormat>(a, t, first_column, int64_t{step} * kTileK, s.raw[step]);
    CommitCopies();
  }
  Scales scales = ScalesOf<kFormat>(a, t, first_column, 0);
  Sums sums = {}, part = {};
  for (int step = 0; step < steps; ++step) {
    WaitCopies<kStages - 2>();
    __syncthreads();  // all are done with what was converted before
    ConvertStage<kFormat>(s.raw[step % kStages], s);
    const int next = step + kStages - 1, i = static_cast<int>(threadIdx.x);
    if (next < steps) {
      Fetch<kFormat>(a, t, first_column, int64_t{next} * kTileK, s.raw[next % kStages]);
    }
    CommitCopies();
    if (step % kOfGroup == 0) {
      s.column_scales[i] = scales.column;
      if (i < kTileRows) s.row_scales[i] = scales.row;
      scales = ScalesOf<kFormat>(a, t, first_column, step / kOfGroup + 1);
    }
    __syncthreads();
    MultiplyTiles(s.x[0], s.w[0], part);
    if (step % kOfGroup != kOfGroup - 1) continue;
    AddScaled(s, part, sums);
    SY_UNROLL
    for (int j = 0; j < 8; ++j) {
      SY_UNROLL
      for (int c = 0; c < 4; ++c) part[0][j][c] = part[1][j][c] = 0;
    }
  }
  StoreTile(sums, t, first_column, a.w.n, a.epilogue, a.y);
}

template <DeviceFormat kFormat>
absl::Status LaunchScaled(Stream stream, const GemmArguments& a) {
  const Grid grid{.x = Ceil(a.w.n, kTileCols),
                  .y = TilesMax(a.groups, a.w.groups, a.x.rows, kTileRows),
                  .threads = kTileThreads,
                  .shared_bytes = sizeof(Shared)};
  return Launch("GemmScaled", ScaledKernel<kFormat>, grid, stream, a);
}

}  // namespace

absl::Status GemmScaled(Stream stream, const GemmArguments& a) {
  return a.w.format == DeviceFormat::kFp8    ? LaunchScaled<DeviceFormat::kFp8>(stream, a)
         : a.w.format == DeviceFormat::kInt8 ? LaunchScaled<DeviceFormat::kInt8>(stream, a)
                                             : LaunchScaled<DeviceFormat::kInt4>(stream, a);
}

}  // namespace switchyard::cuda

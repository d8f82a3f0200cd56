// FP8 and integers: values become BF16 in shared memory, which holds all of them exactly; tensor
// cores sum the products of 128 of a row, and FP32 adds group after group, fma(sum, row's scale ·
// weight's scale, y). A sum of 128 integers of 8 bits is below 2^24 and so exact: the reference's
// bits.
#include "kernels/cuda/fp8.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/tiles.h"

namespace switchyard::cuda {
namespace {

constexpr int kChunk = 16;  // elements that a thread converts at once

struct Tile {
  Bf16 x[kTileRows][kTileStride];
  Bf16 w[kTileCols][kTileStride];
  float row_scales[kTileRows], column_scales[kTileCols];  // of the group of k
};

template <DeviceFormat kFormat>
__device__ __forceinline__ float Decode(uint8_t v) {
  return kFormat == DeviceFormat::kFp8 ? FromE4m3(v) : static_cast<float>(static_cast<int8_t>(v));
}

// kChunk elements at `from`, or zeros.
template <DeviceFormat kFormat>
__device__ __forceinline__ void Convert(const uint8_t* from, bool there, Bf16* to) {
  constexpr bool kNibbles = kFormat == DeviceFormat::kInt4;
  constexpr int kWords = kNibbles ? 2 : 4;
  uint32_t words[kWords];
  SY_UNROLL
  for (int i = 0; i < kWords; ++i) {
    words[i] = there ? reinterpret_cast<const uint32_t*>(from)[i] : 0;
  }
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
  SY_UNROLL
  for (int i = 0; i < kChunk; i += 2) {
    float v[2];
    SY_UNROLL
    for (int j = 0; j < 2; ++j) {
      if (kNibbles) {
        // Shifted to the top and back, so that the sign comes along.
        const uint32_t top = words[(i + j) / 8] << (28 - (i + j) % 8 * 4);
        v[j] = static_cast<float>(static_cast<int32_t>(top) >> 28);
      } else {
        v[j] = Decode<kFormat>(static_cast<uint8_t>(words[(i + j) / 4] >> ((i + j) % 4 * 8)));
      }
    }
    pairs[i / 2] = PackBf16(v[0], v[1]);
  }
}

template <DeviceFormat kFormat>
__device__ __forceinline__ void Fetch(const GemmArguments& a, const TileOfRows& t, int first_column,
                                      int64_t k, Tile& to) {
  constexpr int kChunks = kTileK / kChunk;
  constexpr DeviceFormat kLeft = kFormat == DeviceFormat::kFp8 ? kFormat : DeviceFormat::kInt8;
  const int64_t padded = PaddedK(a.w.k);
  const int64_t row_bytes = kFormat == DeviceFormat::kInt4 ? padded / 2 : padded;
  const uint8_t* x = static_cast<const uint8_t*>(a.x.values);
  const uint8_t* w = reinterpret_cast<const uint8_t*>(a.w.data) + a.w.n * row_bytes * t.group;
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kChunks; i += kTileThreads) {
    const int row = t.begin + i / kChunks, column = i % kChunks * kChunk;
    Convert<kLeft>(x + row * a.x.stride + k + column, row < t.end, &to.x[i / kChunks][column]);
  }
  for (int i = static_cast<int>(threadIdx.x); i < kTileCols * kChunks; i += kTileThreads) {
    const int n = first_column + i / kChunks, column = i % kChunks * kChunk;
    const int64_t at = kFormat == DeviceFormat::kInt4 ? (k + column) / 2 : k + column;
    Convert<kFormat>(w + n * row_bytes + at, n < a.w.n, &to.w[i / kChunks][column]);
  }
}

// The scales of group `g` of k; 0 past the last row or column.
template <DeviceFormat kFormat>
__device__ __forceinline__ void FetchScales(const GemmArguments& a, const TileOfRows& t,
                                            int first_column, int g, Tile& to) {
  const int groups = static_cast<int>(PaddedK(a.w.k)) / kQuantGroup;
  const int blocks = (a.w.n + kQuantGroup - 1) / kQuantGroup;
  const int i = static_cast<int>(threadIdx.x), n = first_column + i;
  static_assert(kTileThreads == kTileCols && kTileRows <= kTileThreads);
  const int64_t row = kFormat == DeviceFormat::kFp8
                          ? static_cast<int64_t>(t.group) * blocks + n / kQuantGroup
                          : static_cast<int64_t>(t.group) * a.w.n + n;
  to.column_scales[i] = n < a.w.n ? a.w.scales[row * groups + g] : 0.0f;
  if (i >= kTileRows) return;
  to.row_scales[i] =
      t.begin + i < t.end ? a.x.scales[static_cast<int64_t>(t.begin + i) * groups + g] : 0.0f;
}

// sums += part · scales.
__device__ __forceinline__ void AddScaled(const Tile& tile, const Sums& part, Sums& sums) {
  const int lane = Lane(), warp = WarpIndex();
  SY_UNROLL
  for (int j = 0; j < 8; ++j) {
    SY_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float right = tile.column_scales[warp % 2 * 64 + j * 8 + lane % 4 * 2 + c];
      SY_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float left = tile.row_scales[warp / 2 * 32 + r * 8 + lane / 4];
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
  Tile& tile = *SharedMemory<Tile>();
  const int first_column = static_cast<int>(blockIdx.x) * kTileCols;
  const int groups = static_cast<int>(PaddedK(a.w.k)) / kQuantGroup;
  Sums sums = {};
  for (int g = 0; g < groups; ++g) {
    Sums part = {};
    for (int k = 0; k < kQuantGroup; k += kTileK) {
      __syncthreads();
      if (k == 0) FetchScales<kFormat>(a, t, first_column, g, tile);
      Fetch<kFormat>(a, t, first_column, int64_t{g} * kQuantGroup + k, tile);
      __syncthreads();
      MultiplyTiles(tile.x[0], tile.w[0], part);
    }
    AddScaled(tile, part, sums);
  }
  StoreTile(sums, t, first_column, a.w.n, a.epilogue, a.y);
}

template <DeviceFormat kFormat>
absl::Status LaunchScaled(Stream stream, const GemmArguments& a) {
  const Grid grid{.x = Ceil(a.w.n, kTileCols),
                  .y = TilesMax(a.groups, a.w.groups, a.x.rows, kTileRows),
                  .threads = kTileThreads,
                  .shared_bytes = sizeof(Tile)};
  return Launch("GemmScaled", ScaledKernel<kFormat>, grid, stream, a);
}

}  // namespace

absl::Status GemmScaled(Stream stream, const GemmArguments& a) {
  return a.w.format == DeviceFormat::kFp8    ? LaunchScaled<DeviceFormat::kFp8>(stream, a)
         : a.w.format == DeviceFormat::kInt8 ? LaunchScaled<DeviceFormat::kInt8>(stream, a)
                                             : LaunchScaled<DeviceFormat::kInt4>(stream, a);
}

}  // namespace switchyard::cuda

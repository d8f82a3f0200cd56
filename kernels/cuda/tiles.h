// kernels/cuda/tiles.h: which rows a block of a (grouped) product has, and how a warp multiplies
// and stores: shared by all GEMM kernels of mma.sync.
//
// A block of 4 warps has 64 rows by 128 columns of y; a warp 32 by 64, as 2 by 8 pieces of 16 by 8.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/mma.h"

namespace switchyard::cuda {

inline constexpr int kTileRows = 64, kTileCols = 128, kTileThreads = 128;
static_assert(kTileRows == TileRows(GemmPath::kMmaSync, DeviceFormat::kBfloat16));
inline constexpr int kTileK = 64;
// A row of a tile in shared memory: 144 bytes, so that the 8 rows of an ldmatrix are in different
// banks.
inline constexpr int kTileStride = kTileK + 8;

struct TileOfRows {
  int group = 0, begin = 0, end = 0;  // rows of x and y; begin == end: no work
};

// Tile `tile` when every group has ⌈its rows / rows_of_tile⌉. Called by whole warps; the same in
// all lanes. `rows`: of x.
__device__ inline TileOfRows FindTile(const RowGroups& g, int groups, int rows, int rows_of_tile,
                                      int tile) {
  TileOfRows t;
  int first = 0, count = rows;
  if (g.counts != nullptr) {
    const int tiles = (g.rows_per_group + rows_of_tile - 1) / rows_of_tile;
    t.group = tile / tiles;
    tile = tile % tiles;
    first = t.group * g.rows_per_group;
    count = g.counts[t.group];
  } else if (g.offsets != nullptr) {
    // 32 groups at a time: an inclusive scan of their tiles.
    int before = 0;
    for (int base = 0;; base += kWarp) {
      if (base >= groups) return t;  // past the last
      const int e = base + Lane();
      const int begin = e < groups ? g.offsets[e] : 0, end = e < groups ? g.offsets[e + 1] : 0;
      const int mine = (end - begin + rows_of_tile - 1) / rows_of_tile;
      int upto = mine;
      for (int delta = 1; delta < kWarp; delta *= 2) {
        const int other = __shfl_up_sync(kAllLanes, upto, delta);
        if (Lane() >= delta) upto += other;
      }
      const uint32_t past = __ballot_sync(kAllLanes, tile < before + upto);
      if (past != 0) {
        const int lane = static_cast<int>(CountTrailingZeros(past));
        t.group = base + lane;
        first = __shfl_sync(kAllLanes, begin, lane);
        count = __shfl_sync(kAllLanes, end, lane) - first;
        tile -= before + __shfl_sync(kAllLanes, upto - mine, lane);
        break;
      }
      before += __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
  }
  t.begin = first + tile * rows_of_tile;
  t.end = first + count;
  if (t.end > t.begin + rows_of_tile) t.end = t.begin + rows_of_tile;
  if (t.end < t.begin) t.end = t.begin;
  return t;
}

// Tiles that the rows of a call can need at most, whatever the device arrays say.
inline int64_t TilesMax(const RowGroups& g, int groups, int rows, int rows_of_tile) {
  if (g.counts != nullptr) return groups * Ceil(g.rows_per_group, rows_of_tile);
  if (rows == 0) return 0;
  return Ceil(rows, rows_of_tile) + (g.offsets != nullptr ? groups : 0);
}

using Sums = float[2][8][4];

// sums += x tile · w tileᵀ over one kTileK, both [rows][kTileStride] in shared memory.
__device__ __forceinline__ void MultiplyTiles(const Bf16* x, const Bf16* w, Sums& sums) {
  const int lane = Lane(), warp = WarpIndex();
  const Bf16* rows = x + (warp / 2 * 32 + lane % 16) * kTileStride + lane / 16 * 8;
  const Bf16* cols =
      w + (warp % 2 * 64 + lane % 8 + lane / 16 * 8) * kTileStride + lane / 8 % 2 * 8;
  SY_UNROLL
  for (int k = 0; k < kTileK; k += 16) {
    uint32_t a[2][4];
    SY_UNROLL
    for (int i = 0; i < 2; ++i) LoadMatrices(a[i], rows + i * 16 * kTileStride + k);
    SY_UNROLL
    for (int j = 0; j < 8; j += 2) {
      uint32_t b[4];
      LoadMatrices(b, cols + j * 8 * kTileStride + k);
      SY_UNROLL
      for (int i = 0; i < 2; ++i) {
        Mma(sums[i][j], a[i], b[0], b[1]);
        Mma(sums[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Element (row, column) of y.
__device__ __forceinline__ void StoreOne(const DeviceRows& y, int row, int column, float v) {
  const int64_t at = row * y.stride + column;
  if (y.dtype == DType::kFloat32) {
    Store(static_cast<float*>(y.data) + at, v);
  } else {
    Store(static_cast<Bf16*>(y.data) + at, v);
  }
}

// Two neighbouring columns of the product [.., columns], the first of them even.
__device__ __forceinline__ void StorePair(Epilogue epilogue, const DeviceRows& y, int row,
                                          int column, int columns, float first, float second) {
  if (column >= columns) return;
  if (epilogue == Epilogue::kSiluMul) {
    StoreOne(y, row, column / 2, Silu(first) * second);
    return;
  }
  StoreOne(y, row, column, first);
  if (column + 1 < columns) StoreOne(y, row, column + 1, second);
}

// Writes the warp's sums.
__device__ __forceinline__ void StoreTile(const Sums& sums, const TileOfRows& t, int first_column,
                                          int columns, Epilogue epilogue, const DeviceRows& y) {
  const int lane = Lane(), warp = WarpIndex();
  SY_UNROLL
  for (int i = 0; i < 2; ++i) {
    SY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = t.begin + warp / 2 * 32 + i * 16 + half * 8 + lane / 4;
      if (row >= t.end) continue;
      SY_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int column = first_column + warp % 2 * 64 + j * 8 + lane % 4 * 2;
        StorePair(epilogue, y, row, column, columns, sums[i][j][2 * half],
                  sums[i][j][2 * half + 1]);
      }
    }
  }
}

}  // namespace switchyard::cuda

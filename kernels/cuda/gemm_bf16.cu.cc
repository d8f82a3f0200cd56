// BF16 by mma.sync: three stages of cp.async, 83 KB of shared memory, so two blocks on a
// multiprocessor of sm_80.
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/tiles.h"

namespace switchyard::cuda {
namespace {

constexpr int kStages = 3;

struct Stage {
  Bf16 x[kTileRows][kTileStride];
  Bf16 w[kTileCols][kTileStride];
};

// Starts the copies of columns [k, k + kTileK). Of x, columns past K are 0; w is padded with zeros.
__device__ __forceinline__ void Fetch(const GemmArguments& a, const TileOfRows& t, int first_column,
                                      int k, Stage& to) {
  constexpr int kChunks = kTileK / 8;
  const int64_t padded = PaddedK(a.w.k);
  const Bf16* x = static_cast<const Bf16*>(a.x.values);
  const Bf16* w = reinterpret_cast<const Bf16*>(a.w.data) + a.w.n * padded * t.group;
  SY_UNROLL
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kChunks; i += kTileThreads) {
    const int row = t.begin + i / kChunks, column = k + i % kChunks * 8;
    const bool there = row < t.end && column < a.w.k;
    CopyAsync(&to.x[i / kChunks][i % kChunks * 8], there ? x + row * a.x.stride + column : x,
              there);
  }
  SY_UNROLL
  for (int i = static_cast<int>(threadIdx.x); i < kTileCols * kChunks; i += kTileThreads) {
    const int n = first_column + i / kChunks;
    CopyAsync(&to.w[i / kChunks][i % kChunks * 8],
              n < a.w.n ? w + n * padded + k + i % kChunks * 8 : w, n < a.w.n);
  }
}

// Devices of 8.6, 8.9 and 12.x have no more for a block.
static_assert(kStages * sizeof(Stage) <= 99 * 1024);

__global__ void __launch_bounds__(kTileThreads) Bf16Kernel(GemmArguments a) {
  const TileOfRows t =
      FindTile(a.groups, a.w.groups, a.x.rows, kTileRows, static_cast<int>(blockIdx.y));
  if (t.begin >= t.end) return;
  Stage* stages = SharedMemory<Stage>();
  const int first_column = static_cast<int>(blockIdx.x) * kTileCols;
  const int steps = (a.w.k + kTileK - 1) / kTileK;
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) Fetch(a, t, first_column, s * kTileK, stages[s]);
    CommitCopies();
  }
  Sums sums = {};
  for (int s = 0; s < steps; ++s) {
    WaitCopies<kStages - 2>();
    __syncthreads();  // all have landed, and all are done with the stage that is fetched next
    const int next = s + kStages - 1;
    if (next < steps) Fetch(a, t, first_column, next * kTileK, stages[next % kStages]);
    CommitCopies();
    const Stage& stage = stages[s % kStages];
    MultiplyTiles(stage.x[0], stage.w[0], sums);
  }
  StoreTile(sums, t, first_column, a.w.n, a.epilogue, a.y);
}

}  // namespace

absl::Status GemmBf16(Stream stream, const GemmArguments& a) {
  const Grid grid{.x = Ceil(a.w.n, kTileCols),
                  .y = TilesMax(a.groups, a.w.groups, a.x.rows, kTileRows),
                  .threads = kTileThreads,
                  .shared_bytes = kStages * sizeof(Stage)};
  return Launch("GemmBf16", Bf16Kernel, grid, stream, a);
}

}  // namespace switchyard::cuda

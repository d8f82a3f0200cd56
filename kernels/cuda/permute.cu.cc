#include "kernels/cuda/permute.h"

#include "kernels/cuda/device.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;

// How many of this block's threads have `mine` before this one; *all: how many in the block.
// `scratch` [8] is shared memory of this call alone until the next barrier.
__device__ __forceinline__ int Before(bool mine, int* scratch, int* all) {
  const unsigned ballot = __ballot_sync(kAllLanes, mine);
  if (Lane() == 0) scratch[WarpIndex()] = std::popcount(ballot);
  __syncthreads();
  int before = std::popcount(ballot & ((1u << Lane()) - 1u)), sum = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < WarpIndex()) before += scratch[w];
    sum += scratch[w];
  }
  __syncthreads();
  *all = sum;
  return before;
}

__global__ void __launch_bounds__(kThreads)
    CountKernel(const int32_t* experts, const int64_t* slots, int count, int top_k,
                int32_t* counts) {
  int* scratch = SharedMemory<int>();
  const int expert = static_cast<int>(blockIdx.x);
  int mine = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const bool real = slots == nullptr || slots[i / top_k] >= 0;
    mine += real && experts[i] == expert ? 1 : 0;
  }
  const int sum = BlockSum<kThreads>(mine, scratch);
  if (threadIdx.x == 0) counts[expert] = sum;
}

// A block for each expert gives its rows their places; the last also says where rows end.
__global__ void __launch_bounds__(kThreads)
    PlaceKernel(const int32_t* experts, const int64_t* slots, int count, int top_k,
                ExpertOrder out) {
  int* scratch = SharedMemory<int>();
  const int expert = static_cast<int>(blockIdx.x), last = static_cast<int>(gridDim.x) - 1;
  int first = 0;
  for (int e = static_cast<int>(threadIdx.x); e < expert; e += kThreads) first += out.counts[e];
  first = BlockSum<kThreads>(first, scratch);
  __syncthreads();
  if (threadIdx.x == 0) out.offsets[expert] = first;
  if (expert == last) {
    const int end = first + out.counts[expert];
    if (threadIdx.x == 0) out.offsets[expert + 1] = end;
    for (int i = end + static_cast<int>(threadIdx.x); i < count; i += kThreads) out.index[i] = -1;
  }
  for (int base = 0; base < count; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const bool real = i < count && (slots == nullptr || slots[i / top_k] >= 0);
    const bool mine = real && experts[i] == expert;
    int all = 0;
    const int row = first + Before(mine, scratch, &all);
    if (mine) {
      out.index[row] = i / top_k;
      out.where[i] = row;
    }
    if (expert == last && i < count && !real) out.where[i] = -1;
    first += all;
  }
}

__global__ void __launch_bounds__(kThreads)
    TransposeIndexKernel(int batches, int a, int b, int32_t* out) {
  const int n = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (n >= batches * a * b) return;
  const int j = n % b, i = n / b % a, g = n / b / a;
  out[n] = (g * b + j) * a + i;
}

__global__ void __launch_bounds__(kThreads)
    AddBiasKernel(const float* bias, DeviceMatrix<float> y) {
  float* to = y.data + blockIdx.x * y.stride;
  for (int i = static_cast<int>(threadIdx.x); i < y.cols; i += kThreads) to[i] = to[i] + bias[i];
}

__global__ void __launch_bounds__(kThreads) ClipKernel(float limit, DeviceMatrix<float> x) {
  float* row = x.data + blockIdx.x * x.stride;
  for (int i = static_cast<int>(threadIdx.x); i < x.cols; i += kThreads) {
    const float v = row[i];
    row[i] = v < -limit ? -limit : v > limit ? limit : v;
  }
}

}  // namespace

absl::Status GroupByExpert(Stream stream, const int32_t* experts, const int64_t* slots, int tokens,
                           int top_k, int expert_count, const ExpertOrder& out) {
  const Grid grid{.x = expert_count, .threads = kThreads, .shared_bytes = 32 * sizeof(int)};
  const absl::Status counted = Launch("GroupByExpert", CountKernel, grid, stream, experts, slots,
                                      tokens * top_k, top_k, out.counts);
  if (!counted.ok()) return counted;
  return Launch("GroupByExpert", PlaceKernel, grid, stream, experts, slots, tokens * top_k, top_k,
                out);
}

absl::Status TransposeIndex(Stream stream, int batches, int a, int b, int32_t* out) {
  const Grid grid{.x = Ceil(int64_t{batches} * a * b, kThreads), .threads = kThreads};
  return Launch("TransposeIndex", TransposeIndexKernel, grid, stream, batches, a, b, out);
}

absl::Status AddBias(Stream stream, const float* bias, DeviceMatrix<float> y) {
  return Launch("AddBias", AddBiasKernel, {.x = y.rows, .threads = kThreads}, stream, bias, y);
}

absl::Status Clip(Stream stream, float limit, DeviceMatrix<float> x) {
  return Launch("Clip", ClipKernel, {.x = x.rows, .threads = kThreads}, stream, limit, x);
}

}  // namespace switchyard::cuda

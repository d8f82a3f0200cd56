#include "kernels/cuda/peer.h"

#include "kernels/cuda/device.h"

#if !defined(__CUDACC__)
#include <atomic>
#include <chrono>
#include <thread>
#endif

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;

// Flags, between devices and processes. On the host other ranks are other threads.
__device__ __forceinline__ void StoreRelease(uint64_t* p, uint64_t v) {
#if defined(__CUDACC__)
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
#else
  std::atomic_ref(*p).store(v, std::memory_order_release);
#endif
}
__device__ __forceinline__ uint64_t LoadAcquire(uint64_t* p) {
#if defined(__CUDACC__)
  uint64_t v;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
#else
  return std::atomic_ref(*p).load(std::memory_order_acquire);
#endif
}
// Words of the host, and of other blocks: nothing else is ordered by them.
__device__ __forceinline__ void StoreRelaxed(uint32_t* p, uint32_t v) {
#if defined(__CUDACC__)
  asm volatile("st.relaxed.sys.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#else
  std::atomic_ref(*p).store(v, std::memory_order_relaxed);
#endif
}
__device__ __forceinline__ uint32_t LoadRelaxed(const uint32_t* p) {
#if defined(__CUDACC__)
  uint32_t v;
  asm volatile("ld.relaxed.sys.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#else
  return std::atomic_ref(*const_cast<uint32_t*>(p)).load(std::memory_order_relaxed);
#endif
}
// What this thread has stored, and seen stored, comes before what it stores from now on.
__device__ __forceinline__ void FenceSystem() {
#if defined(__CUDACC__)
  __threadfence_system();
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}
__device__ __forceinline__ uint64_t Nanoseconds() {
#if defined(__CUDACC__)
  uint64_t v;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v)::"memory");
  return v;
#else
  return static_cast<uint64_t>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
#endif
}
__device__ __forceinline__ void Pause() {
#if defined(__CUDACC__)
  __nanosleep(64);
#else
  std::this_thread::sleep_for(std::chrono::microseconds(20));
#endif
}

// This block's share of `bytes`, 16 at a time, several loads under way.
__device__ __forceinline__ void CopyShare(std::byte* to, const std::byte* from, uint64_t bytes) {
  constexpr int kAtOnce = 4;
  const uint64_t count = bytes / sizeof(uint4), step = uint64_t{gridDim.x} * kThreads;
  const uint4* const in = reinterpret_cast<const uint4*>(from);
  uint4* const out = reinterpret_cast<uint4*>(to);
  for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += kAtOnce * step) {
    uint4 v[kAtOnce] = {};
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j * step < count) v[j] = in[i + j * step];
    }
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j * step < count) out[i + j * step] = v[j];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    SendKernel(const __grid_constant__ PeerBlocks blocks, PeerWords words) {
  // Behind a wait in vain rows are made of nothing: nobody shall take them for good ones.
  if (LoadRelaxed(words.broken) != 0) return;
  for (int n = 0; n < blocks.count; ++n) {
    // Not all blocks to one peer at a time.
    const int i = static_cast<int>((n + blockIdx.x) % static_cast<unsigned>(blocks.count));
    const PeerBlock& block = blocks.at[i];
    CopyShare(block.slot, block.data, block.bytes);
    FenceSystem();
    __syncthreads();
    // The last block to come here has seen that all others have stored their share.
    if (threadIdx.x == 0 && atomicAdd(&words.arrived[i], 1u) == gridDim.x - 1) {
      words.arrived[i] = 0;
      FenceSystem();
      StoreRelease(block.flag, block.word);
    }
  }
}

// Whether the word has come.
__device__ __forceinline__ bool Await(const PeerBlock& block, const PeerWords& words,
                                      uint64_t wait_ns_max) {
  constexpr uint32_t kTurns = 64;  // between looks at what is far away
  if (LoadRelaxed(words.broken) != 0) return false;
  if (LoadAcquire(block.flag) == block.word) return true;
  const uint64_t begin = Nanoseconds();
  for (uint32_t turn = 0;; ++turn) {
    if (LoadAcquire(block.flag) == block.word) return true;
    if (turn % kTurns == 0) {
      const bool late = Nanoseconds() - begin > wait_ns_max;
      if (late || LoadRelaxed(words.stop) != 0 || LoadRelaxed(words.broken) != 0) {
        if (late) StoreRelaxed(words.error, static_cast<uint32_t>(block.rank) + 1);
        StoreRelaxed(words.broken, 1);
        return false;
      }
    }
    Pause();
  }
}

__global__ void __launch_bounds__(kThreads) ReceiveKernel(const __grid_constant__ PeerBlocks blocks,
                                                          PeerWords words, uint64_t wait_ns_max) {
  int* const there = SharedMemory<int>();
  for (int i = 0; i < blocks.count; ++i) {
    const PeerBlock& block = blocks.at[i];
    if (threadIdx.x == 0) *there = Await(block, words, wait_ns_max) ? 1 : 0;
    __syncthreads();
    if (*there == 0) return;
    CopyShare(block.data, block.slot, block.bytes);
    __syncthreads();  // before the next is awaited
  }
}

Grid GridOf(const PeerBlocks& blocks, int ctas) {
  SY_CHECK_MSG(blocks.count >= 0 && blocks.count <= kPeersMax && ctas >= 1, blocks.count,
               " peers, ", ctas, " blocks");
  for (int i = 0; i < blocks.count; ++i) {
    const PeerBlock& b = blocks.at[i];
    SY_CHECK_MSG(
        (reinterpret_cast<uintptr_t>(b.slot) | reinterpret_cast<uintptr_t>(b.data) | b.bytes) %
                sizeof(uint4) ==
            0,
        b.bytes, " bytes for rank ", b.rank);
  }
  return {.x = blocks.count == 0 ? 0 : ctas, .threads = kThreads, .shared_bytes = sizeof(int)};
}

}  // namespace

absl::Status SendToPeers(Stream stream, const PeerBlocks& blocks, const PeerWords& words,
                         int ctas) {
  return Launch("SendToPeers", SendKernel, GridOf(blocks, ctas), stream, blocks, words);
}

absl::Status ReceiveFromPeers(Stream stream, const PeerBlocks& blocks, const PeerWords& words,
                              uint64_t wait_ns_max, int ctas) {
  return Launch("ReceiveFromPeers", ReceiveKernel, GridOf(blocks, ctas), stream, blocks, words,
                wait_ns_max);
}

}  // namespace switchyard::cuda

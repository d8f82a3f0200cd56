// kernels/cuda/simt/simt.h: runs a CUDA kernel's very source on the host: what a .cu.cc file needs
// of CUDA C++ when g++ compiles it. Each CUDA thread of a block is a fiber; one block runs at a
// time. For tests (no GPU, no nvcc): slow, exact about rules.
//
// What it finds: between two synchronisations threads run one after another in an order that
// SetOrder permutes, so a missing barrier or an order that matters shows as other bits under other
// seeds; shared memory starts as NaN; asynchronous copies land only when they are waited for; a
// barrier or warp operation that some threads miss stops the process with the names of both sides;
// a launch past the limits of sm_80 (of sm_90 where the launch says so) stops it too.
// What it cannot find: races inside one warp instruction, memory ordering between blocks, and
// anything that the hardware does other than the PTX ISA's text says.
//
// Warps are full: blockDim.x is a multiple of 32, blocks have one dimension of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/compute_pool.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__
#define threadIdx (::switchyard::simt::Here().thread)
#define blockIdx (::switchyard::simt::Here().block)
#define blockDim (::switchyard::simt::Here().threads)
#define gridDim (::switchyard::simt::Here().blocks)

namespace switchyard::simt {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

// Where the running fiber is.
struct Place {
  Dim thread{0, 0, 0}, block{0, 0, 0}, threads, blocks;
};
const Place& Here();

struct Shape {
  Dim blocks;
  unsigned threads = 0;
  size_t shared_bytes = 0;
  bool hopper = false;  // limits of sm_90, not of sm_80
};

// Runs `kernel` once for every thread of every block, and returns when all are done.
void Run(const char* name, const Shape& shape, FunctionRef<void()> kernel);

// The order in which threads and blocks take their turns, of this host thread: 0 ascending, else a
// permutation that changes at every turn.
void SetOrder(uint64_t seed);

// The block's shared memory, 1,024-byte aligned; and where `p` lies in it (CHECKs that it does).
std::byte* Shared();
uint32_t SharedOffset(const void* p);

// bar.sync id, threads: returns when `threads` threads of the block are here; 0: all that live.
void Barrier(int id, unsigned threads);

// Gives the others of the warp `bytes` (at most 64) and returns those of all 32 lanes, `bytes`
// apart; valid until this lane's second next exchange. All lanes name the same operation.
const std::byte* Exchange(const char* operation, const void* mine, size_t bytes);

// Lets others run; for loops that wait for a flag. CHECKs that somebody still makes progress.
void Yield();

// cp.async: 16 bytes (zeros unless `valid`) that land in shared memory when their group is waited
// for; groups close in order.
void CopyAsync(void* shared, const void* global, bool valid);
void CommitCopies();
void WaitCopies(int groups_left);

template <typename T>
T ExchangeOne(const char* operation, T mine, unsigned lane) {
  return reinterpret_cast<const T*>(Exchange(operation, &mine, sizeof(T)))[lane & 31];
}

}  // namespace switchyard::simt

struct uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads() { switchyard::simt::Barrier(0, 0); }
inline void __syncwarp() {
  const int nothing = 0;
  switchyard::simt::Exchange("syncwarp", &nothing, sizeof nothing);
}
template <typename T>
T __shfl_sync(unsigned, T v, int lane) {
  return switchyard::simt::ExchangeOne("shfl", v, static_cast<unsigned>(lane));
}
template <typename T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  return switchyard::simt::ExchangeOne("shfl.xor", v, threadIdx.x ^ static_cast<unsigned>(mask));
}
template <typename T>
T __shfl_up_sync(unsigned, T v, unsigned delta) {
  const unsigned lane = threadIdx.x & 31;
  return switchyard::simt::ExchangeOne("shfl.up", v, lane < delta ? lane : lane - delta);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const std::byte* all = switchyard::simt::Exchange("ballot", &predicate, sizeof predicate);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= reinterpret_cast<const bool*>(all)[i] ? 1u << i : 0u;
  return bits;
}
template <typename T, typename U>
T atomicAdd(T* p, U v) {
  const T old = *p;
  *p = old + static_cast<T>(v);
  return old;
}

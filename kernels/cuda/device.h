// kernels/cuda/device.h: what the kernels' sources include instead of CUDA's headers, so that nvcc
// and g++ (kernels/cuda/simt) compile the same text: launches, shared memory, small arithmetic and
// sums in fixed orders.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/bf16.h"
#include "common/check.h"
#include "kernels/cuda/matrix.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "kernels/cuda/simt/simt.h"
#endif

namespace switchyard::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarp = 32;

struct Grid {
  int64_t x = 1, y = 1, z = 1;  // blocks
  int threads = 256;
  size_t shared_bytes = 0;
  bool hopper = false;  // a kernel for sm_90a alone, whose blocks may have more shared memory
};

constexpr int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Launches kernel(args…). No blocks: nothing happens.
template <typename... P, typename... A>
absl::Status Launch(const char* name, void (*kernel)(P...), const Grid& grid, Stream stream,
                    A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return absl::OkStatus();
  SY_CHECK_MSG(grid.x <= 2147483647 && grid.y <= 65535 && grid.z <= 65535, name, ": ", grid.x, " ",
               grid.y, " ", grid.z, " blocks");
  const unsigned x = static_cast<unsigned>(grid.x), y = static_cast<unsigned>(grid.y),
                 z = static_cast<unsigned>(grid.z);
#if defined(__CUDACC__)
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<dim3(x, y, z), static_cast<unsigned>(grid.threads), grid.shared_bytes, stream>>>(
        static_cast<P>(args)...);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // not the next launch's
    return absl::InternalError(absl::StrCat(name, ": ", cudaGetErrorString(error)));
  }
#else
  SY_CHECK_MSG(stream == nullptr, "the host has no streams");
  simt::Run(name, {{x, y, z}, static_cast<unsigned>(grid.threads), grid.shared_bytes, grid.hopper},
            [&] { kernel(static_cast<P>(args)...); });
#endif
  return absl::OkStatus();
}

// The block's dynamic shared memory, as one struct or array; 1,024-byte aligned, as swizzled tiles
// need it.
template <typename T>
__device__ __forceinline__ T* SharedMemory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(1024) unsigned char sy_shared_memory[];
  return reinterpret_cast<T*>(sy_shared_memory);
#else
  return reinterpret_cast<T*>(simt::Shared());
#endif
}

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) & 31; }
__device__ __forceinline__ int WarpIndex() { return static_cast<int>(threadIdx.x) >> 5; }

__device__ __forceinline__ int CountTrailingZeros(uint32_t v) {  // v != 0
#if defined(__CUDACC__)
  return __ffs(static_cast<int>(v)) - 1;
#else
  return std::countr_zero(v);
#endif
}

// As ToFloat, ToBf16 of common/bf16.h.
__device__ __forceinline__ float FromBf16(Bf16 v) {
  return std::bit_cast<float>(uint32_t{v.bits} << 16);
}
__device__ __forceinline__ Bf16 RoundedBf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return Bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return Bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
__device__ __forceinline__ float Load(const float* p) { return *p; }
__device__ __forceinline__ float Load(const Bf16* p) { return FromBf16(*p); }
__device__ __forceinline__ void Store(float* p, float v) { *p = v; }
__device__ __forceinline__ void Store(Bf16* p, float v) { *p = RoundedBf16(v); }

// e^x within 2 ulp for x in [-87, 88], 0 or +inf's neighbourhood past that: the series of the CPU
// kernels, so that no library's exp is in the bits. Exp(0) is 1; NaN stays.
__device__ __forceinline__ float Exp(float x) {
  x = x < -110.0f ? -110.0f : x > 90.0f ? 90.0f : x;
  const float n = rintf(x * 1.44269504f);
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 2.12194440e-4f, r);
  float p = 1.0f / 5040;
  p = fmaf(p, r, 1.0f / 720);
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(r * r, p, r + 1.0f);
  // 2^n as two factors: n may be -159. A NaN's n is any number; the product is NaN.
  const int whole = x == x ? static_cast<int>(n) : 0, half = whole >> 1;
  return p * std::bit_cast<float>((half + 127) << 23) *
         std::bit_cast<float>((whole - half + 127) << 23);
}

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + Exp(-x)); }

// Over the warp, by a fixed tree; all lanes get the result.
template <typename T>
__device__ __forceinline__ T WarpSum(T v) {
  for (int mask = 16; mask > 0; mask >>= 1) v = v + __shfl_xor_sync(kAllLanes, v, mask);
  return v;
}
template <typename T>
__device__ __forceinline__ T WarpMax(T v) {
  for (int mask = 16; mask > 0; mask >>= 1) {
    const T other = __shfl_xor_sync(kAllLanes, v, mask);
    v = other > v ? other : v;
  }
  return v;
}

// Over the block (kThreads, a multiple of 32, at most 1,024); `scratch` [32] is shared memory of
// this call alone until the next barrier. All threads get the result.
template <int kThreads, typename T>
__device__ __forceinline__ T BlockSum(T v, T* scratch) {
  v = WarpSum(v);
  if (Lane() == 0) scratch[WarpIndex()] = v;
  __syncthreads();
  return WarpSum(Lane() < kThreads / kWarp ? scratch[Lane()] : T(0));
}
template <int kThreads, typename T>
__device__ __forceinline__ T BlockMax(T v, T* scratch) {
  v = WarpMax(v);
  if (Lane() == 0) scratch[WarpIndex()] = v;
  __syncthreads();
  return WarpMax(Lane() < kThreads / kWarp ? scratch[Lane()] : scratch[0]);
}

// Float to an integer of the same order; NaNs are above or below all numbers, −0 equals +0.
__device__ __forceinline__ uint32_t OrderOf(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f + 0.0f);
  return (u & 0x80000000u) ? ~u : u | 0x80000000u;
}
// Ranks (value, id): greater is better, ties to the lower id.
__device__ __forceinline__ uint64_t RankKey(float value, uint32_t id) {
  return (uint64_t{OrderOf(value)} << 32) | static_cast<uint32_t>(~id);
}
__device__ __forceinline__ uint32_t IdOf(uint64_t key) { return ~static_cast<uint32_t>(key); }

}  // namespace switchyard::cuda

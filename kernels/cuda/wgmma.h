// kernels/cuda/wgmma.h: Hopper's asynchronous instructions (PTX ISA 8: mbarrier,
// cp.async.bulk.tensor, wgmma), sm_90a only. On the host: simt/wgmma.h.
#pragma once

#include "kernels/cuda/device.h"

#if defined(__CUDACC__)
#include <cuda.h>
#else
#include "kernels/cuda/simt/wgmma.h"
#endif

// 1 where the code that is compiled can use them.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SY_HOPPER 1
#else
#define SY_HOPPER 0
#endif

namespace switchyard::cuda {

#if defined(__CUDACC__)
using TensorMap = CUtensorMap;
#else
using TensorMap = simt::TensorMap;
#endif

#if SY_HOPPER

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

__device__ __forceinline__ void InitMbarrier(uint64_t* barrier, unsigned count) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
#else
  simt::InitMbarrier(barrier, count);
#endif
}
// Makes initialised barriers known to the copy engine; then __syncthreads.
__device__ __forceinline__ void FenceMbarriers() {
#if defined(__CUDACC__)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void Arrive(uint64_t* barrier) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
#else
  simt::Arrive(barrier);
#endif
}
// Arrives; the phase ends no sooner than `bytes` more have landed.
__device__ __forceinline__ void ArriveExpecting(uint64_t* barrier, unsigned bytes) {
#if defined(__CUDACC__)
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
#else
  simt::ArriveExpecting(barrier, bytes);
#endif
}
// Until the phase of this parity is over; a new barrier is in phase 0.
__device__ __forceinline__ void WaitPhase(uint64_t* barrier, unsigned parity) {
#if defined(__CUDACC__)
  uint32_t over = 0;
  while (over == 0) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  }
#else
  while (!simt::PhaseIsOver(barrier, parity)) simt::Yield();
#endif
}

// Starts the copy of the map's box at (column, row) to `shared`; its bytes land on `barrier`.
__device__ __forceinline__ void CopyTensor(void* shared, const TensorMap& map, int column, int row,
                                           uint64_t* barrier) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
#else
  simt::CopyBox(shared, map, column, row, barrier);
#endif
}

// Of a K-major operand in rows of 128 bytes with the 128-byte swizzle: address, stride of 1,024
// bytes between groups of 8 rows, mode 1 (PTX ISA, "Matrix descriptor"). The leading offset is not
// used.
__device__ __forceinline__ uint64_t Descriptor(const void* shared) {
#if defined(__CUDACC__)
  const uint32_t address = SharedAddress(shared);
#else
  const uint32_t address = simt::SharedOffset(shared);
#endif
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

#define SY_WGMMA_SUMS                                                                \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define SY_WGMMA_OPERANDS(d)                                                                      \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),  \
      "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),  \
      "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),  \
      "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),  \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// Before the first product that adds to registers which were written otherwise. These two name the
// registers, so that nvcc moves nothing that reads or writes them across.
__device__ __forceinline__ void FenceWgmma(float (&d)[64]) {
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" : SY_WGMMA_OPERANDS(d)::"memory");
#else
  static_cast<void>(d);
#endif
}
// Until all products of this warp are made.
__device__ __forceinline__ void WaitWgmma(float (&d)[64]) {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned 0;" : SY_WGMMA_OPERANDS(d)::"memory");
#else
  static_cast<void>(d);
  simt::WaitWgmma();
#endif
}
__device__ __forceinline__ void CommitWgmma() {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  simt::CommitWgmma();
#endif
}

// d = (kAdd ? d : 0) + a · bᵀ of a warpgroup, 64 by 128 by 32 bytes of k. Warp w of it has rows 16w
// …; lane l, g = l / 4, t = l % 4: d[4j], d[4j + 1] are row g, columns 8j + 2t and the next; d[4j +
// 2], d[4j + 3] row g + 8. kFp8: 32 E4M3, else 16 BF16.
template <bool kFp8, bool kAdd>
__device__ __forceinline__ void Wgmma(float (&d)[64], uint64_t a, uint64_t b) {
#if defined(__CUDACC__)
  if constexpr (kFp8) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " SY_WGMMA_SUMS
                 ", %64, %65, %66, 1, 1;"
                 : SY_WGMMA_OPERANDS(d)
                 : "l"(a), "l"(b), "n"(kAdd ? 1 : 0));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " SY_WGMMA_SUMS
                 ", %64, %65, %66, 1, 1, 0, 0;"
                 : SY_WGMMA_OPERANDS(d)
                 : "l"(a), "l"(b), "n"(kAdd ? 1 : 0));
  }
#else
  simt::Wgmma(d, a, b, kFp8, kAdd);
#endif
}

#undef SY_WGMMA_SUMS
#undef SY_WGMMA_OPERANDS

#endif  // SY_HOPPER

}  // namespace switchyard::cuda

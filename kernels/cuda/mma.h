// kernels/cuda/mma.h: warp-wide matrix instructions of sm_80 and asynchronous copies (PTX ISA 8,
// "Warp-level matrix instructions", "cp.async"). On the host: simt/mma.h, by the same documents.
#pragma once

#include "kernels/cuda/device.h"

#if defined(__CUDACC__)
#define SY_UNROLL _Pragma("unroll")
#else
#define SY_UNROLL
#include "kernels/cuda/simt/mma.h"
#endif

namespace switchyard::cuda {

// Two BF16 in one register, `low` in the lower half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return RoundedBf16(low).bits | static_cast<uint32_t>(RoundedBf16(high).bits) << 16;
#endif
}

// d += a · b: a 16 × 16 row-major, b 16 × 8, FP32 sums. Lane l holds, g = l / 4, t = l % 4: of a
// the rows g, g + 8 at columns 2t, 2t + 1, then the same at columns + 8; of b the column g at rows
// 2t, 2t + 1, then + 8; of d the rows g (0, 1) and g + 8 (2, 3) at columns 2t, 2t + 1.
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  simt::MmaBf16(d, a, b0, b1);
#endif
}

// Four 8 × 8 matrices of BF16; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// shared memory) and gets of each matrix row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], const Bf16* row) {
#if defined(__CUDACC__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  simt::LoadMatrices(r, row, false);
#endif
}
// The same, each matrix transposed: column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], const Bf16* row) {
#if defined(__CUDACC__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  simt::LoadMatrices(r, row, true);
#endif
}

// 16 bytes to shared memory, zeros unless `valid` (`global` is then not read); both 16-byte
// aligned. Lands when its group is waited for.
__device__ __forceinline__ void CopyAsync(void* shared, const void* global, bool valid) {
#if defined(__CUDACC__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(global), "r"(bytes)
               : "memory");
#else
  simt::CopyAsync(shared, global, valid);
#endif
}
__device__ __forceinline__ void CommitCopies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::CommitCopies();
#endif
}
// Until at most kLeft of this thread's groups are under way; the others of the block need a barrier
// to see what landed.
template <int kLeft>
__device__ __forceinline__ void WaitCopies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#else
  simt::WaitCopies(kLeft);
#endif
}

}  // namespace switchyard::cuda

// kernels/cuda/simt/mma.h: the matrix instructions of mma.h on the host. Fragment layouts are those
// of the PTX ISA (mma.m16n8k16, ldmatrix). Products are exact; the 16 of one output are added to
// the sum in ascending k in FP32, where hardware's order and rounding are its own.
#pragma once

#include <cstdint>

namespace switchyard::simt {

void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed);

}  // namespace switchyard::simt

// kernels/cuda/simt/wgmma.h: Hopper's asynchronous instructions on the host, by the PTX ISA:
// mbarrier (phases, pending arrivals, transaction bytes), cp.async.bulk.tensor of two dimensions
// with the 128-byte swizzle, wgmma m64n128 of 16 BF16 or 32 E4M3 with both operands in shared
// memory by descriptors. A tensor copy lands when somebody looks at its mbarrier, a product is made
// when its group is waited for: no sooner than the code has to expect it.
#pragma once

#include <cstdint>

namespace switchyard::simt {

// What stands in an mbarrier's 8 bytes.
struct Mbarrier {
  uint8_t phase, count, pending, unused;
  int32_t bytes;
};

// What stands for a CUtensorMap: rows of `columns` elements, `stride` bytes apart; a box of 128
// bytes by `box_rows`, swizzled.
struct TensorMap {
  const void* data;
  uint64_t columns, rows, stride;
  uint32_t box_rows, element_bytes;
};

void InitMbarrier(uint64_t* barrier, unsigned count);
void Arrive(uint64_t* barrier);
void ArriveExpecting(uint64_t* barrier, unsigned bytes);
bool PhaseIsOver(uint64_t* barrier, unsigned parity);
void CopyBox(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier);

// `add`: to d, else to 0.
void Wgmma(float (&d)[64], uint64_t a, uint64_t b, bool fp8, bool add);
void CommitWgmma();
void WaitWgmma();

}  // namespace switchyard::simt

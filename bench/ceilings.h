// bench/ceilings.h: what this machine can do at most, measured: the multiply-adds that its
// registers allow and the bytes that its memory gives. Kernels are held against these in the same
// run, since on a shared machine both move.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/compute_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/gemm.h"

namespace switchyard {

// Seconds since some start: of this thread's own work where it is the only one, so that what else
// the machine does counts little; else of the wall clock.
double BenchSeconds(const ComputePool& pool);

// A path that has ceilings. Errors: those of SelectKernels; kInvalidArgument for the reference.
absl::StatusOr<CpuPath> FindCpuPath(const std::string& kernels);

enum class Ceiling { kInt8Dot, kBf16Dot, kFloat32Fma, kMemoryRead, kCachedRead, kCopy };
const char* Name(Ceiling c);
// Operations count a multiply-add as two; the others are bytes (a copy's are those it reads).
inline bool IsArithmetic(Ceiling c) { return c <= Ceiling::kFloat32Fma; }

class Ceilings {
 public:
  // Borrows both. Takes half a gigabyte of memory.
  Ceilings(const cpu::Isa& isa, ComputePool& pool);

  std::vector<Ceiling> all() const;
  bool Has(Ceiling c) const {
    return (c != Ceiling::kBf16Dot || isa_.dot) && (c != Ceiling::kInt8Dot || isa_.vnni);
  }
  // One measurement of some milliseconds on all threads of the pool: operations or bytes a second.
  double Measure(Ceiling c);

 private:
  double MeasureArithmetic(cpu::TileKind kind);
  double MeasureBytes(Ceiling c);

  const cpu::Isa& isa_;
  ComputePool& pool_;
  AlignedBuffer from_, to_;
  size_t next_ = 0;  // where the next read begins, so that nothing is found in a cache
};

}  // namespace switchyard

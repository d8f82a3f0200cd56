#include "kernels/cpu/cpu_kernels.h"

#include <utility>

namespace switchyard {
namespace {

template <const cpu::Isa& isa>
KernelSet SetOf() {
  static const CpuGemm gemm(isa);
  static const CpuGroupedGemm grouped_gemm(isa);
  static const CpuAttention attention(isa);
  static const CpuNorm norm(isa);
  return {isa.name, &gemm, &grouped_gemm, &attention, &norm};
}

}  // namespace

std::vector<CpuPath> CpuPaths() {
  // Also asks whether the operating system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  std::vector<CpuPath> paths = {{SetOf<cpu::kAvx2>(), &cpu::kAvx2, avx2},
                                {SetOf<cpu::kAvx512>(), &cpu::kAvx512, avx512},
                                {SetOf<cpu::kAvx512Vnni>(), &cpu::kAvx512Vnni, vnni},
                                {SetOf<cpu::kAvx512Bf16>(), &cpu::kAvx512Bf16, bf16}};
  // Intel's cores begin a BF16 dot product in every other cycle, and two FP32 FMAs in each: twice
  // the multiplications (docs/numbers.md). By the maker, not by a measurement: the choice is part
  // of numerics_id.
  if (__builtin_cpu_is("intel")) std::swap(paths[2], paths[3]);
  return paths;
}

}  // namespace switchyard

#include "kernels/cpu/cpu_kernels.h"

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
  // Every CPU that has the one has the other.
  const bool bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  return {{SetOf<cpu::kAvx2>(), &cpu::kAvx2, avx2},
          {SetOf<cpu::kAvx512>(), &cpu::kAvx512, avx512},
          {SetOf<cpu::kAvx512Bf16>(), &cpu::kAvx512Bf16, bf16}};
}

}  // namespace switchyard

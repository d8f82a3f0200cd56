// kernels/kernel_set.h: one implementation of each op family. `reference` is plain loops, the
// oracle of all; the paths of kernels/cpu are chosen by CPUID or by --kernels. rope.h, gate.h and
// sample.h have one implementation that all paths share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/grouped_gemm.h"
#include "kernels/norm.h"

namespace switchyard {

// Borrowed, immortal, thread-safe (stateless) implementations.
struct KernelSet {
  std::string name;  // enters numerics_id
  const GemmOps* gemm = nullptr;
  const GroupedGemmOps* grouped_gemm = nullptr;
  const AttentionOps* attention = nullptr;
  const NormOps* norm = nullptr;
};

// `name`: auto (the best this CPU has), reference, avx2, avx512, avx512_vnni or avx512_bf16.
// Errors: kInvalidArgument for another name; kFailedPrecondition if the CPU lacks it; both list
// what this machine can run.
absl::StatusOr<KernelSet> SelectKernels(std::string_view name);

// Every set that this CPU can run, `reference` first; and the names of those it cannot.
std::vector<KernelSet> AvailableKernels();
std::vector<std::string> MissingKernels();

}  // namespace switchyard

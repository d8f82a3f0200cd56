#include "kernels/conformance.h"

namespace switchyard {

std::vector<const char*> ConformanceNames() {
  return {"reference", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
}

absl::StatusOr<KernelSet> ConformanceSet(std::string_view name) { return SelectKernels(name); }

}  // namespace switchyard

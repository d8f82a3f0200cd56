#include "kernels/conformance.h"
#include "kernels/cuda/host_kernels.h"
#include "kernels/cuda/testing.h"

namespace switchyard {

std::vector<const char*> ConformanceNames() { return {"cuda_mma", "cuda_wgmma"}; }

absl::StatusOr<KernelSet> ConformanceSet(std::string_view name) {
  if (const std::string why = cuda::NoDevice(); !why.empty()) {
    return absl::FailedPreconditionError(why);
  }
  for (const cuda::GemmPath path : cuda::TestedPaths()) {
    if (cuda::HostKernels(path).name == name) return cuda::HostKernels(path);
  }
  return absl::FailedPreconditionError("the device lacks wgmma");
}

}  // namespace switchyard

// common/cuda/runtime_status.h: errors of the CUDA runtime as ours.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace switchyard::cuda {

// OK, or `what` with CUDA's name and text of the error: kResourceExhausted for memory,
// kFailedPrecondition where there is no device or driver, kInternal for the rest.
absl::Status ToStatus(cudaError_t error, absl::string_view what);

}  // namespace switchyard::cuda

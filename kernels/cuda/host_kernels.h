// kernels/cuda/host_kernels.h: the CUDA kernels behind the interfaces of kernels/*.h, on host
// memory: every call copies to the device and back. For the conformance tests.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/kernel_set.h"

namespace switchyard::cuda {

// Immortal. "cuda_mma" or "cuda_wgmma".
KernelSet HostKernels(GemmPath path);

}  // namespace switchyard::cuda

// model/cuda/support.h: what a device can compute of a model, asked before anything is loaded, and
// what its results are called. Pure.
#pragma once

#include <string>

#include "common/cuda/device.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"
#include "model/load.h"

namespace switchyard::cuda {

// Attention of one layer, as kernels see it: MLA absorbed has one kv head, whose keys begin with
// its values.
AttentionShape AttentionShapeOf(const ModelConfig& config);

// kUnimplemented names what this device, or any, lacks: a kernel of these widths, shared memory for
// it, room in a grid for so many rows (--max-num-batched-tokens).
absl::Status CheckSupported(const ModelConfig& config, const ModelOptions& options, GemmPath path,
                            const DeviceProperties& device);

// The kernel path in numerics_id. Generations of tensor cores add the products of one instruction
// in orders and widths of their own, so the compute capability is part of it: "cuda_wgmma_sm90".
std::string NumericsPath(GemmPath path, const DeviceProperties& device);

}  // namespace switchyard::cuda

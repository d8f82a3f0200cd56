// model/cuda/packers.h: weights in the layout of kernels/cuda, packed by the host, so that the
// loader of all models (model/weights.h) loads these too.
#pragma once

#include "kernels/cuda/gemm.h"
#include "kernels/kernel_set.h"

namespace switchyard::cuda {

// Packs only: a device's products are not called through these. A packed weight is its data
// (WeightBytes), then its scales (WeightScales), if the format has any.
KernelSet Packers();

// Of a weight that Packers() packed; `host` bytes are `data` bytes, then `scales` of floats.
struct PackedSizes {
  size_t data = 0, scales = 0;
};
PackedSizes SizesOf(WeightFormat format, size_t n, size_t k);

}  // namespace switchyard::cuda

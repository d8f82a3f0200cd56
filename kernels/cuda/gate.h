// kernels/cuda/gate.h: the choice of experts, on the device.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix.h"
#include "kernels/gate.h"

namespace switchyard::cuda {

inline constexpr int kGateExpertsMax = 4096;  // two floats each in 48 KB of shared memory, and room

// As ChooseExperts of kernels/gate.h. logits [T, E] FP32; bias [E] or null; experts and weights
// [T, K], dense. One block of one warp per token, scores in shared memory; `exp` is kernels/cuda's
// own and the softmax sums in an order that depends on E alone. A NaN ranks above all numbers, so
// that every slot holds an expert whatever the logits.
absl::Status ChooseExperts(Stream stream, const GateConfig& config,
                           DeviceMatrix<const float> logits, const float* bias, int32_t* experts,
                           float* weights);

}  // namespace switchyard::cuda

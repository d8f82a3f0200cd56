// model/cuda/staged_experts.h: an MoE layer whose experts are on several ranks, through any
// Dispatcher of the host: rows go through pinned memory to it and back. Correct everywhere, also
// for ranks that share a device; it waits for the device twice in each layer (docs/cuda.md).
#pragma once

#include <vector>

#include "model/cuda/layers.h"
#include "moe/dispatch.h"

namespace switchyard::cuda {

class StagedExperts {
 public:
  // Memory for steps of up to workspace.rows rows; all are borrowed.
  absl::Status Create(const ModelConfig& config, DType wire, const Workspace& workspace,
                      DeviceLayers& layers, const OwnedStream& stream);
  // residual += the layer's FFN. Collective: all ranks call, those without rows too. positions [T],
  // of the host. Errors: the dispatcher's.
  absl::Status Run(int layer, const LayerStep& step, Dispatcher& dispatcher,
                   const int32_t* positions);

 private:
  absl::Status Compute(int layer, const DispatchedRows& received);

  const ModelConfig* config_ = nullptr;
  const Workspace* workspace_ = nullptr;
  DeviceLayers* layers_ = nullptr;
  const OwnedStream* stream_ = nullptr;
  DType wire_ = DType::kBfloat16;
  size_t row_bytes_ = 0;                           // of a row on the device
  PinnedBuffer hidden_, experts_, weights_, sum_;  // of this rank's rows
  PinnedBuffer rows_, offsets_;  // a part of what was received, then what experts make of it
  DeviceBuffer device_rows_, device_offsets_, device_outputs_;
  std::vector<std::byte> outputs_;  // [R, H] of the wire
};

}  // namespace switchyard::cuda

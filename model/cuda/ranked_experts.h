// model/cuda/ranked_experts.h: an MoE layer whose experts are on the devices of several ranks.
//
// Ranks tell each other their plans through the host, rows go from device to device
// (direct_lane.h):
//
//   host    ids ─ plans to all, from all ─ which rows are whose ┐
//   device  gate │ shared expert         │ rows by rank ══► rows by expert │ experts │ by rank ══►
//   sum
//
// Where they cannot, rows go through any Dispatcher of the host (staged_experts.h). The bits are
// the same, and those of a rank that has all experts: rows are rounded once, outputs are summed
// unreduced, in the order of slots.
#pragma once

#include <vector>

#include "model/cuda/direct_lane.h"
#include "model/cuda/layers.h"
#include "model/cuda/staged_experts.h"
#include "moe/ep_route.h"

namespace switchyard::cuda {

class RankedExperts {
 public:
  // For steps of up to workspace.rows rows; all are borrowed.
  absl::Status Create(const ModelConfig& config, DType wire, int device_index,
                      const Workspace& workspace, DeviceLayers& layers, const OwnedStream& stream);

  // Collective, before the layers of a step. Errors: DirectLane::Begin's.
  absl::Status Begin(Dispatcher& dispatcher);
  // residual += the layer's FFN. Collective: all ranks call, those without rows too. positions [T],
  // of the host. Errors: kUnavailable if a rank is lost; kResourceExhausted if what others send
  // does not fit.
  absl::Status Run(int layer, const LayerStep& step, const int32_t* positions);
  // Before anything else waits for the stream, or for an event behind it: waits until all is done
  // that other ranks have a part in, as long as they live. Errors: DirectLane::Await's.
  absl::Status Settle();
  absl::Status Await(const Event& event);
  // After an error: ends what waits for other ranks, then waits for the stream.
  void Abandon();

 private:
  absl::Status RunDirect(int layer, const LayerStep& step, const int32_t* positions);
  // Which rows go where, on the host and on the device. Experts take `parts` runs of rows.
  absl::Status Route(const EpDispatcher::Plans& plans);
  absl::Status Experts(int layer);
  absl::Status Reserve(size_t rows, DeviceBuffer* buffer);
  DeviceRows RowsOf(const DeviceBuffer& buffer, size_t first, size_t rows) const;

  const ModelConfig* config_ = nullptr;
  const Workspace* workspace_ = nullptr;
  DeviceLayers* layers_ = nullptr;
  const OwnedStream* stream_ = nullptr;
  DType wire_ = DType::kBfloat16;
  int device_index_ = 0;
  size_t row_bytes_ = 0;  // of a row on the device, and between devices

  Dispatcher* dispatcher_ = nullptr;  // of the step
  StagedExperts staged_;
  Event reached_;
  PinnedBuffer experts_;  // [T, K] ids, on the host

  // Of one layer. Arrays on the host, and the same on the device, one behind the other.
  struct Arrays {
    size_t out = 0, index = 0, back = 0, where = 0, offsets = 0, end = 0;  // where each begins
  };
  EpRoute route_;
  Arrays at_;
  std::vector<int32_t> offsets_;  // [parts][E + 1], each from 0
  PinnedBuffer host_arrays_;
  DeviceBuffer device_arrays_;
  // Rows by rank: what goes out (tokens, then outputs), what has come (tokens, then outputs); and
  // outputs by expert.
  DeviceBuffer going_, came_, outputs_;
  DirectLane lane_;  // last: what it has under way ends before its memory does
};

}  // namespace switchyard::cuda

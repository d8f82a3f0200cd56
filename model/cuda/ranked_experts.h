// model/cuda/ranked_experts.h: an MoE layer whose experts are on the devices of several ranks.
//
// Ranks tell each other their plans through the host, rows go from device to device
// (direct_lane.h), on a stream of their own: while those of one micro-batch travel the device
// computes the other.
//
//   host     plans A     │ plans B       → which rows are whose
//   compute  gate, shared│ gate, shared  │ experts A │ experts B │ sum A, attention A, next layer …
//   wire                 │ rows A        │ rows B    │ outputs A │ outputs B
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
  // Micro-batches, each with its own memory.
  static constexpr int kParts = 2;

  // All are borrowed.
  absl::Status Create(const ModelConfig& config, DType wire, int device_index,
                      const OwnedStream& stream);
  // For micro-batch `part` of up to workspace.rows rows; both are borrowed.
  absl::Status AddPart(int part, const Workspace& workspace, DeviceLayers& layers);

  // Collective, before the layers of a step. Errors: DirectLane::Begin's.
  absl::Status Begin(Dispatcher& dispatcher);
  // residual += the layer's FFN, in four stages for each micro-batch, of which another's may lie
  // between: what needs nobody else; rows away; the experts here; the sum. Collective: all ranks
  // call the stages of their micro-batches in the same order, those without rows too. positions
  // [T], of the host. Errors: kUnavailable if a rank is lost; kResourceExhausted if what others
  // send does not fit.
  absl::Status Open(int part, int layer, const LayerStep& step, const int32_t* positions);
  absl::Status Send(int part);
  absl::Status Compute(int part);
  absl::Status Sum(int part);
  // Before anything else waits for the stream, or for an event behind it: waits until all is done
  // that other ranks have a part in, as long as they live. Errors: DirectLane::Await's.
  absl::Status Settle();
  absl::Status Await(const Event& event);
  // After an error: ends what waits for other ranks, then waits for the streams.
  void Abandon();

 private:
  // A micro-batch in one layer. Arrays on the host, and the same on the device, one behind the
  // other.
  struct Part {
    const Workspace* workspace = nullptr;
    DeviceLayers* layers = nullptr;
    StagedExperts staged;
    int layer = 0;
    LayerStep step;
    const int32_t* positions = nullptr;
    bool shared = false;
    Event reached, leaves, came;  // ids on the host; rows ready to go; rows here
    PinnedBuffer experts;         // [T, K] ids, on the host
    EpRoute route;
    struct Arrays {
      size_t out = 0, index = 0, back = 0, where = 0, offsets = 0,
             end = 0;  // where each begins
    } at;
    std::vector<int32_t> offsets;  // [parts of the experts' rows][E + 1], each from 0
    PinnedBuffer host_arrays;
    DeviceBuffer device_arrays;
    // Rows by rank: what goes out (tokens, then outputs), what has come (tokens, then outputs); and
    // outputs by expert.
    DeviceBuffer going, came_rows, outputs;
  };
  // Which rows go where, on the host and on the device. Experts take runs of rows.
  absl::Status Route(const EpDispatcher::Plans& plans, Part& p);
  absl::Status Reserve(size_t rows, DeviceBuffer* buffer);
  absl::Status Exchange(Part& p, const BlockFirsts& from, const BlockFirsts& to);
  // Until nothing travels.
  absl::Status AwaitWire();
  DeviceRows RowsOf(const DeviceBuffer& buffer, size_t first, size_t rows) const;

  const ModelConfig* config_ = nullptr;
  const OwnedStream* stream_ = nullptr;
  OwnedStream wire_stream_;
  DType wire_ = DType::kBfloat16;
  int device_index_ = 0;
  size_t row_bytes_ = 0;  // of a row on the device, and between devices

  Dispatcher* dispatcher_ = nullptr;  // of the step
  Event reached_, quiet_;
  Part parts_[kParts];
  DirectLane lane_;  // last: what it has under way ends before its memory does
};

}  // namespace switchyard::cuda

#include "model/cuda/staged_experts.h"

#include <algorithm>
#include <cstring>

#include "common/status_macros.h"

namespace switchyard::cuda {

absl::Status StagedExperts::Create(const ModelConfig& config, DType wire,
                                   const Workspace& workspace, DeviceLayers& layers,
                                   const OwnedStream& stream) {
  config_ = &config;
  workspace_ = &workspace;
  layers_ = &layers;
  stream_ = &stream;
  wire_ = wire;
  const auto rows = static_cast<size_t>(workspace.rows);
  const size_t floats = rows * config.hidden_size * sizeof(float);
  const size_t slots = rows * config.gate.top_k, part = workspace.expert_rows;
  const size_t offsets = (config.gate.experts + 1) * sizeof(int32_t);
  row_bytes_ = PaddedCols(config.hidden_size) * SizeOf(wire);
  ASSIGN_OR_RETURN(hidden_, PinnedBuffer::Create(floats));
  ASSIGN_OR_RETURN(sum_, PinnedBuffer::Create(floats));
  ASSIGN_OR_RETURN(experts_, PinnedBuffer::Create(slots * sizeof(int32_t)));
  ASSIGN_OR_RETURN(weights_, PinnedBuffer::Create(slots * sizeof(float)));
  ASSIGN_OR_RETURN(rows_, PinnedBuffer::Create(part * row_bytes_));
  ASSIGN_OR_RETURN(offsets_, PinnedBuffer::Create(offsets));
  ASSIGN_OR_RETURN(device_rows_, DeviceBuffer::Create(part * row_bytes_));
  ASSIGN_OR_RETURN(device_outputs_, DeviceBuffer::Create(part * row_bytes_));
  ASSIGN_OR_RETURN(device_offsets_, DeviceBuffer::Create(offsets));
  return absl::OkStatus();
}

absl::Status StagedExperts::Compute(int layer, const DispatchedRows& received) {
  const auto& [tokens, index, offsets] = received;
  const size_t wire_bytes = config_->hidden_size * SizeOf(wire_);
  outputs_.resize(index.size() * wire_bytes);
  const auto part_max = static_cast<size_t>(workspace_->expert_rows);
  if (offsets.size_bytes() > offsets_.size()) {  // other placements may have more slots
    ASSIGN_OR_RETURN(offsets_, PinnedBuffer::Create(offsets.size_bytes()));
    ASSIGN_OR_RETURN(device_offsets_, DeviceBuffer::Create(offsets.size_bytes()));
  }
  for (size_t begin = 0; begin < index.size(); begin += part_max) {
    const size_t count = std::min(part_max, index.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      std::byte* const to = rows_.data() + i * row_bytes_;
      std::memcpy(to, tokens.row(index[begin + i]), wire_bytes);
      std::memset(to + wire_bytes, 0, row_bytes_ - wire_bytes);
    }
    // A part may begin and end within an expert.
    int32_t* const cut = offsets_.as<int32_t>();
    const auto first = static_cast<int32_t>(begin), last = static_cast<int32_t>(begin + count);
    for (size_t e = 0; e < offsets.size(); ++e) {
      cut[e] = std::clamp(offsets[e], first, last) - first;
    }
    RETURN_IF_ERROR(CopyAsync(device_rows_.data(), rows_.data(), count * row_bytes_, *stream_));
    RETURN_IF_ERROR(CopyAsync(device_offsets_.data(), cut, offsets.size_bytes(), *stream_));
    DeviceRows in;
    in.data = device_rows_.data();
    in.dtype = wire_;
    in.rows = static_cast<int>(count);
    in.cols = config_->hidden_size;
    in.stride = static_cast<int64_t>(row_bytes_ / SizeOf(wire_));
    DeviceRows out = in;
    out.data = device_outputs_.data();
    RETURN_IF_ERROR(layers_->Experts(layer, in, nullptr, device_offsets_.as<int32_t>(), out));
    RETURN_IF_ERROR(CopyAsync(rows_.data(), device_outputs_.data(), count * row_bytes_, *stream_));
    RETURN_IF_ERROR(Synchronize(*stream_));
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(outputs_.data() + (begin + i) * wire_bytes, rows_.data() + i * row_bytes_,
                  wire_bytes);
    }
  }
  return absl::OkStatus();
}

absl::Status StagedExperts::Run(int layer, const LayerStep& step, Dispatcher& dispatcher,
                                const int32_t* positions) {
  const auto tokens = static_cast<size_t>(step.shape.rows);
  const size_t hidden = config_->hidden_size, top_k = config_->gate.top_k;
  const Workspace& w = *workspace_;
  RETURN_IF_ERROR(layers_->Gate(layer, step));
  RETURN_IF_ERROR(CopyAsync(hidden_.data(), w.normed, tokens * hidden * sizeof(float), *stream_));
  RETURN_IF_ERROR(
      CopyAsync(experts_.data(), w.experts, tokens * top_k * sizeof(int32_t), *stream_));
  RETURN_IF_ERROR(
      CopyAsync(weights_.data(), w.gate_weights, tokens * top_k * sizeof(float), *stream_));
  RETURN_IF_ERROR(Synchronize(*stream_));
  const Matrix<float> weights(weights_.as<float>(), {tokens, top_k});
  ASSIGN_OR_RETURN(const DispatchHandle handle,
                   dispatcher.Send(layer, Matrix<float>(hidden_.as<float>(), {tokens, hidden}),
                                   Matrix<int32_t>(experts_.as<int32_t>(), {tokens, top_k}),
                                   weights, {positions, tokens}));
  // Needs no wire: computed while the rows travel.
  ASSIGN_OR_RETURN(const bool shared, layers_->Shared(layer, step));
  ASSIGN_OR_RETURN(const DispatchedRows received, dispatcher.Receive(handle));
  RETURN_IF_ERROR(Compute(layer, received));
  const Rows outputs(outputs_.data(), wire_, received.index.size(), hidden, hidden * SizeOf(wire_));
  RETURN_IF_ERROR(dispatcher.CombineSend(handle, outputs, {sum_.as<float>(), {tokens, hidden}}));
  RETURN_IF_ERROR(dispatcher.CombineReceive(handle));
  RETURN_IF_ERROR(CopyAsync(w.summed, sum_.data(), tokens * hidden * sizeof(float), *stream_));
  return layers_->AddExperts(step, shared);
}

}  // namespace switchyard::cuda

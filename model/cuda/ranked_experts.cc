#include "model/cuda/ranked_experts.h"

#include <algorithm>

#include "common/status_macros.h"

namespace switchyard::cuda {

absl::Status RankedExperts::Create(const ModelConfig& config, DType wire, int device_index,
                                   const Workspace& workspace, DeviceLayers& layers,
                                   const OwnedStream& stream) {
  config_ = &config;
  workspace_ = &workspace;
  layers_ = &layers;
  stream_ = &stream;
  wire_ = wire;
  device_index_ = device_index;
  row_bytes_ = PaddedCols(config.hidden_size) * SizeOf(wire);
  ASSIGN_OR_RETURN(reached_, MakeEvent());
  ASSIGN_OR_RETURN(experts_, PinnedBuffer::Create(static_cast<size_t>(workspace.rows) *
                                                  config.gate.top_k * sizeof(int32_t)));
  return staged_.Create(config, wire, workspace, layers, stream);
}

absl::Status RankedExperts::Begin(Dispatcher& dispatcher) {
  dispatcher_ = &dispatcher;
  auto* const ranks = dynamic_cast<EpDispatcher*>(&dispatcher);
  if (ranks != nullptr) {
    const size_t row = (row_bytes_ + 255) / 256 * 256;
    return lane_.Begin(*ranks, device_index_, std::max(row, kPeerSlotBytes));
  }
  lane_.End();  // one that only the host has
  return absl::OkStatus();
}

absl::Status RankedExperts::Run(int layer, const LayerStep& step, const int32_t* positions) {
  if (lane_.direct()) return RunDirect(layer, step, positions);
  return staged_.Run(layer, step, *dispatcher_, positions);
}

absl::Status RankedExperts::Await(const Event& event) {
  return lane_.direct() ? lane_.Await(event) : absl::OkStatus();
}

absl::Status RankedExperts::Settle() {
  RETURN_IF_ERROR(Record(reached_, *stream_));
  return Await(reached_);
}

void RankedExperts::Abandon() {
  lane_.End();
  static_cast<void>(Synchronize(*stream_));  // the error is known
}

DeviceRows RankedExperts::RowsOf(const DeviceBuffer& buffer, size_t first, size_t rows) const {
  DeviceRows view;
  view.data = buffer.data() + first * row_bytes_;
  view.dtype = wire_;
  view.rows = static_cast<int>(rows);
  view.cols = config_->hidden_size;
  view.stride = static_cast<int64_t>(row_bytes_ / SizeOf(wire_));
  return view;
}

absl::Status RankedExperts::Reserve(size_t rows, DeviceBuffer* buffer) {
  const size_t bytes = rows * row_bytes_;
  if (bytes <= buffer->size()) return absl::OkStatus();
  // Freeing waits for the device: for no other rank, as nothing of this layer has been sent yet.
  *buffer = DeviceBuffer();
  ASSIGN_OR_RETURN(*buffer, DeviceBuffer::Create(bytes + bytes / 4));
  return absl::OkStatus();
}

absl::Status RankedExperts::Route(const EpDispatcher::Plans& plans) {
  MakeRoute(plans.out, plans.in, plans.rank_of, *plans.grouping, &route_);
  const Grouping& grouping = *plans.grouping;
  const size_t rows = grouping.index.size(), part_max = workspace_->expert_rows;
  RETURN_IF_ERROR(Reserve(std::max(route_.out.size(), rows), &going_));
  RETURN_IF_ERROR(Reserve(std::max(grouping.tokens, route_.where.size()), &came_));
  RETURN_IF_ERROR(Reserve(rows, &outputs_));
  // A part may begin and end within an expert.
  offsets_.clear();
  for (size_t begin = 0; begin < rows; begin += part_max) {
    const auto first = static_cast<int32_t>(begin),
               last = static_cast<int32_t>(std::min(rows, begin + part_max));
    for (const int32_t offset : grouping.offsets) {
      offsets_.push_back(std::clamp(offset, first, last) - first);
    }
  }
  const struct {
    const std::vector<int32_t>& values;
    size_t* begin;
  } arrays[] = {{route_.out, &at_.out},
                {grouping.index, &at_.index},
                {route_.back, &at_.back},
                {route_.where, &at_.where},
                {offsets_, &at_.offsets}};
  at_.end = 0;
  for (const auto& [values, begin] : arrays) {
    *begin = at_.end;
    at_.end += values.size();
  }
  const size_t bytes = at_.end * sizeof(int32_t);
  if (bytes > host_arrays_.size()) {
    host_arrays_ = PinnedBuffer();
    device_arrays_ = DeviceBuffer();
    ASSIGN_OR_RETURN(host_arrays_, PinnedBuffer::Create(bytes + bytes / 4));
    ASSIGN_OR_RETURN(device_arrays_, DeviceBuffer::Create(bytes + bytes / 4));
  }
  for (const auto& [values, begin] : arrays) {
    std::copy(values.begin(), values.end(), host_arrays_.as<int32_t>() + *begin);
  }
  return CopyAsync(device_arrays_.data(), host_arrays_.data(), bytes, *stream_);
}

absl::Status RankedExperts::Experts(int layer) {
  const size_t rows = route_.back.size(), part_max = workspace_->expert_rows;
  const int32_t *const index = device_arrays_.as<int32_t>() + at_.index,
                       *offsets = device_arrays_.as<int32_t>() + at_.offsets;
  const DeviceRows tokens = RowsOf(came_, 0, route_.in_first.back());
  const size_t parts = (rows + part_max - 1) / part_max;
  for (size_t begin = 0; begin < rows; begin += part_max) {
    const size_t count = std::min(part_max, rows - begin);
    RETURN_IF_ERROR(
        layers_->Experts(layer, tokens, index + begin, offsets, RowsOf(outputs_, begin, count)));
    offsets += offsets_.size() / parts;
  }
  return absl::OkStatus();
}

absl::Status RankedExperts::RunDirect(int layer, const LayerStep& step, const int32_t* positions) {
  const int rows = step.shape.rows, hidden = config_->hidden_size, top_k = config_->gate.top_k;
  const auto tokens = static_cast<size_t>(rows);
  const Workspace& w = *workspace_;
  const Stream stream = stream_->get();
  RETURN_IF_ERROR(layers_->Gate(layer, step));
  RETURN_IF_ERROR(
      CopyAsync(experts_.data(), w.experts, tokens * top_k * sizeof(int32_t), *stream_));
  RETURN_IF_ERROR(Record(reached_, *stream_));
  // Needs nobody else: computed while plans travel.
  ASSIGN_OR_RETURN(const bool shared, layers_->Shared(layer, step));
  RETURN_IF_ERROR(lane_.Await(reached_));
  auto& ranks = static_cast<EpDispatcher&>(*dispatcher_);  // as Begin found
  ASSIGN_OR_RETURN(
      const EpDispatcher::Plans plans,
      ranks.ExchangePlans(
          layer, Matrix<int32_t>(experts_.as<int32_t>(), {tokens, static_cast<size_t>(top_k)}),
          {positions, tokens}));
  RETURN_IF_ERROR(Route(plans));
  const int32_t* const arrays = device_arrays_.as<int32_t>();
  const auto exchange = [&](const BlockFirsts& from, const BlockFirsts& to) {
    return lane_.Exchange(going_.data(), from, came_.data(), to, row_bytes_, *stream_);
  };
  RETURN_IF_ERROR(GatherRows(stream, DeviceMatrix<float>(w.normed, rows, hidden), arrays + at_.out,
                             RowsOf(going_, 0, route_.out.size())));
  RETURN_IF_ERROR(exchange(route_.out_first, route_.in_first));
  RETURN_IF_ERROR(Experts(layer));
  RETURN_IF_ERROR(GatherRows(stream, RowsOf(outputs_, 0, route_.back.size()), arrays + at_.back,
                             RowsOf(going_, 0, route_.back.size())));
  RETURN_IF_ERROR(exchange(route_.back_first, route_.home_first));
  RETURN_IF_ERROR(CombineSlots(stream, RowsOf(came_, 0, route_.where.size()), arrays + at_.where,
                               w.gate_weights, top_k, /*add=*/false,
                               DeviceMatrix<float>(w.summed, rows, hidden)));
  return layers_->AddExperts(step, shared);
}

}  // namespace switchyard::cuda

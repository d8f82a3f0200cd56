#include "model/cuda/ranked_experts.h"

#include <algorithm>

#include "common/status_macros.h"

namespace switchyard::cuda {

absl::Status RankedExperts::Create(const ModelConfig& config, DType wire, int device_index,
                                   const OwnedStream& stream) {
  config_ = &config;
  stream_ = &stream;
  wire_ = wire;
  device_index_ = device_index;
  row_bytes_ = PaddedCols(config.hidden_size) * SizeOf(wire);
  ASSIGN_OR_RETURN(wire_stream_, MakeStream());
  ASSIGN_OR_RETURN(reached_, MakeEvent());
  ASSIGN_OR_RETURN(quiet_, MakeEvent());
  return absl::OkStatus();
}

absl::Status RankedExperts::AddPart(int part, const Workspace& workspace, DeviceLayers& layers) {
  Part& p = parts_[part];
  p.workspace = &workspace;
  p.layers = &layers;
  for (Event* event : {&p.reached, &p.leaves, &p.came}) {
    ASSIGN_OR_RETURN(*event, MakeEvent());
  }
  ASSIGN_OR_RETURN(p.experts, PinnedBuffer::Create(static_cast<size_t>(workspace.rows) *
                                                   config_->gate.top_k * sizeof(int32_t)));
  return p.staged.Create(*config_, wire_, workspace, layers, *stream_);
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

absl::Status RankedExperts::Await(const Event& event) {
  return lane_.direct() ? lane_.Await(event) : absl::OkStatus();
}

absl::Status RankedExperts::Settle() {
  RETURN_IF_ERROR(Record(reached_, *stream_));
  return Await(reached_);
}

absl::Status RankedExperts::AwaitWire() {
  RETURN_IF_ERROR(Record(quiet_, wire_stream_));
  return Await(quiet_);
}

void RankedExperts::Abandon() {
  lane_.End();
  static_cast<void>(Synchronize(wire_stream_));  // the error is known
  static_cast<void>(Synchronize(*stream_));
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
  // Freeing waits for the device: for no other rank, as the other micro-batch's rows are here by
  // then, and nothing of this one has been sent yet.
  RETURN_IF_ERROR(AwaitWire());
  *buffer = DeviceBuffer();
  ASSIGN_OR_RETURN(*buffer, DeviceBuffer::Create(bytes + bytes / 4));
  return absl::OkStatus();
}

absl::Status RankedExperts::Route(const EpDispatcher::Plans& plans, Part& p) {
  MakeRoute(plans.out, plans.in, plans.rank_of, *plans.grouping, &p.route);
  const Grouping& grouping = *plans.grouping;
  const size_t rows = grouping.index.size(), part_max = p.workspace->expert_rows;
  RETURN_IF_ERROR(Reserve(std::max(p.route.out.size(), rows), &p.going));
  RETURN_IF_ERROR(Reserve(std::max(grouping.tokens, p.route.where.size()), &p.came_rows));
  RETURN_IF_ERROR(Reserve(rows, &p.outputs));
  // A part may begin and end within an expert.
  p.offsets.clear();
  for (size_t begin = 0; begin < rows; begin += part_max) {
    const auto first = static_cast<int32_t>(begin),
               last = static_cast<int32_t>(std::min(rows, begin + part_max));
    for (const int32_t offset : grouping.offsets) {
      p.offsets.push_back(std::clamp(offset, first, last) - first);
    }
  }
  const struct {
    const std::vector<int32_t>& values;
    size_t* begin;
  } arrays[] = {{p.route.out, &p.at.out},
                {grouping.index, &p.at.index},
                {p.route.back, &p.at.back},
                {p.route.where, &p.at.where},
                {p.offsets, &p.at.offsets}};
  p.at.end = 0;
  for (const auto& [values, begin] : arrays) {
    *begin = p.at.end;
    p.at.end += values.size();
  }
  const size_t bytes = p.at.end * sizeof(int32_t);
  if (bytes > p.host_arrays.size()) {
    RETURN_IF_ERROR(AwaitWire());  // as Reserve
    p.host_arrays = PinnedBuffer();
    p.device_arrays = DeviceBuffer();
    ASSIGN_OR_RETURN(p.host_arrays, PinnedBuffer::Create(bytes + bytes / 4));
    ASSIGN_OR_RETURN(p.device_arrays, DeviceBuffer::Create(bytes + bytes / 4));
  }
  for (const auto& [values, begin] : arrays) {
    std::copy(values.begin(), values.end(), p.host_arrays.as<int32_t>() + *begin);
  }
  return CopyAsync(p.device_arrays.data(), p.host_arrays.data(), bytes, *stream_);
}

absl::Status RankedExperts::Exchange(Part& p, const BlockFirsts& from, const BlockFirsts& to) {
  RETURN_IF_ERROR(Record(p.leaves, *stream_));
  RETURN_IF_ERROR(WaitFor(p.leaves, wire_stream_));
  RETURN_IF_ERROR(
      lane_.Exchange(p.going.data(), from, p.came_rows.data(), to, row_bytes_, wire_stream_));
  return Record(p.came, wire_stream_);
}

absl::Status RankedExperts::Open(int part, int layer, const LayerStep& step,
                                 const int32_t* positions) {
  Part& p = parts_[part];
  p.layer = layer;
  p.step = step;
  p.positions = positions;
  // One after the other: the host waits for the device in each.
  if (!lane_.direct()) return p.staged.Run(layer, step, *dispatcher_, positions);
  RETURN_IF_ERROR(p.layers->Gate(layer, step));
  RETURN_IF_ERROR(CopyAsync(
      p.experts.data(), p.workspace->experts,
      static_cast<size_t>(step.shape.rows) * config_->gate.top_k * sizeof(int32_t), *stream_));
  RETURN_IF_ERROR(Record(p.reached, *stream_));
  // Needs nobody else: computed while plans travel.
  ASSIGN_OR_RETURN(p.shared, p.layers->Shared(layer, step));
  return absl::OkStatus();
}

absl::Status RankedExperts::Send(int part) {
  if (!lane_.direct()) return absl::OkStatus();
  Part& p = parts_[part];
  const auto tokens = static_cast<size_t>(p.step.shape.rows),
             top_k = static_cast<size_t>(config_->gate.top_k);
  RETURN_IF_ERROR(lane_.Await(p.reached));
  auto& ranks = static_cast<EpDispatcher&>(*dispatcher_);  // as Begin found
  ASSIGN_OR_RETURN(
      const EpDispatcher::Plans plans,
      ranks.ExchangePlans(p.layer, Matrix<int32_t>(p.experts.as<int32_t>(), {tokens, top_k}),
                          {p.positions, tokens}));
  RETURN_IF_ERROR(Route(plans, p));
  RETURN_IF_ERROR(
      GatherRows(stream_->get(),
                 DeviceMatrix<float>(p.workspace->normed, p.step.shape.rows, config_->hidden_size),
                 p.device_arrays.as<int32_t>() + p.at.out, RowsOf(p.going, 0, p.route.out.size())));
  return Exchange(p, p.route.out_first, p.route.in_first);
}

absl::Status RankedExperts::Compute(int part) {
  if (!lane_.direct()) return absl::OkStatus();
  Part& p = parts_[part];
  RETURN_IF_ERROR(WaitFor(p.came, *stream_));
  const size_t rows = p.route.back.size(), part_max = p.workspace->expert_rows;
  const int32_t* const arrays = p.device_arrays.as<int32_t>();
  const int32_t* offsets = arrays + p.at.offsets;
  const DeviceRows tokens = RowsOf(p.came_rows, 0, p.route.in_first.back());
  const size_t runs = (rows + part_max - 1) / part_max;
  for (size_t begin = 0; begin < rows; begin += part_max) {
    const size_t count = std::min(part_max, rows - begin);
    RETURN_IF_ERROR(p.layers->Experts(p.layer, tokens, arrays + p.at.index + begin, offsets,
                                      RowsOf(p.outputs, begin, count)));
    offsets += p.offsets.size() / runs;
  }
  RETURN_IF_ERROR(GatherRows(stream_->get(), RowsOf(p.outputs, 0, rows), arrays + p.at.back,
                             RowsOf(p.going, 0, rows)));
  return Exchange(p, p.route.back_first, p.route.home_first);
}

absl::Status RankedExperts::Sum(int part) {
  if (!lane_.direct()) return absl::OkStatus();
  Part& p = parts_[part];
  RETURN_IF_ERROR(WaitFor(p.came, *stream_));
  const Workspace& w = *p.workspace;
  RETURN_IF_ERROR(CombineSlots(
      stream_->get(), RowsOf(p.came_rows, 0, p.route.where.size()),
      p.device_arrays.as<int32_t>() + p.at.where, w.gate_weights, config_->gate.top_k,
      /*add=*/false, DeviceMatrix<float>(w.summed, p.step.shape.rows, config_->hidden_size)));
  return p.layers->AddExperts(p.step, p.shared);
}

}  // namespace switchyard::cuda

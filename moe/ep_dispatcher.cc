#include "moe/ep_dispatcher.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "moe/ep_op.h"

namespace switchyard {
namespace {

constexpr size_t kRowFrameBytes = 128 << 10;

// The largest frame that must fit: the plan of a full batch, or one row, which an exchange may want
// in FP32.
size_t FrameBytesNeeded(const EpDispatcher::Options& o) {
  const size_t plan =
      PlanBytes(o.max_tokens, static_cast<size_t>(o.max_tokens) * o.top_k, o.reduced);
  return std::max(plan, static_cast<size_t>(o.hidden) * sizeof(float)) + kEpFrameAlign;
}

size_t LowLatencyBytes(const EpDispatcher::Options& o, size_t tokens) {
  return PaddedToEpFrame(PlanBytes(tokens, tokens * o.top_k, o.reduced)) +
         tokens * TokenBytes(o.dtype, o.int8_tokens, o.hidden) + kEpFrameAlign;
}

}  // namespace

size_t EpDispatcher::RingBytes(const Options& o, size_t wanted) {
  size_t needed = FrameBytesNeeded(o);
  if (o.low_latency_tokens > 0) {
    needed = std::max(needed, LowLatencyBytes(o, std::min(o.low_latency_tokens, o.max_tokens)));
  }
  return std::bit_ceil(std::max(wanted, 4 * needed));
}

absl::StatusOr<std::unique_ptr<EpDispatcher>> EpDispatcher::Create(
    EpGroup* group, std::shared_ptr<const Placement> placement, const Options& options) {
  const auto refuse = [](const char* name, int64_t value, int64_t low, int64_t high) {
    return absl::InvalidArgumentError(
        absl::StrCat("EpDispatcher: ", name, " is ", value, "; allowed are ", low, " to ", high));
  };
  if (placement->ranks() != group->world()) {
    return refuse("ranks of the placement", placement->ranks(), group->world(), group->world());
  }
  for (int r = 0; r < group->world(); ++r) {
    if (group->present(r)) continue;
    for (int l = 0; l < placement->layers(); ++l) {
      for (const int32_t e : placement->Hosted(l, RankId(r))) {
        if (e >= 0) return refuse("experts of an absent rank: expert", e, -1, -1);
      }
    }
  }
  if (placement->slots_per_rank() > kPlanSlotsMax) {
    return refuse("experts of a rank", placement->slots_per_rank(), 1, kPlanSlotsMax);
  }
  const int top_k_max = std::min(kPlanTopKMax, placement->experts());
  if (options.top_k < 1 || options.top_k > top_k_max) {
    return refuse("top_k", options.top_k, 1, top_k_max);
  }
  if (options.tensor_ranks < 1 || group->world() % options.tensor_ranks != 0) {
    return refuse("tensor_ranks, which divides the ranks,", options.tensor_ranks, 1,
                  group->world());
  }
  if (options.int8_tokens && options.dtype != DType::kBfloat16) {
    return absl::InvalidArgumentError(absl::StrCat("EpDispatcher: int8_tokens of ",
                                                   std::string(Name(options.dtype)),
                                                   " rows; only of bfloat16"));
  }
  if (options.device_ctas < 0 || options.device_ctas > kDeviceCtasMax) {
    return refuse("device_ctas", options.device_ctas, 0, kDeviceCtasMax);
  }
  if (options.hidden < 1) return refuse("hidden", options.hidden, 1, INT32_MAX);
  const int tokens_max = INT32_MAX / options.top_k;
  if (options.max_tokens < 1 || options.max_tokens > tokens_max) {
    return refuse("max_tokens", options.max_tokens, 1, tokens_max);
  }
  const size_t ring = group->options().ring_bytes;
  if (RingBytes(options, 0) > ring) {
    return refuse("ring_bytes", static_cast<int64_t>(ring),
                  static_cast<int64_t>(RingBytes(options, 0)), kEpRingBytesMax);
  }
  std::unique_ptr<EpDispatcher> d(new EpDispatcher(group, std::move(placement), options));
  ASSIGN_OR_RETURN(d->progress_,
                   EpProgress::Create(
                       group, [d = d.get()] { return d->Pump(); },
                       [d = d.get()](int peer) { return !d->queues_[peer].empty(); }));
  return d;
}

EpDispatcher::EpDispatcher(EpGroup* group, std::shared_ptr<const Placement> placement,
                           const Options& options)
    : group_(*group),
      placement_(std::move(placement)),
      options_(options),
      wire_(RowCodecOf(options.dtype)),
      tokens_(TokenCodecOf(options.dtype, options.int8_tokens)),
      token_bytes_(TokenBytes(options.dtype, options.int8_tokens, options.hidden)),
      frame_tokens_(RowsOfFrame(token_bytes_)),
      row_bytes_(static_cast<size_t>(options.hidden) * SizeOf(options.dtype)),
      frame_rows_(RowsOfFrame(row_bytes_)),
      policy_(options.overlap),
      sum_(options.reduced ? options.hidden : 0),
      own_sum_(options.reduced ? row_bytes_ : 0),
      exchange_(std::make_unique<ExchangeState>()),
      queues_(group->world()),
      counts_(static_cast<size_t>(placement_->layers()) * placement_->experts()) {
  for (auto& op : in_flight_) {
    op = std::make_unique<Op>();
    op->out.resize(group->world());
    op->in.resize(group->world());
  }
}

EpDispatcher::~EpDispatcher() = default;

size_t EpDispatcher::RowsOfFrame(size_t row_bytes) const {
  const size_t frame = std::min(kRowFrameBytes, group_.options().ring_bytes / 4 - kEpFrameAlign);
  return std::max<size_t>(1, frame / row_bytes);
}

DispatchShape EpDispatcher::Shape() const {
  return {.experts = placement_->experts(),
          .top_k = options_.top_k,
          .hidden = options_.hidden,
          .max_tokens = options_.max_tokens,
          .dtype = options_.dtype};
}

bool EpDispatcher::InFlight() const {
  return in_flight_[0]->state != State::kIdle || in_flight_[1]->state != State::kIdle;
}

bool EpDispatcher::UsesLowLatency(const Options& options, std::span<const StepHeader> headers) {
  return std::all_of(headers.begin(), headers.end(), [&](const StepHeader& h) {
    return h.rows <= static_cast<uint32_t>(options.low_latency_tokens);
  });
}

void EpDispatcher::BeginStep(std::span<const StepHeader> headers) {
  low_latency_ = UsesLowLatency(options_, headers);
  split_ = policy_.Split(headers);
  overlapped_steps_ += split_;
  step_began_ = group_.clock().Now();
  std::fill(counts_.begin(), counts_.end(), 0);
}

void EpDispatcher::UsePlacement(std::shared_ptr<const Placement> placement) {
  SY_CHECK(placement->layers() == placement_->layers() &&
           placement->experts() == placement_->experts() &&
           placement->ranks() == placement_->ranks() &&
           placement->slots_per_rank() == placement_->slots_per_rank());
  for (const auto& op : in_flight_) SY_CHECK(op->state == State::kIdle);
  placement_ = std::move(placement);
}

absl::StatusOr<DispatchHandle> EpDispatcher::Send(int layer, Matrix<const float> hidden,
                                                  Matrix<const int32_t> experts,
                                                  Matrix<const float> weights,
                                                  std::span<const int32_t> positions) {
  const EpProgress::Hold hold(*progress_);
  ASSIGN_OR_RETURN(const Op* const op, Start(layer, hidden, experts, weights, positions, false));
  return DispatchHandle{op->id};
}

absl::StatusOr<EpDispatcher::Plans> EpDispatcher::ExchangePlans(
    int layer, Matrix<const int32_t> experts, std::span<const int32_t> positions) {
  if (options_.reduced) {
    return absl::UnimplementedError("plans without rows: not with reduced outputs");
  }
  const EpProgress::Hold hold(*progress_);
  const auto elsewhere = [&](size_t cols) {
    return Matrix<const float>(nullptr, {experts.rows(), cols});
  };
  ASSIGN_OR_RETURN(Op* const op, Start(layer, elsewhere(options_.hidden), experts,
                                       elsewhere(options_.top_k), positions, /*plans_only=*/true));
  RETURN_IF_ERROR(WaitFor([&] { return Received(*op); }, *op, "plans"));
  op->state = State::kIdle;
  return Plans{op->out, op->in, op->rank_of, &op->grouping};
}

absl::StatusOr<EpDispatcher::Op*> EpDispatcher::Start(int layer, Matrix<const float> hidden,
                                                      Matrix<const int32_t> experts,
                                                      Matrix<const float> weights,
                                                      std::span<const int32_t> positions,
                                                      bool plans_only) {
  if (layer < 0 || layer >= placement_->layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("dispatch: layer ", layer, " of ", placement_->layers()));
  }
  RETURN_IF_ERROR(CheckDispatch(Shape(), hidden, experts, weights, positions));
  Op& op = at(next_id_);
  if (op.state != State::kIdle) {
    return absl::FailedPreconditionError("a third dispatch: two are in flight");
  }
  op.state = State::kSent;
  op.id = next_id_++;
  op.layer = layer;
  op.low_latency = low_latency_ && !plans_only;
  op.plans_only = plans_only;
  op.grouped = false;
  op.tokens = hidden.rows();
  op.hidden = hidden;
  op.weights = weights;
  op.summed = 0;
  op.peers.assign(group_.world(), {});
  MakePlans(*placement_, layer, experts, positions, op.out, &op.rank_of,
            options_.reduced ? weights : Matrix<const float>());
  if (options_.reduced) OrderReduced(op.rank_of, options_.top_k, &op.reduced);
  int32_t* const counts = counts_.data() + static_cast<size_t>(layer) * placement_->experts();
  for (size_t t = 0; t < experts.rows(); ++t) {
    for (size_t k = 0; k < experts.cols(); ++k) ++counts[experts(t, k)];
  }
  const int self = group_.rank();
  op.in[self] = op.out[self];
  bool alone = true;
  for (int p = 0; p < group_.world(); ++p) {
    op.peers[p].plan_in = group_.link(p) == nullptr;  // of absent ranks an empty one
    if (op.peers[p].plan_in) continue;
    queues_[p].push_back({.op = &op, .combine = false});
    alone = false;
  }
  if (alone) Group(op);
  Pump();
  progress_->Enable(split_ && !plans_only);  // rows between devices go without it
  RETURN_IF_ERROR(group_.status());
  return &op;
}

absl::StatusOr<EpDispatcher::Op*> EpDispatcher::Expect(DispatchHandle handle, State state) {
  RETURN_IF_ERROR(group_.status());
  Op& op = at(handle.id);
  const Op& other = at(handle.id + 1);
  const bool other_is_older = other.state != State::kIdle && other.id < handle.id;
  if (op.state != state || op.id != handle.id || (other_is_older && other.state <= state)) {
    return absl::FailedPreconditionError(
        absl::StrCat("dispatch ", handle.id, ": call out of order"));
  }
  return &op;
}

absl::Status EpDispatcher::WaitFor(FunctionRef<bool()> done, const Op& op, const char* phase) {
  const auto turn = [&] {
    Pump();
    return done() && Sent(op);
  };
  if (turn()) return absl::OkStatus();
  const absl::Time began = group_.clock().Now();
  const auto missing = [&] {
    std::string late;
    for (int p = 0; p < group_.world(); ++p) {
      if (group_.link(p) == nullptr) continue;
      const bool combine = op.state == State::kReturned;
      const bool here = combine ? op.peers[p].returned == ReturnsOf(op.out[p])
                                : op.peers[p].plan_in && op.peers[p].rows_in == op.RowsOf(p);
      if (!here || !queues_[p].empty()) absl::StrAppend(&late, " ", p);
    }
    return absl::StrCat(phase, " of layer ", op.layer, ": not finished with rank(s)", late);
  };
  absl::Status waited = group_.Wait(
      turn, [this](int peer) { return !queues_[peer].empty(); }, missing);
  (op.state == State::kReturned ? waited_.combine : waited_.dispatch) +=
      group_.clock().Now() - began;
  return waited;
}

absl::StatusOr<DispatchedRows> EpDispatcher::Receive(DispatchHandle handle) {
  const EpProgress::Hold hold(*progress_);
  ASSIGN_OR_RETURN(Op* const op, Expect(handle, State::kSent));
  RETURN_IF_ERROR(WaitFor([&] { return Received(*op); }, *op, "dispatch"));
  op->state = State::kReceived;
  const size_t width = options_.hidden;
  return DispatchedRows{{op->rows.data(), options_.dtype, op->grouping.tokens, width, row_bytes_},
                        op->grouping.index,
                        op->grouping.offsets};
}

absl::Status EpDispatcher::CombineSend(DispatchHandle handle, ConstRows expert_rows,
                                       Matrix<float> out) {
  const EpProgress::Hold hold(*progress_);
  ASSIGN_OR_RETURN(Op* const op, Expect(handle, State::kReceived));
  const auto rows = static_cast<size_t>(op->grouping.offsets.back());
  RETURN_IF_ERROR(CheckCombine(Shape(), op->tokens, rows, expert_rows, out));
  op->expert_rows = expert_rows;
  op->sums = out;
  op->state = State::kReturned;
  for (int p = 0; p < group_.world(); ++p) {
    if (group_.link(p) != nullptr) queues_[p].push_back({.op = op, .combine = true});
  }
  Pump();
  return group_.status();
}

absl::Status EpDispatcher::CombineReceive(DispatchHandle handle) {
  const EpProgress::Hold hold(*progress_);
  ASSIGN_OR_RETURN(Op* const op, Expect(handle, State::kReturned));
  RETURN_IF_ERROR(WaitFor([&] { return op->done(); }, *op, "combine"));
  op->state = State::kIdle;
  const absl::Duration took = group_.clock().Now() - step_began_;
  step_micros_ =
      static_cast<uint32_t>(std::clamp<int64_t>(absl::ToInt64Microseconds(took), 1, UINT32_MAX));
  progress_->Enable(split_ && InFlight());
  return absl::OkStatus();
}

}  // namespace switchyard

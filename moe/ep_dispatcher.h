// moe/ep_dispatcher.h: a group's dispatcher: rows travel as frames through the rings between ranks
// (ep_link.h), by plans that both ends derive from the sender's (ep_plan.h).
//
// Two paths, chosen for a step by its headers alone (UsesLowLatency):
//   throughput   the plan goes ahead as a frame of its own; rows follow in frames of many, and each
//                is put in its place as it comes. For prompts: a dispatch may exceed the rings.
//   low latency  plan and rows are one frame, read where it lies when all ranks' have come. For
//                decode: half the messages, no wait between counts and rows.
// Either way a token goes once to a rank, expert outputs return unreduced in the order of the
// plan's entries, and the token's own rank sums them, in slot order, straight from the rings.
// Reduced: a rank sums its experts' outputs for a token in slot order in FP32 and rounds the sum to
// the type of the wire; the token's own rank adds those in the order of the ranks: other bits in
// each placement.
// In a step of two micro-batches (ep_overlap.h) frames move while the caller computes
// (ep_progress.h). Tensor-parallel ranks exchange rows of attention through it (row_exchange.h).
//
// Owned by the engine thread. Letters as in dispatch.h and ep_plan.h; N ranks.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "common/bf16.h"
#include "kernels/gemm.h"
#include "moe/dispatch.h"
#include "moe/ep_group.h"
#include "moe/ep_overlap.h"
#include "moe/ep_plan.h"
#include "moe/ep_progress.h"
#include "moe/ep_waits.h"
#include "moe/placement.h"
#include "moe/row_codec.h"
#include "moe/row_exchange.h"

namespace switchyard {

// How rows travel between ranks that compute on devices, equal on all: by NCCL, into each other's
// memory, by frames through the host, or by the first of these that can be.
enum class DeviceLane { kAuto, kDirect, kPeer, kStaged };
inline constexpr int kDeviceCtasMax = 64;  // as many as NCCL takes

class EpDispatcher final : public Dispatcher, public RowExchange {
 public:
  struct Options {
    int top_k = 0;                   // K, at most kPlanTopKMax
    int hidden = 0;                  // H
    int max_tokens = 0;              // T of one dispatch at most, of any rank
    DType dtype = DType::kBfloat16;  // of the rows that experts get and give, and on the wire
    bool int8_tokens = false;        // TokenCodecOf; only with kBfloat16
    bool reduced = false;
    int low_latency_tokens = 128;  // T of every rank at most; 0: always the throughput path
    EpOverlap overlap = EpOverlap::kOff;
    int tensor_ranks = 1;  // so many neighbours exchange rows; divides N
    DeviceLane device_lane = DeviceLane::kAuto;
    int device_ctas = 0;  // multiprocessors that rows between devices may take; 0: any
  };
  // The size of ring that these options need: a power of two, `wanted` if that is enough.
  static size_t RingBytes(const Options& options, size_t wanted);

  // `group` is connected and outlives the dispatcher. Options and placement are the same on all
  // ranks. Errors: kInvalidArgument names the option that is out of range.
  static absl::StatusOr<std::unique_ptr<EpDispatcher>> Create(
      EpGroup* group, std::shared_ptr<const Placement> placement, const Options& options);
  ~EpDispatcher() override;

  // The path of a step whose headers are `headers` [N].
  static bool UsesLowLatency(const Options& options, std::span<const StepHeader> headers);
  // To be called once per step, before its first Send, with what OpenStep returned.
  void BeginStep(std::span<const StepHeader> headers);
  // Between two steps, on all ranks between the same two: rows go by `placement` from now on. Its
  // shape is that of the one before.
  void UsePlacement(std::shared_ptr<const Placement> placement);

  int micro_batches() const override { return split_ ? 2 : 1; }
  int local_experts() const override { return placement_->slots_per_rank(); }
  int LogicalExpert(int layer, int local) const override {
    return placement_->Hosted(layer, RankId(group_.rank()))[local];
  }
  absl::StatusOr<DispatchHandle> Send(int layer, Matrix<const float> hidden,
                                      Matrix<const int32_t> experts, Matrix<const float> weights,
                                      std::span<const int32_t> positions) override;
  absl::StatusOr<DispatchedRows> Receive(DispatchHandle handle) override;
  absl::Status CombineSend(DispatchHandle handle, ConstRows expert_rows,
                           Matrix<float> out) override;
  absl::Status CombineReceive(DispatchHandle handle) override;

  // The control half alone, for who moves rows between devices himself (model/cuda): all ranks tell
  // each other their plans, in the place of a dispatch. Valid until the next call but one. Errors:
  // Send's and Receive's.
  struct Plans {
    std::span<const RankPlan> out, in;  // [N] to and from each rank; this rank's own in both
    std::span<const int32_t> rank_of;   // [T, K]
    const Grouping* grouping = nullptr;
  };
  absl::StatusOr<Plans> ExchangePlans(int layer, Matrix<const int32_t> experts,
                                      std::span<const int32_t> positions);
  // What bytes_sent() counts too.
  void CountSent(uint64_t bytes) { bytes_sent_ += bytes; }
  EpGroup& group() { return group_; }
  DeviceLane device_lane() const { return options_.device_lane; }
  int device_ctas() const { return options_.device_ctas; }
  // How rows travel between devices, in words, from who decides it (model/cuda); empty: not yet.
  const std::string& rows_travel() const { return rows_travel_; }
  void SetRowsTravel(std::string how) { rows_travel_ = std::move(how); }

  int rank() const override { return group_.rank() % options_.tensor_ranks; }
  int ranks() const override { return options_.tensor_ranks; }
  absl::Status Exchange(std::span<const Matrix<const float>> to,
                        std::span<const Matrix<float>> from, DType wire) override;

  // Payload bytes that this rank has put into rings, plans included, since Create.
  uint64_t bytes_sent() const { return bytes_sent_; }
  // Steps of two micro-batches, and how long calls have waited for other ranks, since Create.
  uint64_t overlapped_steps() const { return overlapped_steps_; }
  const EpWaits& waited() const { return waited_; }
  // From the last BeginStep to the last CombineReceive that returned, or 0: for StepHeader.
  uint32_t step_micros() const { return step_micros_; }
  // How many of this rank's tokens chose each logical expert since BeginStep [L, E].
  Matrix<const int32_t> step_counts() const {
    const size_t layers = placement_->layers(), experts = placement_->experts();
    return {counts_.data(), {layers, experts}};
  }

 private:
  enum class State : uint8_t { kIdle, kSent, kReceived, kReturned };
  struct Op;
  struct ExchangeState;
  struct Piece {  // of what goes to one peer, in the order of the calls
    Op* op;       // null: of the exchange
    bool combine, plan_sent = false;
    size_t next = 0;        // row
    size_t next_entry = 0;  // of a reduced combine
  };

  EpDispatcher(EpGroup* group, std::shared_ptr<const Placement> placement, const Options& options);
  Op& at(uint64_t id) { return *in_flight_[id % 2]; }
  absl::StatusOr<Op*> Expect(DispatchHandle handle, State state);

  // Plans what is to be sent, and begins to send it.
  absl::StatusOr<Op*> Start(int layer, Matrix<const float> hidden, Matrix<const int32_t> experts,
                            Matrix<const float> weights, std::span<const int32_t> positions,
                            bool plans_only);
  DispatchShape Shape() const;
  bool InFlight() const;
  // Moves what can be moved in both directions, without blocking. True if anything was.
  bool Pump();
  bool SendPiece(int peer, Piece& piece);  // true: all of it is in the ring
  bool SendDispatch(int peer, Piece& piece);
  bool SendCombine(int peer, Piece& piece);
  bool SendExchange(int peer, Piece& piece);
  bool TakeExchange(int peer, const EpFrameHeader& frame);
  int first_mate() const { return group_.rank() - rank(); }
  bool Sent(const Op& op) const;  // nothing of it is left to send
  bool TakeFrame(int peer);       // true if it got further with the peer's oldest frame
  bool TakePlan(Op& op, int peer, const EpFrameHeader& frame);
  void Group(Op& op);  // once all plans are here
  void Place(Op& op, int peer, const std::byte* rows, size_t count);
  bool Received(const Op& op) const;
  size_t ReturnsOf(const RankPlan& plan) const {  // rows
    return options_.reduced ? plan.counts.size() : plan.slots.size();
  }
  // Row `row` of what returns to `peer`, into `to`. `entry` is the cursor of a reduced combine.
  void OutputRow(const Op& op, int peer, size_t row, size_t* entry, std::byte* to);
  bool SumReturned(Op& op);            // true if it got further
  const std::byte* OwnOutput(Op& op);  // the next row that returns; of `peer`: or null
  const std::byte* NextReturned(Op& op, int peer);
  absl::Status WaitFor(FunctionRef<bool()> done, const Op& op, const char* phase);
  std::byte* Begin(int peer, size_t bytes);
  void Commit(int peer, EpFrameKind kind, uint64_t op, size_t first, size_t count, size_t entries,
              size_t bytes);
  // Of a frame, which stays in a core's cache from writer to reader, and is worth a doorbell.
  size_t RowsOfFrame(size_t row_bytes) const;

  EpGroup& group_;
  std::shared_ptr<const Placement> placement_;
  const Options options_;
  const RowCodec& wire_;
  const TokenCodec& tokens_;
  const size_t token_bytes_, frame_tokens_;   // of a token on the wire; tokens of a frame
  const size_t row_bytes_, frame_rows_;       // the same of an output, as it is in memory
  bool low_latency_ = false, split_ = false;  // this step
  OverlapPolicy policy_;
  absl::Time step_began_;
  std::vector<float> sum_;            // [H] of a reduced combine
  AlignedBuffer own_sum_;             // the same of this rank's own, as if it had travelled
  std::unique_ptr<Op> in_flight_[2];  // dispatch id is in slot id % 2
  std::unique_ptr<ExchangeState> exchange_;
  uint64_t next_id_ = 0;
  std::vector<std::deque<Piece>> queues_;  // [N]
  std::vector<int32_t> counts_;            // [L, E]
  uint64_t bytes_sent_ = 0, overlapped_steps_ = 0;
  EpWaits waited_;
  uint32_t step_micros_ = 0;
  std::string rows_travel_;
  std::unique_ptr<EpProgress> progress_;  // goes first: its thread uses all the rest
};

}  // namespace switchyard

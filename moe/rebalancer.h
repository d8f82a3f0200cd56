// moe/rebalancer.h: when the ranks of a group change their placement while they serve. A state
// machine without I/O, one on each rank; they agree by the headers that open every step
// (moe/ep_wire.h), of which all ranks see the same.
//
//   idle ─(rank 0 wants to, nobody is busy)─► all tell their loads ─► each plans and fetches
//     ▲                                                                         │
//     └──── nothing to gain ─┬─ somebody gave up, or plans differ ─┬─ all ready: all switch
//
// One round at a time: a rank that still works keeps the next one from beginning. Whatever happens
// to a rank, the others' headers say the same to all: either all switch before the step's first
// dispatch or none does. A round ends with its epoch. What comes of ranks that switched while
// others heard of a loss instead: they tell their placements when they meet again, and the highest
// version counts (engine/ep_rank.h).
//
// Owned by the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/tensor_view.h"
#include "moe/ep_wire.h"

namespace switchyard {

class Rebalancer {
 public:
  // What all ranks do, between the headers of a step and its first dispatch.
  enum class Act {
    kNone,
    kGather,  // tell each other their loads: Begin
    kSwitch,  // to the placement that all are ready for: then End
    kDrop,    // what was planned and fetched: then End
  };

  // A round begins `interval` after the last one at the earliest; 0: rank 0 begins none. Loads are
  // [layers, experts].
  Rebalancer(absl::Duration interval, int layers, int experts)
      : interval_(interval), loads_(static_cast<size_t>(layers) * experts) {}

  // counts [L, E]: tokens of this rank in a step that has ended.
  void Count(Matrix<const int32_t> counts);
  // What this rank says in the header of its next step.
  void Fill(int rank, absl::Time now, StepHeader* mine);
  // headers [N]: of the step; those of absent ranks are all zero.
  Act OnHeaders(std::span<const StepHeader> headers) const;

  // kGather: this rank is busy from now on. Returns the loads since the last round [L · E].
  std::vector<int64_t> Begin(absl::Time now);
  // It has fetched all that a placement with that digest (not 0) needs.
  void Ready(uint64_t digest) { Settle(State::kReady, digest); }
  // It could not: all are to drop the round.
  void GiveUp() { Settle(State::kGaveUp, 0); }
  // There was nothing to gain, all have switched or dropped, or the epoch is over.
  void End() { state_ = State::kIdle; }

  // A round is under way on this rank.
  bool busy() const { return state_ != State::kIdle; }
  // The others do not know yet that this rank is ready, or gave up: it opens a step to tell.
  bool untold() const { return untold_ && busy(); }

 private:
  enum class State : uint8_t { kIdle, kWorking, kReady, kGaveUp };
  void Settle(State state, uint64_t digest) {
    state_ = state;
    digest_ = digest;
    untold_ = true;
  }

  const absl::Duration interval_;
  std::vector<int64_t> loads_;  // [L · E]
  State state_ = State::kIdle;
  uint64_t digest_ = 0;
  bool untold_ = false;
  absl::Time last_ = absl::InfinitePast();  // round, or first header
};

}  // namespace switchyard

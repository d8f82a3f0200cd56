#include "decode/attempt_join.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {
template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

// Repeats of one call that wait for the same answer.
constexpr size_t kWaitersMax = 8;
}  // namespace

AttemptJoin::Effects AttemptJoin::Step(const Event& event, absl::Time now) {
  Effects out;
  std::visit(
      Overloaded{
          [&](const Submitted& e) { OnSubmitted(e, now, &out); },
          [&](const ReserveCalled& e) { OnReserve(e, &out); },
          [&](const Leased& e) { OnLeased(e, now, &out); },
          [&](const Opened& e) { OnOpened(e, now, &out); },
          [&](const CommitCalled& e) { OnCommit(e, &out); },
          [&](const KvCommitted& e) { OnKvCommitted(e, now, &out); },
          [&](const Dropped& e) {
            blocks_ = Blocks::kNone;
            End(e.why, /*tell_router=*/true, now, &out);
          },
          [&](const Adopted& e) { OnAdopted(e, now, &out); },
          [&](const CancelCalled& e) {
            if (peer_token_ != 0 && e.peer_token != peer_token_) return;  // not its own
            // Until the engine has it, the prefill rank tells the router itself: why it failed, or
            // that the first token was the last. A word from here could overtake that one.
            cancelled_ = phase_ != Phase::kRunning && !ended();
            End(absl::AbortedError("the prefill rank cancelled the hand-off"),
                /*tell_router=*/!cancelled_, now, &out);
          },
          [&](const Aborted&) {
            End(absl::AbortedError("the attempt was aborted"), /*tell_router=*/false, now, &out);
          },
          [&](const Finished&) {
            if (blocks_ == Blocks::kEngines) blocks_ = Blocks::kNone;
            End(absl::AbortedError("the attempt has finished"), /*tell_router=*/false, now, &out);
          },
          [&](const Tick&) {
            if (ended()) return;
            if (now >= deadline_) {
              End(absl::DeadlineExceededError("the attempt's deadline passed on the decode rank"),
                  /*tell_router=*/true, now, &out);
            } else if (now >= join_by_) {
              End(absl::AbortedError("the router did not submit the attempt in time"),
                  /*tell_router=*/false, now, &out);
            }
          },
      },
      event);
  return out;
}

void AttemptJoin::OnSubmitted(const Submitted& e, absl::Time now, Effects* out) {
  if (ended()) {
    if (!submitted_ && !cancelled_) out->push_back({.what = Do::kSendError, .status = end_});
    submitted_ = true;
    return;
  }
  if (submitted_) return;
  submitted_ = true;
  deadline_ = e.deadline;
  join_by_ = absl::InfiniteFuture();
  if (e.remote_prefill) return MaybeAdopt(out);
  if (phase_ != Phase::kNew) {
    return End(absl::FailedPreconditionError("submitted without a hand-off, but one is under way"),
               /*tell_router=*/true, now, out);
  }
  phase_ = Phase::kAdopting;
  out->push_back({.what = Do::kAddToEngine});
}

void AttemptJoin::OnReserve(const ReserveCalled& e, Effects* out) {
  const auto answer = [&](absl::Status s) {
    out->push_back({.what = Do::kAnswerReserve, .waiter = e.waiter, .status = std::move(s)});
  };
  if (ended()) return answer(end_);
  if (phase_ == Phase::kNew) {
    phase_ = Phase::kReserved;
    peer_token_ = e.peer_token;
    tokens_ = e.tokens;
    join_by_ = absl::InfiniteFuture();  // the lease decides
    blocks_ = Blocks::kLeasing;
    reserve_waiters_.push_back(e.waiter);
    out->push_back({.what = Do::kLease, .waiter = e.waiter});
    return;
  }
  if (e.peer_token != peer_token_ || e.tokens != tokens_) {
    return answer(absl::FailedPreconditionError("the attempt has another hand-off or none"));
  }
  if (opened_) return answer(absl::OkStatus());
  if (reserve_waiters_.size() >= kWaitersMax) {
    return answer(absl::ResourceExhaustedError("too many repeats of one Reserve"));
  }
  reserve_waiters_.push_back(e.waiter);
}

void AttemptJoin::OnLeased(const Leased& e, absl::Time now, Effects* out) {
  if (blocks_ != Blocks::kLeasing) return;
  if (!e.status.ok()) {
    blocks_ = Blocks::kNone;
    return End(e.status, /*tell_router=*/false, now, out);  // the prefill rank tells it
  }
  blocks_ = Blocks::kOurs;
  if (ended()) return FreeOurs(out);
  blocks_ = Blocks::kOpening;
  out->push_back({.what = Do::kOpen});
}

void AttemptJoin::OnOpened(const Opened& e, absl::Time now, Effects* out) {
  if (blocks_ != Blocks::kOpening) return;
  if (!e.status.ok()) {
    blocks_ = Blocks::kOurs;
    if (!ended() && absl::IsUnauthenticated(e.status)) {
      // Not the attempt's fault: the peer introduces itself again and comes back, unless it dies.
      phase_ = Phase::kNew;
      peer_token_ = 0;
      if (!submitted_) join_by_ = now + options_.submit_wait;
      AnswerAll(Do::kAnswerReserve, &reserve_waiters_, e.status, out);
    } else {
      End(e.status, /*tell_router=*/false, now, out);
    }
    return FreeOurs(out);
  }
  blocks_ = Blocks::kReceivers;
  opened_ = true;
  AnswerAll(Do::kAnswerReserve, &reserve_waiters_, absl::OkStatus(), out);
}

void AttemptJoin::OnCommit(const CommitCalled& e, Effects* out) {
  const auto answer = [&](absl::Status s) {
    out->push_back({.what = Do::kAnswerCommit, .waiter = e.waiter, .status = std::move(s)});
  };
  if (peer_token_ == 0 || e.peer_token != peer_token_) {
    return answer(ended() ? end_ : absl::NotFoundError("no such hand-off of this peer"));
  }
  if (adopted_) return answer(absl::OkStatus());  // a repeat, and be it after the end
  if (ended()) return answer(end_);
  if (!opened_) return answer(absl::FailedPreconditionError("nothing has been reserved yet"));
  if (commit_waiters_.size() >= kWaitersMax) {
    return answer(absl::ResourceExhaustedError("too many repeats of one Commit"));
  }
  commit_waiters_.push_back(e.waiter);
  if (phase_ != Phase::kReserved) return;  // a repeat: the first one's answer is its too
  phase_ = Phase::kCommitting;
  out->push_back({.what = Do::kCommitKv, .waiter = e.waiter});
}

void AttemptJoin::OnKvCommitted(const KvCommitted& e, absl::Time now, Effects* out) {
  if (blocks_ != Blocks::kReceivers) return;
  if (!e.status.ok()) {
    blocks_ = Blocks::kNone;  // the receiver has dropped the session and said so
    return End(e.status, /*tell_router=*/true, now, out);
  }
  blocks_ = Blocks::kOurs;
  if (ended()) return FreeOurs(out);
  phase_ = Phase::kJoined;
  if (!submitted_) join_by_ = now + options_.submit_wait;
  MaybeAdopt(out);
}

void AttemptJoin::MaybeAdopt(Effects* out) {
  if (phase_ != Phase::kJoined || !submitted_) return;
  phase_ = Phase::kAdopting;
  out->push_back({.what = Do::kAdopt});
}

void AttemptJoin::OnAdopted(const Adopted& e, absl::Time now, Effects* out) {
  if (ended()) {  // meanwhile aborted: the engine's abort follows and frees what was adopted
    if (blocks_ != Blocks::kOurs) return;
    if (!e.status.ok()) return FreeOurs(out);
    blocks_ = Blocks::kNone;
    return;
  }
  if (phase_ != Phase::kAdopting) return;
  if (!e.status.ok()) {
    phase_ = Phase::kJoined;  // the engine has nothing of it
    return End(e.status, /*tell_router=*/true, now, out);
  }
  phase_ = Phase::kRunning;
  adopted_ = true;
  blocks_ = Blocks::kEngines;
  AnswerAll(Do::kAnswerCommit, &commit_waiters_, absl::OkStatus(), out);
}

void AttemptJoin::FreeOurs(Effects* out) {
  if (blocks_ != Blocks::kOurs) return;
  blocks_ = Blocks::kNone;
  out->push_back({.what = Do::kFreeBlocks});
}

void AttemptJoin::AnswerAll(Do what, std::vector<WaiterId>* waiters, const absl::Status& s,
                            Effects* out) {
  for (const WaiterId waiter : *waiters) {
    out->push_back({.what = what, .waiter = waiter, .status = s});
  }
  waiters->clear();
}

void AttemptJoin::End(absl::Status why, bool tell_router, absl::Time now, Effects* out) {
  if (ended()) return;
  const Phase was = phase_;
  phase_ = Phase::kEnded;
  end_ = std::move(why);
  forget_at_ = now + options_.tombstone;
  if (tell_router && submitted_) out->push_back({.what = Do::kSendError, .status = end_});
  AnswerAll(Do::kAnswerReserve, &reserve_waiters_, end_, out);
  AnswerAll(Do::kAnswerCommit, &commit_waiters_, end_, out);
  if (blocks_ == Blocks::kOpening || blocks_ == Blocks::kReceivers) {
    out->push_back({.what = Do::kCancelKv});  // Opened, KvCommitted or Dropped follows
  } else if (was == Phase::kAdopting || blocks_ == Blocks::kEngines) {
    if (blocks_ == Blocks::kEngines) blocks_ = Blocks::kNone;
    out->push_back({.what = Do::kAbortEngine});  // runs after an Adopt that is under way
  } else if (was == Phase::kJoined) {
    FreeOurs(out);
  }
}

}  // namespace switchyard

// decode/attempt_join.h: one attempt on a decode rank. Its request comes from the router (Submit),
// its KV from a prefill rank (Reserve, Commit), in any order; this class joins the two and knows at
// each moment who owns the blocks. No I/O, no clock, no thread: decode_worker.cc feeds it and does
// what it says.
//
//   Reserve ─► leasing ─► opening ─► receiving ─Commit─► committing ─► joined ─Submit─► adopting
//   Submit without a hand-off ────────────────────────────────────────────────────────► adopting
//   adopting ─► running ─► ended
// Any phase ends by abort (router), cancel (prefill rank), lost lease or deadline. An ended attempt
// stays as a tombstone for a while: a late Submit, Reserve or Commit of it is refused.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace switchyard {

class AttemptJoin {
 public:
  using WaiterId = uint64_t;  // a call of the prefill rank that wants an answer

  // Events. Those that others send may come late, twice or never.
  struct Submitted {  // from the router
    bool remote_prefill = true;
    absl::Time deadline = absl::InfiniteFuture();
  };
  struct ReserveCalled {
    WaiterId waiter = 0;
    uint64_t peer_token = 0;
    int tokens = 0;
  };
  struct Leased {  // the engine's answer: OK, the blocks are ours
    absl::Status status = {};
  };
  struct Opened {  // the receiver's answer: OK, the blocks are its
    absl::Status status = {};
  };
  struct CommitCalled {
    WaiterId waiter = 0;
    uint64_t peer_token = 0;
  };
  struct KvCommitted {  // the receiver's answer: OK, the blocks are ours again
    absl::Status status = {};
  };
  struct Dropped {  // the receiver let the session go and the blocks have been freed
    absl::Status why = {};
  };
  struct Adopted {  // the engine's answer to kAdopt or kAddToEngine: OK, blocks are the sequence's
    absl::Status status = {};
  };
  struct CancelCalled {  // from the prefill rank
    uint64_t peer_token = 0;
  };
  struct Aborted {};   // the router wants no more of it
  struct Finished {};  // the engine's last output has been sent
  struct Tick {};      // time has passed
  using Event = std::variant<Submitted, ReserveCalled, Leased, Opened, CommitCalled, KvCommitted,
                             Dropped, Adopted, CancelCalled, Aborted, Finished, Tick>;

  enum class Do {
    kLease,          // ask the engine for blocks for tokens()
    kOpen,           // open a session in the receiver
    kAnswerReserve,  // waiter, status
    kCommitKv,       // have the receiver wait for the KV and check it
    kAdopt,          // give request, blocks and first token to the engine
    kAddToEngine,    // no hand-off: the engine computes the prompt
    kAnswerCommit,   // waiter, status
    kSendError,      // status: the end, to the router
    kCancelKv,       // have the receiver drop the session, if there is one
    kFreeBlocks,     // give the leased blocks back to the engine
    kAbortEngine,    // end the sequence
  };
  struct Effect {
    Do what;
    WaiterId waiter = 0;
    absl::Status status = {};
  };
  using Effects = std::vector<Effect>;

  struct Options {
    absl::Duration submit_wait = absl::Seconds(4);  // after the KV is there: a lease
    absl::Duration tombstone = absl::Seconds(60);
  };
  explicit AttemptJoin(const Options& options) : options_(options) {}

  Effects Step(const Event& event, absl::Time now);

  bool ended() const { return phase_ == Phase::kEnded; }
  const absl::Status& why() const { return end_; }  // of ended()
  // Ended, owns nothing, and old enough: forget it.
  bool forgettable(absl::Time now) const {
    return ended() && blocks_ == Blocks::kNone && now >= forget_at_;
  }
  int tokens() const { return tokens_; }

 private:
  enum class Phase { kNew, kReserved, kCommitting, kJoined, kAdopting, kRunning, kEnded };
  // Whose the hand-off's blocks are; a move between two owners is under way in the -ing states.
  enum class Blocks { kNone, kLeasing, kOurs, kOpening, kReceivers, kEngines };

  void OnSubmitted(const Submitted& e, absl::Time now, Effects* out);
  void OnReserve(const ReserveCalled& e, Effects* out);
  void OnLeased(const Leased& e, absl::Time now, Effects* out);
  void OnOpened(const Opened& e, absl::Time now, Effects* out);
  void OnCommit(const CommitCalled& e, Effects* out);
  void OnKvCommitted(const KvCommitted& e, absl::Time now, Effects* out);
  void OnAdopted(const Adopted& e, absl::Time now, Effects* out);
  void MaybeAdopt(Effects* out);
  void FreeOurs(Effects* out);
  void AnswerAll(Do what, std::vector<WaiterId>* waiters, const absl::Status& s, Effects* out);
  void End(absl::Status why, bool tell_router, absl::Time now, Effects* out);

  const Options options_;
  Phase phase_ = Phase::kNew;
  Blocks blocks_ = Blocks::kNone;
  bool submitted_ = false, opened_ = false;
  bool adopted_ = false;    // Commit's answer is OK, whatever came after
  bool cancelled_ = false;  // by the prefill rank, which tells the router
  uint64_t peer_token_ = 0;
  int tokens_ = 0;
  absl::Time deadline_ = absl::InfiniteFuture();
  absl::Time join_by_ = absl::InfiniteFuture();  // Submit must have come
  absl::Time forget_at_ = absl::InfiniteFuture();
  std::vector<WaiterId> reserve_waiters_, commit_waiters_;
  absl::Status end_;
};

}  // namespace switchyard

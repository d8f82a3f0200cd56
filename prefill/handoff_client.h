// prefill/handoff_client.h: one attempt's hand-off as the prefill rank sees it: what has happened,
// and what to do next. No I/O, no clock, no thread: prefill_worker.cc feeds it and does what it
// says.
//
//   waiting ──EngineStarted──► reserving ──Reserved──► sending ──KV sent + token──► committing
//      │                           │                      │                            │ Committed
//      └───────────── any failure, deadline or abort ─────┴──► ended ◄─────────────────┘
// An ended attempt still holds its blocks until the last local use of them is over: `done` follows.
#pragma once

#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace switchyard {

class HandoffClient {
 public:
  // Events. Any of them may come late, twice or never.
  struct EngineStarted {};  // the engine computes it: a transfer has been prepared
  struct Reserved {
    absl::Duration lease;
  };
  struct TokenSampled {
    bool finishes = false;  // the first token ends the request: nothing is handed off
  };
  struct KvSent {};      // the transfer is over and its blocks are free of it
  struct Committed {};   // the decode rank has joined it to its batch
  struct Renewed {};     // the lease runs anew from `now`
  struct LocalFreed {};  // kStopLocal found no transfer and freed the engine's side itself
  struct Failed {        // reserve, transfer, commit, renewal or engine
    absl::Status why = {};
    bool transfer_over = false;  // as KvSent: set by the transfer's own failure
  };
  struct Aborted {};  // the router wants no more of it
  struct Tick {};     // time has passed
  using Event = std::variant<EngineStarted, Reserved, TokenSampled, KvSent, Committed, Renewed,
                             LocalFreed, Failed, Aborted, Tick>;

  enum class Effect {
    kReserve,        // ask the decode rank for blocks
    kBegin,          // tell the transfer where to write
    kRenew,          // extend the lease
    kSendToken,      // the first token, to the router
    kCommit,         // tell the decode rank that all is sent
    kSendHandedOff,  // the end, to the router
    kSendError,      // the end with error(), to the router
    kCancelRemote,   // the decode rank frees what it holds
    kStopLocal,      // stop computing and sending; KvSent, Failed or LocalFreed follows
    kFree,           // release the engine's blocks: nothing uses them any more
  };
  using Effects = std::vector<Effect>;

  explicit HandoffClient(absl::Time deadline) : deadline_(deadline) {}

  Effects Step(const Event& event, absl::Time now);

  // Nothing is left to do: forget it.
  bool done() const { return freed_; }
  bool ended() const { return phase_ == Phase::kEnded; }
  const absl::Status& error() const { return error_; }

 private:
  enum class Phase { kWaiting, kReserving, kSending, kCommitting, kEnded };
  enum class Transfer { kNone, kOpen, kOver };

  void End(absl::Status why, bool tell_router, Effects* out);
  void TransferOver(Effects* out);
  void MaybeCommit(Effects* out);

  const absl::Time deadline_;
  Phase phase_ = Phase::kWaiting;
  Transfer transfer_ = Transfer::kNone;
  bool token_known_ = false;
  bool kv_sent_ = false;
  bool freed_ = false;
  absl::Duration lease_ = absl::InfiniteDuration();
  absl::Time renew_at_ = absl::InfiniteFuture();
  absl::Time lease_ends_ = absl::InfiniteFuture();
  absl::Status error_;
};

}  // namespace switchyard

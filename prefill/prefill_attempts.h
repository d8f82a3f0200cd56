// prefill/prefill_attempts.h: all attempts on a prefill rank: what the router asks for, what the
// engine computes, what the decode ranks answer and what the transfers say come together here, and
// handoff_client.h decides what follows. No thread and no I/O of its own. Owned by the worker's
// control loop, but for feed(), which is the engine thread's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/attempt_report.h"
#include "engine/engine.h"
#include "engine/worker_env.h"
#include "kvtransfer/kv_transfer.h"
#include "prefill/decode_client.h"
#include "prefill/handoff_client.h"
#include "prefill/handoff_metrics.h"
#include "prefill/kv_feed.h"
#include "proto/cluster.pb.h"

namespace switchyard {

class PrefillAttempts {
 public:
  using Dial = std::function<std::unique_ptr<HandoffChannel>(const std::string& address)>;

  // `env` and `sender` must outlive it, `sender` also all posted tasks.
  PrefillAttempts(WorkerEnv* env, KvSender* sender, KvHello hello, Dial dial);
  // Counts hand-offs there from now on; it must outlive this. Null: nowhere.
  void set_metrics(HandoffMetrics* metrics) { metrics_ = metrics; }

  // For Engine::SetKvProgress, on the engine thread.
  void OnProgress(const KvProgress& progress) { feed_.OnProgress(progress); }

  // On the control loop:
  void OnSubmit(SessionId session, cluster::v1::Submit submit);
  void OnAbort(const AttemptKey& key) { Feed(key, HandoffClient::Aborted{}); }
  void OnOutput(EngineOutput output);
  void OnTick();
  // Forgets all attempts and decode ranks, in silence.
  void Clear();
  size_t size() const { return attempts_.size(); }

 private:
  struct Attempt {
    Attempt(SessionId session, absl::Time deadline, absl::Time now)
        : session(session), handoff(deadline), stage(now) {}
    const SessionId session;
    HandoffClient handoff;
    int tokens = 0;
    uint64_t decode_incarnation = 0;
    std::shared_ptr<DecodeClient> peer;
    DecodeClient::Reservation reservation;
    AttemptReport report;
    absl::Time stage;       // it was submitted; then: the engine computes it
    absl::Time reserve_at;  // the decode rank was asked for blocks
    absl::Time send_at, commit_at;
    KvSendResult sent;
    cluster::v1::AttemptEvent token;  // the first one
  };

  KvFeed::Callbacks FeedCallbacks();
  void OnSent(const AttemptKey& key, absl::StatusOr<KvSendResult> result);
  absl::StatusOr<std::shared_ptr<DecodeClient>> PeerAt(const std::string& address);
  // Feeds the attempt, if it is still there, and does what it asks for.
  void Feed(const AttemptKey& key, const HandoffClient::Event& event);
  void PostEvent(const AttemptKey& key, HandoffClient::Event event);
  void Execute(const AttemptKey& key, Attempt& attempt, HandoffClient::Effect effect);
  void Reserve(const AttemptKey& key, Attempt& attempt);
  void Commit(const AttemptKey& key, Attempt& attempt);
  void SendHandedOff(const AttemptKey& key, const Attempt& attempt);
  void StopLocal(const AttemptKey& key);
  void SendRenewals();

  WorkerEnv* const env_;
  KvSender* const sender_;
  HandoffMetrics* metrics_ = nullptr;
  const KvHello hello_;
  const Dial dial_;
  KvFeed feed_;
  std::map<AttemptKey, Attempt> attempts_;
  std::map<std::string, std::shared_ptr<DecodeClient>> peers_;  // by address
  // By decode rank and peer_token: attempts whose leases are due.
  std::map<std::pair<std::string, uint64_t>, std::vector<AttemptKey>> renewals_;
};

}  // namespace switchyard

// decode/decode_attempts.h: all attempts on a decode rank: what the router asks for, what prefill
// ranks call, what the engine and the KV receiver answer come together here, and attempt_join.h
// decides what follows. No thread and no I/O of its own. Owned by the worker's control loop.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "decode/attempt_join.h"
#include "decode/peer_lanes.h"
#include "engine/attempt_report.h"
#include "engine/engine.h"
#include "engine/worker_env.h"
#include "kvtransfer/kv_transfer.h"
#include "proto/cluster.pb.h"
#include "proto/handoff.pb.h"

namespace switchyard {

class DecodeAttempts {
 public:
  // Answers one call of a prefill rank, once.
  template <typename Response>
  using Answer = std::function<void(absl::StatusOr<Response>)>;

  // `env` must outlive it, and so must the receiver, which comes with set_receiver before anything
  // else: it needs OnDropped first.
  explicit DecodeAttempts(WorkerEnv* env) : env_(env) {}
  void set_receiver(KvReceiver* receiver) { receiver_ = receiver; }
  // For KvReceiver::Create; thread-safe.
  KvReceiver::OnDropped MakeOnDropped();

  // Of handoff.proto; thread-safe.
  void Hello(const handoff::v1::HelloRequest& request, Answer<handoff::v1::HelloResponse> answer);
  void Renew(const handoff::v1::RenewRequest& request, Answer<handoff::v1::RenewResponse> answer);
  // On the control loop:
  void Reserve(handoff::v1::ReserveRequest request, Answer<handoff::v1::ReserveResponse> answer);
  void Commit(handoff::v1::CommitRequest request, Answer<handoff::v1::CommitResponse> answer);
  void Cancel(const handoff::v1::CancelRequest& request);

  void OnSubmit(SessionId session, cluster::v1::Submit submit);
  void OnAbort(const AttemptKey& key) { Feed(key, AttemptJoin::Aborted{}); }
  void OnOutput(EngineOutput output);
  void OnTick(absl::Time now);

  size_t live() const { return live_; }  // attempts that have not ended
  size_t prompts() const;                // prompts that it keeps, for attempts that are not joined

 private:
  struct Attempt {
    AttemptJoin join{AttemptJoin::Options{}};
    SessionId session;      // of the router, once submitted
    EngineRequest request;  // once submitted
    KvReservation reservation;
    uint64_t peer_token = 0, kv_session = 0;
    TokenId first_token = 0;
    int first_index = 0;
    std::string lane;  // "": nothing has been moved
    AttemptReport report;
    absl::Time stage;        // it was submitted, its KV was awaited, or it generates
    bool generates = false;  // it has computed its own prompt
  };
  struct ReserveCall {
    handoff::v1::ReserveRequest request;
    Answer<handoff::v1::ReserveResponse> answer;
  };
  struct CommitCall {
    handoff::v1::CommitRequest request;
    Answer<handoff::v1::CommitResponse> answer;
  };

  void OnDropped(const KvTarget& target, bool peer_may_write, absl::Status why);
  absl::StatusOr<Attempt*> FindOrMake(const AttemptKey& key);
  void Feed(const AttemptKey& key, const AttemptJoin::Event& event);
  void ReportStage(Attempt& attempt, const AttemptJoin::Event& event);
  void Execute(const AttemptKey& key, Attempt& attempt, const AttemptJoin::Effect& effect);
  void Lease(const AttemptKey& key, const Attempt& attempt);
  void Open(const AttemptKey& key, const Attempt& attempt);
  void CommitKv(const AttemptKey& key, Attempt& attempt, const handoff::v1::CommitRequest& request);
  void Adopt(const AttemptKey& key, Attempt& attempt);
  void AddToEngine(const AttemptKey& key, Attempt& attempt);
  void AnswerReserve(const Attempt& attempt, AttemptJoin::WaiterId waiter,
                     const absl::Status& status);
  void Free(KvReservation reservation, bool quarantine);
  // Feeds an event from another thread.
  void PostEvent(const AttemptKey& key, AttemptJoin::Event event) {
    env_->Post([this, key, event = std::move(event)] { Feed(key, event); });
  }

  WorkerEnv* const env_;
  KvReceiver* receiver_ = nullptr;
  std::map<AttemptKey, Attempt> attempts_;  // tombstones included
  size_t live_ = 0;
  AttemptJoin::WaiterId next_waiter_ = 1;
  std::map<AttemptJoin::WaiterId, ReserveCall> reserve_calls_;
  std::map<AttemptJoin::WaiterId, CommitCall> commit_calls_;
  PeerLanes lanes_;
};

}  // namespace switchyard

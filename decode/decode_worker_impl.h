// decode/decode_worker_impl.h: the decode worker's state. decode_worker.cc has its life and its
// services, decode_attempts.cc what the control loop does about attempts.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "decode/attempt_join.h"
#include "decode/decode_worker.h"
#include "decode/handoff_service.h"
#include "engine/worker_core.h"
#include "kvtransfer/kv_transfer.h"

namespace switchyard {

class DecodeWorkerImpl final : public DecodeWorker {
 public:
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Create(const WorkerOptions& options);
  ~DecodeWorkerImpl() override;

  int port() const override { return core_->port(); }
  void Drain(absl::Duration notice) override { core_->Drain(notice); }
  absl::Status health() const override { return core_->health(); }

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
  };
  struct ReserveCall {
    handoff::v1::ReserveRequest request;
    HandoffService::Answer<handoff::v1::ReserveResponse> answer;
  };
  struct CommitCall {
    handoff::v1::CommitRequest request;
    HandoffService::Answer<handoff::v1::CommitResponse> answer;
  };

  DecodeWorkerImpl() = default;
  absl::Status Start(const WorkerOptions& options);
  WorkerCore::Hooks MakeHooks(const WorkerOptions& options);
  HandoffService::Handlers MakeHandlers();
  void OnHello(const handoff::v1::HelloRequest& request,
               HandoffService::Answer<handoff::v1::HelloResponse> answer);

  // The rest runs on the control loop.
  void OnSubmit(SessionId session, cluster::v1::Submit submit);
  void OnOutput(EngineOutput output);
  void OnTick(absl::Time now);
  void OnReserve(ReserveCall call);
  void OnCommit(CommitCall call);
  void OnCancel(const handoff::v1::CancelRequest& request);
  void OnDropped(const KvTarget& target, bool peer_may_write, absl::Status why);

  absl::StatusOr<Attempt*> FindOrMake(const AttemptKey& key);
  void Feed(const AttemptKey& key, const AttemptJoin::Event& event);
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
    core_->Post([this, key, event = std::move(event)] { Feed(key, event); });
  }

  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<HandoffService> service_;
  std::unique_ptr<KvReceiver> receiver_;
  // The control loop's:
  std::map<AttemptKey, Attempt> attempts_;
  size_t live_ = 0;  // attempts that have not ended
  AttemptJoin::WaiterId next_waiter_ = 1;
  std::map<AttemptJoin::WaiterId, ReserveCall> reserve_calls_;
  std::map<AttemptJoin::WaiterId, CommitCall> commit_calls_;
  std::map<uint64_t, std::string> lanes_;  // by peer_token
};

}  // namespace switchyard

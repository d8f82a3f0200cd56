#include "decode/decode_worker.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "decode/attempt_join.h"
#include "decode/handoff_service.h"
#include "engine/wire_conversion.h"
#include "engine/worker_core.h"

namespace switchyard {
namespace {

namespace cpb = cluster::v1;
namespace hpb = handoff::v1;
using Do = AttemptJoin::Do;

constexpr size_t kAttemptsMax = 1 << 16;  // tombstones included
constexpr size_t kRequestIdBytesMax = 128;
constexpr absl::Duration kCommitWaitMax = absl::Minutes(1);

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
  };
  struct ReserveCall {
    hpb::ReserveRequest request;
    HandoffService::Answer<hpb::ReserveResponse> answer;
  };
  struct CommitCall {
    hpb::CommitRequest request;
    HandoffService::Answer<hpb::CommitResponse> answer;
  };

  DecodeWorkerImpl() = default;
  absl::Status Start(const WorkerOptions& options);
  WorkerCore::Hooks MakeHooks(const WorkerOptions& options);
  HandoffService::Handlers MakeHandlers();
  void OnHello(const hpb::HelloRequest& request, HandoffService::Answer<hpb::HelloResponse> answer);

  // The rest runs on the control loop.
  void OnSubmit(SessionId session, cpb::Submit submit);
  void OnOutput(EngineOutput output);
  void OnTick(absl::Time now);
  void OnReserve(ReserveCall call);
  void OnCommit(CommitCall call);
  void OnCancel(const hpb::CancelRequest& request);
  void OnDropped(const KvTarget& target, bool peer_may_write, absl::Status why);

  absl::StatusOr<Attempt*> FindOrMake(const AttemptKey& key);
  void Feed(const AttemptKey& key, const AttemptJoin::Event& event);
  void Execute(const AttemptKey& key, Attempt& attempt, const AttemptJoin::Effect& effect);
  void Lease(const AttemptKey& key, const Attempt& attempt);
  void Open(const AttemptKey& key, const Attempt& attempt);
  void CommitKv(const AttemptKey& key, Attempt& attempt, const hpb::CommitRequest& request);
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
};

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorkerImpl::Create(
    const WorkerOptions& options) {
  std::unique_ptr<DecodeWorkerImpl> worker(new DecodeWorkerImpl());
  RETURN_IF_ERROR(worker->Start(options));
  return worker;
}

absl::Status DecodeWorkerImpl::Start(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(core_, WorkerCore::Create(options));
  KvReceiverOptions receive;
  receive.numerics_id = core_->model().numerics_id();
  receive.lanes = options.kv_lanes;
  receive.incarnation = core_->incarnation();
  receive.net_devices = options.kv_net_devices;
  receive.log = options.log;
  ASSIGN_OR_RETURN(
      receiver_,
      KvReceiver::Create(receive, &core_->kv(), &core_->clock(),
                         [this](const KvTarget& target, bool peer_may_write, absl::Status why) {
                           core_->Post([=, this] { OnDropped(target, peer_may_write, why); });
                         }));
  service_ = std::make_unique<HandoffService>(MakeHandlers());
  return core_->Start(MakeHooks(options));
}

DecodeWorkerImpl::~DecodeWorkerImpl() {
  if (core_ == nullptr) return;
  core_->Stop();
  receiver_.reset();  // before the memory that it writes
  core_.reset();      // before the service that it serves
}

WorkerCore::Hooks DecodeWorkerImpl::MakeHooks(const WorkerOptions& options) {
  WorkerCore::Hooks hooks;
  hooks.on_submit = [this](SessionId session, cpb::Submit submit) {
    OnSubmit(session, std::move(submit));
  };
  hooks.on_abort = [this](const AttemptKey& key) { Feed(key, AttemptJoin::Aborted{}); };
  hooks.on_output = [this](EngineOutput output) { OnOutput(std::move(output)); };
  hooks.on_tick = [this](absl::Time now) { OnTick(now); };
  hooks.fill_registration = [this, advertised = options.advertise_host](cpb::Registration* r) {
    r->set_role(cpb::ROLE_DECODE);
    const std::string& host = advertised.empty() ? core_->host() : advertised;
    r->set_handoff_address(HostPort(host, core_->port()));
  };
  hooks.fill_heartbeat = [this](cpb::Heartbeat* h) {
    h->set_kv_bytes_moved(receiver_->stats().bytes);
  };
  hooks.services = {service_.get()};
  return hooks;
}

HandoffService::Handlers DecodeWorkerImpl::MakeHandlers() {
  HandoffService::Handlers handlers;
  handlers.hello = [this](hpb::HelloRequest request, auto answer) {
    OnHello(request, std::move(answer));
  };
  handlers.reserve = [this](hpb::ReserveRequest request, auto answer) {
    core_->Post([this, call = ReserveCall{std::move(request), std::move(answer)}]() mutable {
      OnReserve(std::move(call));
    });
  };
  handlers.commit = [this](hpb::CommitRequest request, auto answer) {
    core_->Post([this, call = CommitCall{std::move(request), std::move(answer)}]() mutable {
      OnCommit(std::move(call));
    });
  };
  handlers.cancel = [this](hpb::CancelRequest request, auto answer) {
    core_->Post([this, request = std::move(request), answer = std::move(answer)] {
      OnCancel(request);
      answer(hpb::CancelResponse());
    });
  };
  handlers.renew = [this](hpb::RenewRequest request, auto answer) {
    receiver_->Renew(request.peer_token(), {request.sessions().begin(), request.sessions().end()},
                     [answer = std::move(answer)](std::vector<uint64_t> lost) {
                       hpb::RenewResponse response;
                       response.mutable_lost()->Add(lost.begin(), lost.end());
                       answer(std::move(response));
                     });
  };
  return handlers;
}

void DecodeWorkerImpl::OnHello(const hpb::HelloRequest& request,
                               HandoffService::Answer<hpb::HelloResponse> answer) {
  receiver_->Hello(FromProto(request),
                   [answer = std::move(answer)](absl::StatusOr<KvHelloAnswer> a) {
                     if (!a.ok()) return answer(a.status());
                     answer(ToProto(*a));
                   });
}

void DecodeWorkerImpl::OnSubmit(SessionId session, cpb::Submit submit) {
  const AttemptKey key = FromProto(submit.id());
  absl::StatusOr<EngineRequest> request = RequestFromProto(submit);
  if (!request.ok()) return core_->Send(session, ErrorEvent(key, request.status()));
  absl::StatusOr<Attempt*> attempt = FindOrMake(key);
  if (attempt.ok() && (*attempt)->session != SessionId()) {
    attempt = absl::AlreadyExistsError("the attempt has been submitted before");
  }
  if (!attempt.ok()) return core_->Send(session, ErrorEvent(key, attempt.status()));
  (*attempt)->session = session;
  (*attempt)->request = *std::move(request);
  const absl::Duration life =
      submit.deadline_ms() > 0 ? absl::Milliseconds(submit.deadline_ms()) : kAttemptLifeMax;
  Feed(key,
       AttemptJoin::Submitted{.remote_prefill = submit.remote_prefill(),
                              .deadline = core_->clock().Now() + std::min(life, kAttemptLifeMax)});
}

void DecodeWorkerImpl::OnReserve(ReserveCall call) {
  const AttemptKey key{call.request.request(), call.request.attempt()};
  if (core_->draining() && !attempts_.contains(key)) {
    return call.answer(absl::UnavailableError("the decode rank is draining"));
  }
  if (const absl::Status s = FindOrMake(key).status(); !s.ok()) return call.answer(s);
  const AttemptJoin::WaiterId waiter = next_waiter_++;
  const AttemptJoin::ReserveCalled event{waiter, call.request.peer_token(), call.request.tokens()};
  reserve_calls_.emplace(waiter, std::move(call));
  Feed(key, event);
}

void DecodeWorkerImpl::OnCommit(CommitCall call) {
  const AttemptKey key{call.request.request(), call.request.attempt()};
  const auto it = attempts_.find(key);
  if (it == attempts_.end() || it->second.kv_session != call.request.session()) {
    return call.answer(absl::NotFoundError(
        absl::StrCat("no session ", call.request.session(), " of this attempt")));
  }
  const AttemptJoin::WaiterId waiter = next_waiter_++;
  const AttemptJoin::CommitCalled event{waiter, call.request.peer_token()};
  commit_calls_.emplace(waiter, std::move(call));
  Feed(key, event);
}

void DecodeWorkerImpl::OnCancel(const hpb::CancelRequest& request) {
  const AttemptKey key{request.request(), request.attempt()};
  if (!FindOrMake(key).ok()) return;
  Feed(key, AttemptJoin::CancelCalled{request.peer_token()});
}

void DecodeWorkerImpl::OnDropped(const KvTarget& target, bool peer_may_write, absl::Status why) {
  Free({target.blocks, target.generations}, peer_may_write);
  Feed(target.key, AttemptJoin::Dropped{std::move(why)});
}

void DecodeWorkerImpl::OnOutput(EngineOutput output) {
  const auto it = attempts_.find(output.key);
  if (it == attempts_.end() || it->second.join.ended()) return;
  core_->Send(it->second.session, ToEvent(output));
  if (output.finish != FinishReason::kNone) Feed(output.key, AttemptJoin::Finished{});
}

void DecodeWorkerImpl::OnTick(absl::Time now) {
  std::vector<AttemptKey> live;
  for (const auto& [key, attempt] : attempts_) {
    if (!attempt.join.ended()) live.push_back(key);
  }
  for (const AttemptKey& key : live) Feed(key, AttemptJoin::Tick{});
  std::erase_if(attempts_, [&](const auto& a) { return a.second.join.forgettable(now); });
}

absl::StatusOr<DecodeWorkerImpl::Attempt*> DecodeWorkerImpl::FindOrMake(const AttemptKey& key) {
  if (const auto it = attempts_.find(key); it != attempts_.end()) return &it->second;
  if (key.request.empty() || key.request.size() > kRequestIdBytesMax || key.attempt < 1) {
    return absl::InvalidArgumentError(absl::StrCat("attempt id: 1…", kRequestIdBytesMax,
                                                   " bytes and an attempt >= 1, not ",
                                                   key.request.size(), " bytes and ", key.attempt));
  }
  if (attempts_.size() >= kAttemptsMax) {
    return absl::ResourceExhaustedError(absl::StrCat("attempts known: limit ", kAttemptsMax));
  }
  core_->SetActive(++live_);
  return &attempts_[key];
}

void DecodeWorkerImpl::Feed(const AttemptKey& key, const AttemptJoin::Event& event) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) return;
  Attempt& attempt = it->second;
  const bool had_ended = attempt.join.ended();
  for (const auto& effect : attempt.join.Step(event, core_->clock().Now())) {
    Execute(key, attempt, effect);
  }
  if (had_ended || !attempt.join.ended()) return;
  attempt.request = {};  // a tombstone needs little
  core_->SetActive(--live_);
}

void DecodeWorkerImpl::Execute(const AttemptKey& key, Attempt& attempt,
                               const AttemptJoin::Effect& effect) {
  switch (effect.what) {
    case Do::kLease:
      attempt.peer_token = reserve_calls_.at(effect.waiter).request.peer_token();
      return Lease(key, attempt);
    case Do::kOpen:
      return Open(key, attempt);
    case Do::kAnswerReserve:
      return AnswerReserve(attempt, effect.waiter, effect.status);
    case Do::kCommitKv:
      return CommitKv(key, attempt, commit_calls_.at(effect.waiter).request);
    case Do::kAdopt:
      return Adopt(key, attempt);
    case Do::kAddToEngine:
      return AddToEngine(key, attempt);
    case Do::kAnswerCommit: {
      auto call = commit_calls_.extract(effect.waiter);
      if (effect.status.ok()) return call.mapped().answer(hpb::CommitResponse());
      return call.mapped().answer(effect.status);
    }
    case Do::kSendError:
      return core_->Send(attempt.session, ErrorEvent(key, effect.status));
    case Do::kCancelKv:
      return receiver_->Cancel(key);
    case Do::kFreeBlocks:
      return Free(std::exchange(attempt.reservation, {}), false);
    case Do::kAbortEngine:
      return core_->PostEngine([key](Engine& engine) { engine.Abort(key); });
  }
}

void DecodeWorkerImpl::Lease(const AttemptKey& key, const Attempt& attempt) {
  core_->PostEngine([this, key, tokens = attempt.join.tokens()](Engine& engine) {
    core_->Post([this, key, reservation = engine.Reserve(tokens)] {
      const auto it = attempts_.find(key);
      if (it != attempts_.end() && reservation.ok()) it->second.reservation = *reservation;
      Feed(key, AttemptJoin::Leased{reservation.status()});
    });
  });
}

void DecodeWorkerImpl::Open(const AttemptKey& key, const Attempt& attempt) {
  receiver_->Open(attempt.peer_token,
                  {.key = key,
                   .tokens = attempt.join.tokens(),
                   .blocks = attempt.reservation.blocks,
                   .generations = attempt.reservation.generations},
                  [this, key](absl::StatusOr<uint64_t> session) {
                    core_->Post([=, this] {
                      const auto it = attempts_.find(key);
                      if (it != attempts_.end() && session.ok()) it->second.kv_session = *session;
                      Feed(key, AttemptJoin::Opened{session.status()});
                    });
                  });
}

void DecodeWorkerImpl::CommitKv(const AttemptKey& key, Attempt& attempt,
                                const hpb::CommitRequest& request) {
  attempt.first_token = request.first_token();
  attempt.first_index = request.first_index();
  const absl::Duration wait =
      std::clamp(absl::Milliseconds(request.wait_ms()), absl::ZeroDuration(), kCommitWaitMax);
  receiver_->Commit(request.peer_token(), request.session(), request.digest(), wait,
                    [this, key](absl::StatusOr<KvTarget> target) {
                      PostEvent(key, AttemptJoin::KvCommitted{target.status()});
                    });
}

void DecodeWorkerImpl::Adopt(const AttemptKey& key, Attempt& attempt) {
  const size_t tokens = attempt.request.prompt_ids.size() + attempt.request.generated_ids.size();
  if (static_cast<size_t>(attempt.join.tokens()) != tokens ||
      static_cast<size_t>(attempt.first_index) != attempt.request.generated_ids.size()) {
    return PostEvent(key, AttemptJoin::Adopted{absl::InvalidArgumentError(absl::StrCat(
                              "the hand-off has ", attempt.join.tokens(), " tokens and index ",
                              attempt.first_index, ", the request ", tokens, " and ",
                              attempt.request.generated_ids.size()))});
  }
  core_->PostEngine([this, key, request = std::move(attempt.request),
                     reservation = attempt.reservation,
                     first = attempt.first_token](Engine& engine) mutable {
    PostEvent(key, AttemptJoin::Adopted{engine.Adopt(std::move(request), reservation, first)});
  });
}

void DecodeWorkerImpl::AddToEngine(const AttemptKey& key, Attempt& attempt) {
  core_->PostEngine([this, key, request = std::move(attempt.request)](Engine& engine) mutable {
    PostEvent(key, AttemptJoin::Adopted{engine.Add(std::move(request))});
  });
}

void DecodeWorkerImpl::AnswerReserve(const Attempt& attempt, AttemptJoin::WaiterId waiter,
                                     const absl::Status& status) {
  auto call = reserve_calls_.extract(waiter);
  if (!status.ok()) return call.mapped().answer(status);
  hpb::ReserveResponse response;
  response.set_session(attempt.kv_session);
  response.mutable_generations()->Add(attempt.reservation.generations.begin(),
                                      attempt.reservation.generations.end());
  response.set_lease_ms(absl::ToInt64Milliseconds(KvReceiverOptions().lease));
  call.mapped().answer(std::move(response));
}

void DecodeWorkerImpl::Free(KvReservation reservation, bool quarantine) {
  core_->PostEngine([reservation = std::move(reservation), quarantine](Engine& engine) {
    engine.ReleaseReservation(reservation, quarantine);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Create(const WorkerOptions& options) {
  return DecodeWorkerImpl::Create(options);
}

}  // namespace switchyard

#include "prefill/prefill_worker.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/wire_conversion.h"
#include "engine/worker_core.h"
#include "prefill/decode_client.h"
#include "prefill/handoff_client.h"
#include "prefill/kv_feed.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
using Effect = HandoffClient::Effect;

constexpr size_t kPeersMax = 256;  // decode ranks that are known at once

class PrefillWorkerImpl final : public PrefillWorker {
 public:
  static absl::StatusOr<std::unique_ptr<PrefillWorker>> Create(const WorkerOptions& options);
  ~PrefillWorkerImpl() override;

  int port() const override { return core_->port(); }
  void Drain(absl::Duration notice) override { core_->Drain(notice); }
  absl::Status health() const override { return core_->health(); }

 private:
  struct Attempt {
    Attempt(SessionId session, absl::Time deadline) : session(session), handoff(deadline) {}
    const SessionId session;
    HandoffClient handoff;
    int tokens = 0;
    uint64_t decode_incarnation = 0;
    std::shared_ptr<DecodeClient> peer;
    DecodeClient::Reservation reservation;
    KvSendResult sent;
    pb::AttemptEvent token;  // the first one
  };

  PrefillWorkerImpl() = default;
  absl::Status Start(const WorkerOptions& options);
  WorkerCore::Hooks MakeHooks();
  void OnSubmit(SessionId session, pb::Submit submit);
  void OnOutput(EngineOutput output);
  void OnSent(const AttemptKey& key, absl::StatusOr<KvSendResult> result);
  void OnTick();
  absl::StatusOr<std::shared_ptr<DecodeClient>> PeerAt(const std::string& address);

  // Feeds the attempt, if it is still there, and does what it asks for.
  void Feed(const AttemptKey& key, const HandoffClient::Event& event);
  void Execute(const AttemptKey& key, Attempt& attempt, Effect effect);
  void Reserve(const AttemptKey& key, Attempt& attempt);
  void Commit(const AttemptKey& key, Attempt& attempt);
  void SendHandedOff(const AttemptKey& key, const Attempt& attempt);
  void StopLocal(const AttemptKey& key);
  void SendRenewals();

  std::unique_ptr<WorkerCore> core_;
  KvHello hello_;
  std::unique_ptr<KvSender> sender_;
  std::unique_ptr<KvFeed> feed_;  // the engine thread's
  std::atomic<uint64_t> kv_bytes_{0};
  // The control loop's:
  std::map<AttemptKey, Attempt> attempts_;
  std::map<std::string, std::shared_ptr<DecodeClient>> peers_;
  std::map<std::pair<DecodeClient*, uint64_t>, std::vector<AttemptKey>> renewals_;
};

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorkerImpl::Create(
    const WorkerOptions& options) {
  std::unique_ptr<PrefillWorkerImpl> worker(new PrefillWorkerImpl());
  RETURN_IF_ERROR(worker->Start(options));
  return worker;
}

absl::Status PrefillWorkerImpl::Start(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(core_, WorkerCore::Create(options));
  KvSenderOptions send;
  send.lanes = options.kv_lanes;
  send.net_devices = options.kv_net_devices;
  send.log = options.log;
  ASSIGN_OR_RETURN(sender_, KvSender::Create(send, &core_->kv(), &core_->clock()));
  hello_ = sender_->MakeHello();
  hello_.numerics_id = core_->model().numerics_id();
  hello_.layout_id = core_->kv().layout().LayoutId();
  hello_.peer_name = options.name;
  hello_.incarnation = core_->incarnation();
  const auto post_event = [this](const AttemptKey& key, HandoffClient::Event event) {
    core_->Post([this, key, event = std::move(event)] { Feed(key, event); });
  };
  feed_ = std::make_unique<KvFeed>(
      &core_->kv(), sender_.get(),
      KvFeed::Callbacks{
          .started =
              [=](const AttemptKey& key) { post_event(key, HandoffClient::EngineStarted{}); },
          .failed = [=](const AttemptKey& key,
                        absl::Status why) { post_event(key, HandoffClient::Failed{why}); },
          .sent =
              [this](const AttemptKey& key, absl::StatusOr<KvSendResult> result) {
                core_->Post([this, key, result = std::move(result)] { OnSent(key, result); });
              }});
  return core_->Start(MakeHooks());
}

PrefillWorkerImpl::~PrefillWorkerImpl() {
  if (core_ == nullptr) return;
  core_->Stop();
  // The engine lives on, but sends nothing any more: then the sender may go.
  core_->RunOnEngine([](Engine& engine) { engine.SetKvProgress(nullptr); });
  attempts_.clear();
  peers_.clear();
  sender_.reset();
}

WorkerCore::Hooks PrefillWorkerImpl::MakeHooks() {
  WorkerCore::Hooks hooks;
  hooks.on_engine = [this](Engine& engine) {
    engine.SetKvProgress([this](const KvProgress& p) { feed_->OnProgress(p); });
  };
  hooks.on_submit = [this](SessionId session, pb::Submit submit) {
    OnSubmit(session, std::move(submit));
  };
  hooks.on_abort = [this](const AttemptKey& key) { Feed(key, HandoffClient::Aborted{}); };
  hooks.on_output = [this](EngineOutput output) { OnOutput(std::move(output)); };
  hooks.on_tick = [this](absl::Time) { OnTick(); };
  hooks.fill_registration = [](pb::Registration* r) { r->set_role(pb::ROLE_PREFILL); };
  hooks.fill_heartbeat = [this](pb::Heartbeat* h) { h->set_kv_bytes_moved(kv_bytes_); };
  return hooks;
}

void PrefillWorkerImpl::OnSubmit(SessionId session, pb::Submit submit) {
  const AttemptKey key = FromProto(submit.id());
  if (attempts_.contains(key)) {
    return core_->Send(session, ErrorEvent(key, absl::AlreadyExistsError("attempt is running")));
  }
  absl::StatusOr<EngineRequest> request = RequestFromProto(submit);
  if (!request.ok()) return core_->Send(session, ErrorEvent(key, request.status()));
  auto peer = PeerAt(submit.decode_address());
  if (!peer.ok()) return core_->Send(session, ErrorEvent(key, peer.status()));
  request->prefill_only = true;
  const absl::Duration life =
      submit.deadline_ms() > 0 ? absl::Milliseconds(submit.deadline_ms()) : kAttemptLifeMax;
  Attempt& attempt =
      attempts_.try_emplace(key, session, core_->clock().Now() + std::min(life, kAttemptLifeMax))
          .first->second;
  attempt.tokens = static_cast<int>(request->prompt_ids.size() + request->generated_ids.size());
  attempt.decode_incarnation = submit.decode_incarnation();
  attempt.peer = *std::move(peer);
  core_->SetActive(attempts_.size());
  core_->PostEngine([this, key, request = *std::move(request)](Engine& engine) mutable {
    const absl::Status added = engine.Add(std::move(request));
    if (added.ok()) return;
    core_->Post([this, key, added] { Feed(key, HandoffClient::Failed{added}); });
  });
}

absl::StatusOr<std::shared_ptr<DecodeClient>> PrefillWorkerImpl::PeerAt(
    const std::string& address) {
  RETURN_IF_ERROR(SplitHostPort(address).status());
  if (const auto it = peers_.find(address); it != peers_.end()) return it->second;
  if (peers_.size() >= kPeersMax) {
    std::erase_if(peers_, [](const auto& p) { return p.second.use_count() == 1; });
  }
  if (peers_.size() >= kPeersMax) {
    return absl::ResourceExhaustedError(absl::StrCat("decode ranks in use: limit ", kPeersMax));
  }
  auto peer = std::make_shared<DecodeClient>(
      address, hello_, sender_.get(),
      [core = core_.get()](std::function<void()> task) { core->Post(std::move(task)); });
  return peers_[address] = std::move(peer);
}

void PrefillWorkerImpl::OnOutput(EngineOutput output) {
  const auto it = attempts_.find(output.key);
  if (it == attempts_.end()) return;
  if (output.finish == FinishReason::kError) {
    return Feed(output.key, HandoffClient::Failed{output.error});
  }
  if (!output.token.has_value()) return;
  it->second.token = ToEvent(output);
  Feed(output.key, HandoffClient::TokenSampled{output.finish != FinishReason::kNone});
}

void PrefillWorkerImpl::OnSent(const AttemptKey& key, absl::StatusOr<KvSendResult> result) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) return;
  if (!result.ok()) {
    if (absl::IsUnavailable(result.status()) || absl::IsDeadlineExceeded(result.status())) {
      it->second.peer->GiveUp(it->second.reservation.peer_token);
    }
    return Feed(key, HandoffClient::Failed{result.status(), /*transfer_over=*/true});
  }
  kv_bytes_ += result->bytes;
  it->second.sent = *std::move(result);
  Feed(key, HandoffClient::KvSent{});
}

void PrefillWorkerImpl::OnTick() {
  std::vector<AttemptKey> keys;
  keys.reserve(attempts_.size());
  for (const auto& [key, attempt] : attempts_) keys.push_back(key);
  for (const AttemptKey& key : keys) Feed(key, HandoffClient::Tick{});
  SendRenewals();
}

void PrefillWorkerImpl::Feed(const AttemptKey& key, const HandoffClient::Event& event) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) return;
  const auto effects = it->second.handoff.Step(event, core_->clock().Now());
  for (const Effect effect : effects) Execute(key, it->second, effect);
  if (!it->second.handoff.done()) return;
  attempts_.erase(it);
  core_->SetActive(attempts_.size());
}

void PrefillWorkerImpl::Execute(const AttemptKey& key, Attempt& attempt, Effect effect) {
  const DecodeClient::Reservation& r = attempt.reservation;
  switch (effect) {
    case Effect::kReserve:
      return Reserve(key, attempt);
    case Effect::kBegin:
      return sender_->Begin(key, r.peer_token, r.session, r.generations);
    case Effect::kRenew:
      return renewals_[{attempt.peer.get(), r.peer_token}].push_back(key);
    case Effect::kSendToken:
      return core_->Send(attempt.session, attempt.token);
    case Effect::kCommit:
      return Commit(key, attempt);
    case Effect::kSendHandedOff:
      return SendHandedOff(key, attempt);
    case Effect::kSendError:
      return core_->Send(attempt.session, ErrorEvent(key, attempt.handoff.error()));
    case Effect::kCancelRemote:
      if (r.peer_token != 0) attempt.peer->Cancel(r.peer_token, key);
      return;
    case Effect::kStopLocal:
      return StopLocal(key);
    case Effect::kFree:
      return core_->PostEngine([this, key](Engine& engine) {
        engine.Abort(key);
        feed_->Forget(key);
      });
  }
}

void PrefillWorkerImpl::Reserve(const AttemptKey& key, Attempt& attempt) {
  attempt.peer->Reserve(key, attempt.tokens, attempt.decode_incarnation,
                        [this, key, peer = attempt.peer.get()](
                            absl::StatusOr<DecodeClient::Reservation> reservation) {
                          const auto it = attempts_.find(key);
                          if (it == attempts_.end()) {
                            if (reservation.ok()) peer->Cancel(reservation->peer_token, key);
                            return;
                          }
                          if (!reservation.ok())
                            return Feed(key, HandoffClient::Failed{reservation.status()});
                          it->second.reservation = *std::move(reservation);
                          Feed(key, HandoffClient::Reserved{it->second.reservation.lease});
                        });
}

void PrefillWorkerImpl::Commit(const AttemptKey& key, Attempt& attempt) {
  attempt.peer->Commit({.peer_token = attempt.reservation.peer_token,
                        .session = attempt.reservation.session,
                        .key = key,
                        .first_token = attempt.token.token().token(),
                        .first_index = attempt.token.index(),
                        .digest = attempt.sent.digest},
                       [this, key](absl::StatusOr<handoff::v1::CommitResponse> answer) {
                         if (answer.ok()) return Feed(key, HandoffClient::Committed{});
                         Feed(key, HandoffClient::Failed{answer.status()});
                       });
}

void PrefillWorkerImpl::SendHandedOff(const AttemptKey& key, const Attempt& attempt) {
  pb::AttemptEvent event;
  ToProto(key, event.mutable_id());
  event.set_handed_off(true);
  event.set_index(attempt.token.index() + 1);
  event.set_kv_bytes_moved(attempt.sent.bytes);
  event.set_kv_lane(attempt.sent.lane);
  core_->Send(attempt.session, std::move(event));
}

void PrefillWorkerImpl::StopLocal(const AttemptKey& key) {
  core_->PostEngine([this, key](Engine& engine) {
    if (feed_->Stop(key)) return;
    engine.Abort(key);
    core_->Post([this, key] { Feed(key, HandoffClient::LocalFreed{}); });
  });
}

// One call per decode rank, however many attempts are due.
void PrefillWorkerImpl::SendRenewals() {
  for (auto& [peer, keys] : std::exchange(renewals_, {})) {
    std::map<uint64_t, AttemptKey> by_session;
    for (const AttemptKey& key : keys) {
      const auto it = attempts_.find(key);
      if (it != attempts_.end()) by_session[it->second.reservation.session] = key;
    }
    if (by_session.empty()) continue;  // and then nothing holds `peer`
    std::vector<uint64_t> sessions;
    for (const auto& [session, key] : by_session) sessions.push_back(session);
    peer.first->Renew(
        peer.second, sessions,
        [this, by_session](absl::StatusOr<handoff::v1::RenewResponse> answer) mutable {
          if (absl::IsUnavailable(answer.status())) {
            for (const auto& [session, key] : by_session) {
              Feed(key, HandoffClient::Failed{answer.status()});
            }
          }
          if (!answer.ok()) return;  // slow: another try follows before the lease ends
          for (const uint64_t lost : answer->lost()) {
            const auto it = by_session.find(lost);
            if (it == by_session.end()) continue;
            Feed(it->second, HandoffClient::Failed{absl::AbortedError("the lease was lost")});
            by_session.erase(it);
          }
          for (const auto& [session, key] : by_session) Feed(key, HandoffClient::Renewed{});
        });
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorker::Create(const WorkerOptions& options) {
  return PrefillWorkerImpl::Create(options);
}

}  // namespace switchyard

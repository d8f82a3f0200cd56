#include "prefill/prefill_attempts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "cluster/host_port.h"
#include "common/status_macros.h"
#include "engine/wire_conversion.h"

namespace switchyard {
namespace {

constexpr size_t kPeersMax = 256;  // decode ranks that are known at once

// A decode rank that was started anew, or has forgotten this one, says so in codes that would blame
// the client if the router saw them. Any of them means: this hand-off is over, try another one.
absl::Status HandOffFailure(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kUnknown:
      return absl::AbortedError(absl::StrCat("hand-off: ", status.ToString()));
    default:
      return status;
  }
}

}  // namespace

namespace pb = cluster::v1;
using Effect = HandoffClient::Effect;

PrefillAttempts::PrefillAttempts(WorkerEnv* env, KvSender* sender, KvHello hello, Dial dial)
    : env_(env),
      sender_(sender),
      hello_(std::move(hello)),
      dial_(std::move(dial)),
      feed_(&env->kv(), sender, FeedCallbacks()) {}

KvFeed::Callbacks PrefillAttempts::FeedCallbacks() {
  return {
      .started = [this](const AttemptKey& key) { PostEvent(key, HandoffClient::EngineStarted{}); },
      .failed = [this](const AttemptKey& key,
                       absl::Status why) { PostEvent(key, HandoffClient::Failed{why}); },
      .sent =
          [this](const AttemptKey& key, absl::StatusOr<KvSendResult> result) {
            env_->Post([this, key, result = std::move(result)] { OnSent(key, result); });
          }};
}

void PrefillAttempts::Clear() {
  attempts_.clear();
  peers_.clear();
}

void PrefillAttempts::PostEvent(const AttemptKey& key, HandoffClient::Event event) {
  env_->Post([this, key, event = std::move(event)] { Feed(key, event); });
}

void PrefillAttempts::OnSubmit(SessionId session, pb::Submit submit) {
  const AttemptKey key = FromProto(submit.id());
  if (attempts_.contains(key)) {
    return env_->Send(session, ErrorEvent(key, absl::AlreadyExistsError("attempt is running")));
  }
  absl::StatusOr<EngineRequest> request = RequestFromProto(submit);
  if (!request.ok()) return env_->Send(session, ErrorEvent(key, request.status()));
  auto peer = PeerAt(submit.decode_address());
  if (!peer.ok()) return env_->Send(session, ErrorEvent(key, peer.status()));
  request->prefill_only = true;
  const absl::Duration life =
      submit.deadline_ms() > 0 ? absl::Milliseconds(submit.deadline_ms()) : kAttemptLifeMax;
  const absl::Time now = env_->clock().Now();
  Attempt& attempt =
      attempts_.try_emplace(key, session, now + std::min(life, kAttemptLifeMax), now).first->second;
  attempt.report = AttemptReport(env_, "prefill rank", submit);
  attempt.tokens = static_cast<int>(request->prompt_ids.size() + request->generated_ids.size());
  attempt.decode_incarnation = submit.decode_incarnation();
  attempt.peer = *std::move(peer);
  env_->SetActive(attempts_.size());
  env_->PostEngine([this, key, request = *std::move(request)](Engine& engine) mutable {
    const absl::Status added = engine.Add(std::move(request));
    if (!added.ok()) PostEvent(key, HandoffClient::Failed{added});
  });
}

absl::StatusOr<std::shared_ptr<DecodeClient>> PrefillAttempts::PeerAt(const std::string& address) {
  RETURN_IF_ERROR(SplitHostPort(address).status());
  if (const auto it = peers_.find(address); it != peers_.end()) return it->second;
  if (peers_.size() >= kPeersMax) {
    std::erase_if(peers_, [](const auto& p) { return p.second.use_count() == 1; });
  }
  if (peers_.size() >= kPeersMax) {
    return absl::ResourceExhaustedError(absl::StrCat("decode ranks in use: limit ", kPeersMax));
  }
  auto peer = std::make_shared<DecodeClient>(
      address, hello_, sender_, dial_(address),
      [env = env_](std::function<void()> task) { env->Post(std::move(task)); });
  return peers_[address] = std::move(peer);
}

void PrefillAttempts::OnOutput(EngineOutput output) {
  const auto it = attempts_.find(output.key);
  if (it == attempts_.end()) return;
  if (output.finish == FinishReason::kError) {
    return Feed(output.key, HandoffClient::Failed{output.error});
  }
  if (!output.token.has_value()) return;
  it->second.report.Stage("compute", it->second.stage);
  it->second.token = ToEvent(output);
  Feed(output.key, HandoffClient::TokenSampled{output.finish != FinishReason::kNone});
}

void PrefillAttempts::OnSent(const AttemptKey& key, absl::StatusOr<KvSendResult> result) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) return;
  if (!result.ok()) {
    if (absl::IsUnavailable(result.status()) || absl::IsDeadlineExceeded(result.status())) {
      it->second.peer->GiveUp(it->second.reservation.peer_token);
    }
    return Feed(key, HandoffClient::Failed{result.status(), /*transfer_over=*/true});
  }
  it->second.report.Stage("send", it->second.send_at,
                          {{"bytes", absl::StrCat(result->bytes)}, {"lane", result->lane}});
  it->second.sent = *std::move(result);
  Feed(key, HandoffClient::KvSent{});
}

void PrefillAttempts::OnTick() {
  std::vector<AttemptKey> keys;
  keys.reserve(attempts_.size());
  for (const auto& [key, attempt] : attempts_) keys.push_back(key);
  for (const AttemptKey& key : keys) Feed(key, HandoffClient::Tick{});
  SendRenewals();
}

void PrefillAttempts::Feed(const AttemptKey& key, const HandoffClient::Event& event) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) return;
  Attempt& attempt = it->second;
  const HandoffClient& handoff = attempt.handoff;
  const bool had_ended = handoff.ended();
  if (!had_ended && std::holds_alternative<HandoffClient::EngineStarted>(event)) {
    attempt.report.Stage("wait", std::exchange(attempt.stage, env_->clock().Now()));
  }
  const auto effects = attempt.handoff.Step(event, env_->clock().Now());
  for (const Effect effect : effects) Execute(key, attempt, effect);
  if (metrics_ != nullptr && !had_ended && !handoff.error().ok()) metrics_->Failed(handoff.error());
  if (handoff.ended()) attempt.report.End(handoff.error());
  if (!it->second.handoff.done()) return;
  attempts_.erase(it);
  env_->SetActive(attempts_.size());
}

void PrefillAttempts::Execute(const AttemptKey& key, Attempt& attempt, Effect effect) {
  const DecodeClient::Reservation& r = attempt.reservation;
  switch (effect) {
    case Effect::kReserve:
      return Reserve(key, attempt);
    case Effect::kBegin:
      attempt.send_at = env_->clock().Now();
      return sender_->Begin(key, r.peer_token, r.session, r.generations);
    case Effect::kRenew:
      return renewals_[{attempt.peer->address(), r.peer_token}].push_back(key);
    case Effect::kSendToken:
      return env_->Send(attempt.session, attempt.token);
    case Effect::kCommit:
      return Commit(key, attempt);
    case Effect::kSendHandedOff:
      return SendHandedOff(key, attempt);
    case Effect::kSendError:
      return env_->Send(attempt.session, ErrorEvent(key, attempt.handoff.error()));
    case Effect::kCancelRemote:
      if (r.peer_token != 0) attempt.peer->Cancel(r.peer_token, key);
      return;
    case Effect::kStopLocal:
      return StopLocal(key);
    case Effect::kFree:
      return env_->PostEngine([this, key](Engine& engine) {
        engine.Abort(key);
        feed_.Forget(key);
      });
  }
}

void PrefillAttempts::Reserve(const AttemptKey& key, Attempt& attempt) {
  attempt.reserve_at = env_->clock().Now();
  attempt.peer->Reserve(
      key, attempt.tokens, attempt.decode_incarnation,
      [this, key,
       peer = attempt.peer.get()](absl::StatusOr<DecodeClient::Reservation> reservation) {
        const auto it = attempts_.find(key);
        if (it == attempts_.end()) {
          if (reservation.ok()) peer->Cancel(reservation->peer_token, key);
          return;
        }
        if (!reservation.ok())
          return Feed(key, HandoffClient::Failed{HandOffFailure(reservation.status())});
        it->second.reservation = *std::move(reservation);
        it->second.report.Stage("reserve", it->second.reserve_at);
        if (metrics_ != nullptr) {
          metrics_->Reserved(env_->clock().Now() - it->second.reserve_at);
        }
        Feed(key, HandoffClient::Reserved{it->second.reservation.lease});
      });
}

void PrefillAttempts::Commit(const AttemptKey& key, Attempt& attempt) {
  attempt.commit_at = env_->clock().Now();
  attempt.peer->Commit({.peer_token = attempt.reservation.peer_token,
                        .session = attempt.reservation.session,
                        .key = key,
                        .first_token = attempt.token.token().token(),
                        .first_index = attempt.token.index(),
                        .digest = attempt.sent.digest},
                       [this, key](absl::StatusOr<handoff::v1::CommitResponse> answer) {
                         if (answer.ok()) {
                           const auto it = attempts_.find(key);
                           if (it != attempts_.end()) {
                             it->second.report.Stage("commit", it->second.commit_at);
                           }
                           return Feed(key, HandoffClient::Committed{});
                         }
                         Feed(key, HandoffClient::Failed{HandOffFailure(answer.status())});
                       });
}

void PrefillAttempts::SendHandedOff(const AttemptKey& key, const Attempt& attempt) {
  pb::AttemptEvent event;
  ToProto(key, event.mutable_id());
  event.set_handed_off(true);
  event.set_index(attempt.token.index() + 1);
  event.set_kv_bytes_moved(attempt.sent.bytes);
  event.set_kv_lane(attempt.sent.lane);
  env_->Send(attempt.session, std::move(event));
  if (metrics_ == nullptr) return;
  metrics_->Committed(attempt.sent.lane, attempt.sent.bytes,
                      env_->clock().Now() - attempt.reserve_at);
}

void PrefillAttempts::StopLocal(const AttemptKey& key) {
  env_->PostEngine([this, key](Engine& engine) {
    if (feed_.Stop(key)) return;
    engine.Abort(key);
    PostEvent(key, HandoffClient::LocalFreed{});
  });
}

// One call per decode rank, however many attempts are due.
void PrefillAttempts::SendRenewals() {
  for (auto& [to, keys] : std::exchange(renewals_, {})) {
    std::map<uint64_t, AttemptKey> by_session;
    std::shared_ptr<DecodeClient> peer;
    for (const AttemptKey& key : keys) {
      const auto it = attempts_.find(key);
      if (it == attempts_.end()) continue;
      by_session[it->second.reservation.session] = key;
      peer = it->second.peer;
    }
    if (peer == nullptr) continue;
    std::vector<uint64_t> sessions;
    for (const auto& [session, key] : by_session) sessions.push_back(session);
    peer->Renew(to.second, sessions,
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
                    Feed(it->second,
                         HandoffClient::Failed{absl::AbortedError("the lease was lost")});
                    by_session.erase(it);
                  }
                  for (const auto& [session, key] : by_session) Feed(key, HandoffClient::Renewed{});
                });
  }
}

}  // namespace switchyard

#include "decode/decode_attempts.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "engine/wire_conversion.h"
#include "kvtransfer/hello_proto.h"

namespace switchyard {
namespace {

constexpr size_t kAttemptsMax = 1 << 16;  // tombstones included
constexpr absl::Duration kCommitWaitMax = absl::Minutes(1);

}  // namespace

namespace cpb = cluster::v1;
namespace hpb = handoff::v1;
using Do = AttemptJoin::Do;

KvReceiver::OnDropped DecodeAttempts::MakeOnDropped() {
  return [this](const KvTarget& target, bool peer_may_write, absl::Status why) {
    env_->Post([=, this] { OnDropped(target, peer_may_write, why); });
  };
}

void DecodeAttempts::Hello(const hpb::HelloRequest& request, Answer<hpb::HelloResponse> answer) {
  receiver_->Hello(
      FromProto(request), [this, answer = std::move(answer)](absl::StatusOr<KvHelloAnswer> a) {
        if (!a.ok()) return answer(a.status());
        env_->Post([this, token = a->peer_token, lane = a->lane] { lanes_.Add(token, lane); });
        answer(ToProto(*a));
      });
}

void DecodeAttempts::Renew(const hpb::RenewRequest& request, Answer<hpb::RenewResponse> answer) {
  receiver_->Renew(request.peer_token(), {request.sessions().begin(), request.sessions().end()},
                   [answer = std::move(answer)](std::vector<uint64_t> lost) {
                     hpb::RenewResponse response;
                     response.mutable_lost()->Add(lost.begin(), lost.end());
                     answer(std::move(response));
                   });
}

void DecodeAttempts::OnSubmit(SessionId session, cpb::Submit submit) {
  const AttemptKey key = FromProto(submit.id());
  absl::StatusOr<EngineRequest> request = RequestFromProto(submit);
  if (!request.ok()) return env_->Send(session, ErrorEvent(key, request.status()));
  absl::StatusOr<Attempt*> attempt = FindOrMake(key);
  if (attempt.ok() && (*attempt)->session != SessionId()) {
    attempt = absl::AlreadyExistsError("the attempt has been submitted before");
  }
  if (!attempt.ok()) return env_->Send(session, ErrorEvent(key, attempt.status()));
  (*attempt)->session = session;
  (*attempt)->report = AttemptReport(env_, "decode rank", submit);
  (*attempt)->request = *std::move(request);
  const absl::Duration life =
      submit.deadline_ms() > 0 ? absl::Milliseconds(submit.deadline_ms()) : kAttemptLifeMax;
  Feed(key,
       AttemptJoin::Submitted{.remote_prefill = submit.remote_prefill(),
                              .deadline = env_->clock().Now() + std::min(life, kAttemptLifeMax)});
}

void DecodeAttempts::Reserve(hpb::ReserveRequest request, Answer<hpb::ReserveResponse> answer) {
  ReserveCall call{std::move(request), std::move(answer)};
  const AttemptKey key{call.request.request(), call.request.attempt()};
  if (env_->draining() && !attempts_.contains(key)) {
    // As if it were full: what runs goes on, and nobody is to blame.
    return call.answer(absl::ResourceExhaustedError("the decode rank is draining"));
  }
  if (const absl::Status s = FindOrMake(key).status(); !s.ok()) return call.answer(s);
  const AttemptJoin::WaiterId waiter = next_waiter_++;
  const AttemptJoin::ReserveCalled event{waiter, call.request.peer_token(), call.request.tokens()};
  reserve_calls_.emplace(waiter, std::move(call));
  Feed(key, event);
}

void DecodeAttempts::Commit(hpb::CommitRequest request, Answer<hpb::CommitResponse> answer) {
  CommitCall call{std::move(request), std::move(answer)};
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

void DecodeAttempts::Cancel(const hpb::CancelRequest& request) {
  const AttemptKey key{request.request(), request.attempt()};
  if (!FindOrMake(key).ok()) return;
  Feed(key, AttemptJoin::CancelCalled{request.peer_token()});
}

void DecodeAttempts::OnDropped(const KvTarget& target, bool peer_may_write, absl::Status why) {
  Free({target.blocks, target.generations}, peer_may_write);
  Feed(target.key, AttemptJoin::Dropped{std::move(why)});
}

void DecodeAttempts::OnOutput(EngineOutput output) {
  const auto it = attempts_.find(output.key);
  if (it == attempts_.end() || it->second.join.ended()) return;
  Attempt& attempt = it->second;
  if (attempt.lane.empty() && !std::exchange(attempt.generates, true)) {
    attempt.report.Stage("prompt", std::exchange(attempt.stage, env_->clock().Now()));
  }
  if (output.finish != FinishReason::kNone) {
    attempt.report.Stage("generate", attempt.stage);
    attempt.report.End(output.error);
  }
  cpb::AttemptEvent event = ToEvent(output);
  if (output.finish != FinishReason::kNone && !it->second.lane.empty()) {
    // The prefill rank says so too, but its word may come after this one.
    const KvReservation& r = it->second.reservation;
    const size_t blocks = r.blocks.size() - r.shared();
    event.set_kv_bytes_moved(blocks * env_->kv().layout().BlockBytesAllLayers());
    event.set_kv_lane(it->second.lane);
  }
  env_->Send(it->second.session, std::move(event));
  if (output.finish != FinishReason::kNone) Feed(output.key, AttemptJoin::Finished{});
}

void DecodeAttempts::OnTick(absl::Time now) {
  std::vector<AttemptKey> live;
  for (const auto& [key, attempt] : attempts_) {
    if (!attempt.join.ended()) live.push_back(key);
  }
  for (const AttemptKey& key : live) Feed(key, AttemptJoin::Tick{});
  std::erase_if(attempts_, [&](const auto& a) { return a.second.join.forgettable(now); });
}

absl::StatusOr<DecodeAttempts::Attempt*> DecodeAttempts::FindOrMake(const AttemptKey& key) {
  if (const auto it = attempts_.find(key); it != attempts_.end()) return &it->second;
  if (key.request.empty() || key.request.size() > kRequestIdBytesMax || key.attempt < 1) {
    return absl::InvalidArgumentError(absl::StrCat("attempt id: 1…", kRequestIdBytesMax,
                                                   " bytes and an attempt >= 1, not ",
                                                   key.request.size(), " bytes and ", key.attempt));
  }
  if (attempts_.size() >= kAttemptsMax) {
    return absl::ResourceExhaustedError(absl::StrCat("attempts known: limit ", kAttemptsMax));
  }
  env_->SetActive(++live_);
  return &attempts_[key];
}

void DecodeAttempts::Feed(const AttemptKey& key, const AttemptJoin::Event& event) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) return;
  Attempt& attempt = it->second;
  const bool had_ended = attempt.join.ended();
  ReportStage(attempt, event);
  for (const auto& effect : attempt.join.Step(event, env_->clock().Now())) {
    Execute(key, attempt, effect);
  }
  if (!attempt.join.ended()) return;
  // What was aborted, here or on the prefill rank, is no news of this one.
  const absl::Status& why = attempt.join.why();
  attempt.report.End(absl::IsAborted(why) ? absl::CancelledError(why.message()) : why);
  attempt.report = {};  // a tombstone needs little; a Submit may have come after the end
  attempt.request = {};
  if (!had_ended) env_->SetActive(--live_);
}

void DecodeAttempts::ReportStage(Attempt& attempt, const AttemptJoin::Event& event) {
  const absl::Time now = env_->clock().Now();
  if (const auto* submitted = std::get_if<AttemptJoin::Submitted>(&event)) {
    if (!submitted->remote_prefill) attempt.stage = now;
  } else if (std::holds_alternative<AttemptJoin::Opened>(event)) {
    attempt.stage = now;
  } else if (const auto* kv = std::get_if<AttemptJoin::KvCommitted>(&event);
             kv && kv->status.ok()) {
    attempt.report.Stage("receive", std::exchange(attempt.stage, now), {{"lane", attempt.lane}});
  }
}

size_t DecodeAttempts::prompts() const {
  return static_cast<size_t>(std::count_if(attempts_.begin(), attempts_.end(), [](const auto& a) {
    return !a.second.request.prompt_ids.empty();
  }));
}

void DecodeAttempts::Execute(const AttemptKey& key, Attempt& attempt,
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
      return env_->Send(attempt.session, ErrorEvent(key, effect.status));
    case Do::kCancelKv:
      return receiver_->Cancel(key);
    case Do::kFreeBlocks:
      return Free(std::exchange(attempt.reservation, {}), false);
    case Do::kAbortEngine:
      return env_->PostEngine([key](Engine& engine) { engine.Abort(key); });
  }
}

void DecodeAttempts::Lease(const AttemptKey& key, const Attempt& attempt) {
  // Without the request, which may come later, nobody knows which tokens they are, or how urgent.
  const bool known = attempt.session != SessionId();
  std::vector<TokenId> ids = attempt.request.prompt_ids;
  ids.insert(ids.end(), attempt.request.generated_ids.begin(), attempt.request.generated_ids.end());
  env_->PostEngine([this, key, tokens = attempt.join.tokens(), ids = std::move(ids),
                    prompt = attempt.request.prompt_ids.size(), salt = attempt.request.cache_salt,
                    priority = known ? attempt.request.priority : INT_MAX](Engine& engine) {
    env_->Post([this, key, reservation = engine.Reserve(tokens, ids, prompt, salt, priority)] {
      const auto it = attempts_.find(key);
      if (it != attempts_.end() && reservation.ok()) it->second.reservation = *reservation;
      Feed(key, AttemptJoin::Leased{reservation.status()});
    });
  });
}

void DecodeAttempts::Open(const AttemptKey& key, const Attempt& attempt) {
  receiver_->Open(attempt.peer_token,
                  {.key = key,
                   .tokens = attempt.join.tokens(),
                   .blocks = attempt.reservation.blocks,
                   .generations = attempt.reservation.generations},
                  [this, key](absl::StatusOr<uint64_t> session) {
                    env_->Post([=, this] {
                      const auto it = attempts_.find(key);
                      if (it != attempts_.end() && session.ok()) it->second.kv_session = *session;
                      Feed(key, AttemptJoin::Opened{session.status()});
                    });
                  });
}

void DecodeAttempts::CommitKv(const AttemptKey& key, Attempt& attempt,
                              const hpb::CommitRequest& request) {
  attempt.lane = lanes_.Find(request.peer_token());
  attempt.first_token = request.first_token();
  attempt.first_index = request.first_index();
  const absl::Duration wait =
      std::clamp(absl::Milliseconds(request.wait_ms()), absl::ZeroDuration(), kCommitWaitMax);
  receiver_->Commit(request.peer_token(), request.session(), request.digest(), wait,
                    [this, key](absl::StatusOr<KvTarget> target) {
                      PostEvent(key, AttemptJoin::KvCommitted{target.status()});
                    });
}

void DecodeAttempts::Adopt(const AttemptKey& key, Attempt& attempt) {
  const size_t tokens = attempt.request.prompt_ids.size() + attempt.request.generated_ids.size();
  if (static_cast<size_t>(attempt.join.tokens()) != tokens ||
      static_cast<size_t>(attempt.first_index) != attempt.request.generated_ids.size()) {
    return PostEvent(key, AttemptJoin::Adopted{absl::InvalidArgumentError(absl::StrCat(
                              "the hand-off has ", attempt.join.tokens(), " tokens and index ",
                              attempt.first_index, ", the request ", tokens, " and ",
                              attempt.request.generated_ids.size()))});
  }
  env_->PostEngine([this, key, request = std::move(attempt.request),
                    reservation = attempt.reservation,
                    first = attempt.first_token](Engine& engine) mutable {
    PostEvent(key, AttemptJoin::Adopted{engine.Adopt(std::move(request), reservation, first)});
  });
}

void DecodeAttempts::AddToEngine(const AttemptKey& key, Attempt& attempt) {
  env_->PostEngine([this, key, request = std::move(attempt.request)](Engine& engine) mutable {
    PostEvent(key, AttemptJoin::Adopted{engine.Add(std::move(request))});
  });
}

void DecodeAttempts::AnswerReserve(const Attempt& attempt, AttemptJoin::WaiterId waiter,
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

void DecodeAttempts::Free(KvReservation reservation, bool quarantine) {
  env_->PostEngine([reservation = std::move(reservation), quarantine](Engine& engine) {
    engine.ReleaseReservation(reservation, quarantine);
  });
}

}  // namespace switchyard

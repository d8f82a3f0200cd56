// The conductor's half that steps a request: worker events in, submits, aborts and client updates
// out.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "router/conductor.h"
#include "router/conductor_request.h"
#include "router/worker_event.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
using End = RequestAttempts::End;
using Phase = RequestAttempts::Phase;

ClientUpdate::Finish FinishFor(End::Reason reason) {
  switch (reason) {
    case End::Reason::kStop:
      return ClientUpdate::Finish::kStop;
    case End::Reason::kLength:
      return ClientUpdate::Finish::kLength;
    case End::Reason::kAborted:
      return ClientUpdate::Finish::kAbort;
    case End::Reason::kError:
      break;
  }
  return ClientUpdate::Finish::kError;
}

// The stop token of the request that the answer ended with; none if it was an end of sequence.
std::optional<TokenId> StopTokenOf(const ClientRequest& request, const ModelDescription& model,
                                   TokenId last) {
  const auto holds = [last](const std::vector<TokenId>& ids) {
    return std::find(ids.begin(), ids.end(), last) != ids.end();
  };
  if (!holds(request.stop_token_ids)) return std::nullopt;
  if (!request.ignore_eos && holds(model.eos_token_ids)) return std::nullopt;
  return last;
}

}  // namespace

void Conductor::OnWorkerEvents(WorkerId worker, const pb::StepEvents& events) {
  bool told = false;  // that it succeeds
  for (const pb::AttemptEvent& e : events.events()) {
    auto it = by_wire_id_.find(e.id().request());
    if (it == by_wire_id_.end()) continue;  // late, of a request that has ended
    Request& r = *it->second;
    if (r.assigned && r.assigned->prefill == worker && e.id().attempt() == r.attempts.attempt() &&
        (e.handed_off() || e.finish() != pb::FINISH_NONE)) {
      workers_.PrefillDone(r.number, *r.assigned);
    }
    if (r.assigned && r.assigned->decode == worker && e.has_token() &&
        !std::exchange(r.served, true)) {
      workers_.Served(r.number, worker);
    }
    const bool failed = e.finish() == pb::FINISH_ERROR;
    if (!failed && !told) workers_.Succeeded(worker);
    told = !failed;
    if (e.handed_off() && e.id().attempt() == r.attempts.attempt()) {
      r.trace.HandedOff(e.kv_bytes_moved(), e.kv_lane(), clock_->Now());
    }
    Apply(r,
          r.attempts.OnEvent(clock_->Now(), worker,
                             EventFromProto(e, model().vocab_size, options_.limits.logprobs_max)));
  }
}

void Conductor::OnWorkerLost(WorkerId worker, const absl::Status& why) {
  for (auto it = requests_.begin(); it != requests_.end();) {
    Request& r = *it++->second;  // Apply may erase it
    Apply(r, r.attempts.OnWorkerLost(clock_->Now(), worker, why));
  }
}

// Workers of one pool have blocks of one size.
PrefixMap::Chain Conductor::ChainOf(const Request& r) const {
  const std::optional<pb::Registration>& pinned = workers_.membership().pinned();
  if (!pinned || pinned->block_tokens() < 1) return {};
  std::vector<TokenId> tokens = r.client.prompt_ids;
  tokens.insert(tokens.end(), r.attempts.generated().begin(), r.attempts.generated().end());
  return PrefixMap::ChainOf(r.client.cache_salt, tokens, pinned->block_tokens());
}

std::map<WorkerId, int> Conductor::PrefixesOf(Request& r) {
  if (r.chain.empty()) r.chain = ChainOf(r);
  std::map<WorkerId, int> tokens = prefixes_.Find(r.chain);
  for (auto& [worker, count] : tokens) count *= workers_.membership().pinned()->block_tokens();
  return tokens;
}

void Conductor::StartAttempt(Request& r, const Route& route) {
  LeaveLine(r);
  r.waiting = false;
  if (r.attempts.Start(route) > 1) outside_.metrics->Retry();
  r.dispatched = std::min(r.dispatched, clock_->Now());
  r.assigned = route;
  r.served = r.settled = false;
  r.decode_worker = workers_.Find(route.decode)->address;
  r.prefill_worker = route.prefill ? workers_.Find(*route.prefill)->address : "";
  r.trace.StartAttempt(r.attempts.attempt(), r.prefill_worker, r.decode_worker, clock_->Now());
  if (outside_.log->enabled(LogLevel::kDebug)) {
    outside_.log->Debug("attempt", {{"request", r.id},
                                    {"attempt", r.attempts.attempt()},
                                    {"prefill", r.prefill_worker},
                                    {"decode", r.decode_worker},
                                    {"as", r.wire_id}});
  }
  workers_.Assign(r.number, route, r.tokens(), r.client.priority);
  prefixes_.Add(r.chain, route.decode);
  if (route.prefill) prefixes_.Add(r.chain, *route.prefill);
  // D first, so that it knows the attempt when P's hand-off arrives.
  std::optional<WorkerId> unreachable;
  pb::ToWorker message;
  *message.mutable_submit() = SubmitFor(r, route, /*to_prefill=*/false);
  if (!workers_.Send(route.decode, std::move(message))) {
    unreachable = route.decode;
  } else if (route.prefill) {
    pb::ToWorker prefill;
    *prefill.mutable_submit() = SubmitFor(r, route, /*to_prefill=*/true);
    if (!workers_.Send(*route.prefill, std::move(prefill))) unreachable = route.prefill;
  }
  if (!unreachable) return Settle(r);
  Apply(r, r.attempts.OnWorkerLost(clock_->Now(), *unreachable,
                                   absl::UnavailableError("the worker takes no messages")));
}

pb::Submit Conductor::SubmitFor(const Request& r, const Route& route, bool to_prefill) const {
  pb::Submit s;
  const std::vector<TokenId>& generated = r.attempts.generated();
  ToProto(AttemptKey{r.wire_id, r.attempts.attempt()}, s.mutable_id());
  s.mutable_prompt_ids()->Add(r.client.prompt_ids.begin(), r.client.prompt_ids.end());
  s.mutable_generated_ids()->Add(generated.begin(), generated.end());
  ToProto(r.client.sampling, s.mutable_sampling());
  s.set_max_tokens(r.client.max_tokens);
  s.mutable_stop_token_ids()->Add(r.client.stop_token_ids.begin(), r.client.stop_token_ids.end());
  s.set_ignore_eos(r.client.ignore_eos);
  s.set_min_tokens(r.client.min_tokens);
  s.set_cache_salt(r.client.cache_salt);
  s.set_priority(r.client.priority);
  s.set_traceparent(r.trace.traceparent());
  if (r.id != r.wire_id) s.set_client_request(r.id);
  // The client has them with its first token, once.
  s.set_prompt_logprobs(generated.empty() ? r.client.prompt_logprobs : -1);
  s.set_deadline_ms(std::max<int64_t>(1, absl::ToInt64Milliseconds(r.deadline - clock_->Now())));
  if (to_prefill) {
    const pb::Registration& decode = workers_.Find(route.decode)->registration;
    s.set_decode_address(decode.handoff_address());
    s.set_decode_incarnation(decode.incarnation());
  } else {
    s.set_remote_prefill(route.prefill.has_value());
  }
  return s;
}

void Conductor::Apply(Request& r, RequestAttempts::Effects effects) {
  ClientUpdate update;
  if (!effects.tokens.empty()) TakeTokens(r, &effects, &update);
  for (const WorkerId worker : effects.faults) workers_.Failed(worker);
  for (const RequestAttempts::Abort& abort : effects.aborts) {
    pb::ToWorker message;
    ToProto(AttemptKey{r.wire_id, abort.attempt}, message.mutable_abort()->mutable_id());
    (void)workers_.Send(abort.worker, std::move(message));  // a worker that is gone has no state
  }
  if (effects.end) FillEnd(r, *effects.end, &update);
  if (effects.end || !update.tokens.empty()) {
    update.first = !std::exchange(r.first_sent, true);
    update.seed = r.client.sampling.seed;
    const bool now = update.first || effects.end;
    const auto interval = static_cast<size_t>(options_.stream_interval);
    const bool due = r.unsent && r.unsent->tokens.size() >= interval;
    if (r.unsent) {
      Append(std::move(update), &*r.unsent);
    } else {
      r.unsent = std::move(update);
    }
    if (now) {
      r.sink(*std::exchange(r.unsent, std::nullopt));
    } else if (!due && r.unsent->tokens.size() >= interval) {
      unsent_.push_back(r.number);
    }
  }
  if (effects.end) {
    Erase(r);
  } else {
    Settle(r);
  }
}

void Conductor::SendUpdates() {
  for (const uint64_t number : unsent_) {
    const auto it = requests_.find(number);
    if (it == requests_.end() || !it->second->unsent) continue;
    it->second->sink(*std::exchange(it->second->unsent, std::nullopt));
  }
  unsent_.clear();
}

void Conductor::TakeTokens(Request& r, RequestAttempts::Effects* effects, ClientUpdate* update) {
  const absl::Time now = clock_->Now();
  if (r.completion_tokens == 0) {
    r.first_token = now;
    outside_.first_token(r.id);
    outside_.metrics->FirstToken(static_cast<int>(r.client.prompt_ids.size()), now - r.arrival);
  } else {
    outside_.metrics->LaterTokens(static_cast<int>(effects->tokens.size()), now - r.last_token);
  }
  r.last_token = now;
  r.trace.Token(now);
  if (r.assigned && !std::exchange(r.settled, true)) workers_.FirstToken(r.number, *r.assigned);
  update->prompt_logprobs = std::move(effects->prompt_logprobs);
  if (r.completion_tokens == 0) r.cached_tokens = effects->cached_tokens;
  const size_t n = effects->tokens.size();
  for (size_t i = 0; i < n && update->stop_match.empty(); ++i) {
    SampledToken& token = effects->tokens[i];
    ++r.completion_tokens;
    // As in vLLM, the token that stops has no text unless it is asked for.
    const bool stops = effects->last_token_stops && i + 1 == n;
    if (stops) update->stop_token = StopTokenOf(r.client, model(), token.token);
    if (!stops || r.client.include_stop) {
      StopMatcher::Result text = r.text.Push(token.token);
      update->text += text.text;
      update->stop_match = text.match.value_or("");
    }
    update->tokens.push_back(std::move(token));
  }
  outside_.metrics->GeneratedTokens(static_cast<int>(update->tokens.size()));
  if (update->stop_match.empty()) return;
  const End stop{End::Reason::kStop, absl::OkStatus()};
  RequestAttempts::Effects stopped = r.attempts.Stop(stop);
  effects->aborts.insert(effects->aborts.end(), stopped.aborts.begin(), stopped.aborts.end());
  effects->end = stop;
}

void Conductor::FillEnd(Request& r, const End& end, ClientUpdate* update) {
  const absl::Time now = clock_->Now();
  update->finish = FinishFor(end.reason);
  update->error = end.error;
  if (update->stop_match.empty()) {
    StopMatcher::Result rest = r.text.Finish();
    update->text += rest.text;
    update->stop_match = rest.match.value_or("");
    if (rest.match && end.reason == End::Reason::kLength) {
      update->finish = ClientUpdate::Finish::kStop;
    }
  }
  update->prompt_tokens = static_cast<int>(r.client.prompt_ids.size());
  update->cached_tokens = std::min(r.cached_tokens, update->prompt_tokens);
  update->completion_tokens = r.completion_tokens;
  update->attempts = r.attempts.attempt();
  update->e2e = now - r.arrival;
  update->ttft = std::min(r.first_token, now) - r.arrival;
  update->kv_bytes_moved = r.attempts.kv_bytes_moved();
  update->kv_lane = r.attempts.kv_lane();
  update->prefill_worker = r.prefill_worker;
  update->decode_worker = r.decode_worker;
  RequestTimes times{.dispatched = r.dispatched - r.arrival, .end = update->e2e};
  if (r.completion_tokens > 0) {
    times.first_token = r.first_token - r.arrival;
    times.last_token = r.last_token - r.arrival;
  }
  outside_.metrics->Ended(*update, times, r.client.max_tokens);
  const std::string trace_id = r.trace.trace_id();  // End forgets it
  r.trace.End({{"request", r.id},
               {"attempts", absl::StrCat(update->attempts)},
               {"prompt_tokens", absl::StrCat(update->prompt_tokens)},
               {"cached_tokens", absl::StrCat(update->cached_tokens)},
               {"completion_tokens", absl::StrCat(update->completion_tokens)},
               {"finish", FinishName(update->finish)}},
              update->error, now);
  if (outside_.log->enabled(LogLevel::kDebug)) {
    outside_.log->Debug("request ended", {{"request", r.id},
                                          {"finish", FinishName(update->finish)},
                                          {"tokens", update->completion_tokens},
                                          {"trace", trace_id}});
  }
  if (end.reason == End::Reason::kError) {
    outside_.log->Warning("request failed", {{"request", r.id}, {"error", end.error.ToString()}});
  }
}

void Conductor::Settle(Request& r) {
  const bool waits = r.attempts.phase() == Phase::kWaiting;
  if (waits && r.assigned) {
    if (r.unsent) unsent_.push_back(r.number);  // the next token may take its time
    r.trace.EndAttempt(absl::UnavailableError("it is tried again"), clock_->Now());
    workers_.Release(r.number, *r.assigned, r.tokens());
    r.assigned.reset();
  }
  const absl::Time now = clock_->Now();
  if (waits && !r.waiting) {
    r.waiting = true;
    r.waiting_since = now;
    EnterLine(r);
  }
  absl::Time timer = r.deadline;
  if (waits) timer = std::min(timer, r.waiting_since + options_.outage_wait);
  // A retry whose time has come waits for a worker, not for a timer.
  if (waits && r.attempts.wake() > now) timer = std::min(timer, r.attempts.wake());
  if (timer == r.timer) return;
  timers_.erase({r.timer, r.number});
  timers_.insert({timer, r.number});
  r.timer = timer;
}

void Conductor::Erase(Request& r) {
  // The next turn of a conversation begins with this one and its answer.
  if (r.assigned && r.completion_tokens > 0) prefixes_.Add(ChainOf(r), r.assigned->decode);
  if (r.assigned) workers_.Release(r.number, *r.assigned, r.tokens());
  LeaveLine(r);
  timers_.erase({r.timer, r.number});
  by_wire_id_.erase(r.wire_id);
  outside_.ended(r.id);
  requests_.erase(r.number);
}

}  // namespace switchyard

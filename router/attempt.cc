#include "router/attempt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace switchyard {
namespace {

using Finish = WorkerEvent::Finish;
using Reason = RequestAttempts::End::Reason;

// A worker's kDeadlineExceeded is that of one of its own waits; the request's deadline is the
// router's to keep.
bool Retryable(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted ||
         code == absl::StatusCode::kDataLoss || code == absl::StatusCode::kAborted ||
         code == absl::StatusCode::kDeadlineExceeded;
}

}  // namespace

RequestAttempts::RequestAttempts(int max_tokens, const AttemptLimits& limits, std::mt19937_64* rng)
    : max_tokens_(max_tokens), limits_(limits), rng_(rng) {
  SY_CHECK(max_tokens >= 1);
}

int RequestAttempts::Start(const Route& route) {
  SY_CHECK(phase_ == Phase::kWaiting);
  phase_ = Phase::kRunning;
  route_ = route;
  wake_ = absl::InfiniteFuture();
  first_taken_ = !route.prefill.has_value();
  prefill_done_ = false;
  decode_first_ = static_cast<int64_t>(generated_.size()) + (route.prefill ? 1 : 0);
  decode_next_ = decode_first_;
  held_.clear();
  return ++attempt_;
}

RequestAttempts::Effects RequestAttempts::OnEvent(absl::Time now, WorkerId from,
                                                  WorkerEvent event) {
  Effects effects;
  if (phase_ != Phase::kRunning || event.attempt != attempt_) return effects;
  if (route_.prefill == from) {
    OnPrefillEvent(now, std::move(event), &effects);
  } else if (route_.decode == from) {
    OnDecodeEvent(now, std::move(event), &effects);
  }
  return effects;
}

void RequestAttempts::OnPrefillEvent(absl::Time now, WorkerEvent event, Effects* effects) {
  if (event.handed_off) TakeAccount(event);
  if (event.finish == Finish::kError) {
    // D's tokens prove that the hand-off has succeeded, whatever P believes.
    if (first_taken_ && (prefill_done_ || decode_next_ > decode_first_)) {
      prefill_done_ = true;
    } else {
      return Fail(now, {*route_.prefill, route_.decode}, event.error, effects, event.retry_after);
    }
  } else if ((event.token.has_value() || event.finish != Finish::kNone) && !first_taken_) {
    if (event.token.has_value() && event.index != decode_first_ - 1) {
      return Fail(now, {*route_.prefill},
                  absl::InternalError(absl::StrCat("prefill worker sent token ", event.index,
                                                   ", expected ", decode_first_ - 1)),
                  effects);
    }
    first_taken_ = true;
    Accept(std::move(event), effects);
    while (phase_ == Phase::kRunning && !held_.empty()) {
      WorkerEvent held = std::move(held_.front());
      held_.pop_front();
      Accept(std::move(held), effects);
    }
  }
}

void RequestAttempts::OnDecodeEvent(absl::Time now, WorkerEvent event, Effects* effects) {
  if (event.finish == Finish::kError) {
    return Fail(now, {route_.decode}, event.error, effects, event.retry_after);
  }
  if (event.token.has_value()) {
    if (event.index < decode_next_) return;  // a repeat
    if (event.index > decode_next_) {
      return Fail(now, {route_.decode},
                  absl::InternalError(absl::StrCat("decode worker sent token ", event.index,
                                                   ", expected ", decode_next_)),
                  effects);
    }
    if (event.index >= max_tokens_) {
      return Fail(now, {route_.decode},
                  absl::InternalError(absl::StrCat("decode worker sent token ", event.index,
                                                   " of at most ", max_tokens_)),
                  effects);
    }
    ++decode_next_;
  } else if (event.finish == Finish::kNone) {
    return;
  }
  if (first_taken_) {
    Accept(std::move(event), effects);
  } else if (held_.empty() || held_.back().finish == Finish::kNone) {
    held_.push_back(std::move(event));
  }
}

void RequestAttempts::Accept(WorkerEvent event, Effects* effects) {
  const bool has_token = event.token.has_value();
  // D's end says what the hand-off has moved, in case that it overtakes P's word.
  if (event.finish != Finish::kNone && event.kv_bytes_moved > 0) TakeAccount(event);
  if (has_token) {
    if (generated_.empty()) {
      effects->prompt_logprobs = std::move(event.prompt_logprobs);
      effects->cached_tokens = event.cached_tokens;
    }
    generated_.push_back(event.token->token);
    faults_ = refusals_ = 0;
    effects->tokens.push_back(*std::move(event.token));
  }
  if (event.finish == Finish::kStop) {
    effects->last_token_stops = has_token;
    FinishByWorker({Reason::kStop, absl::OkStatus()}, effects);
  } else if (event.finish == Finish::kLength) {
    FinishByWorker({Reason::kLength, absl::OkStatus()}, effects);
  } else if (static_cast<int>(generated_.size()) >= max_tokens_) {
    AbortAll(effects);  // the worker goes on past the limit
    Finish({Reason::kLength, absl::OkStatus()}, effects);
  }
}

void RequestAttempts::FinishByWorker(End end, Effects* effects) {
  if (route_.prefill.has_value() && decode_next_ == decode_first_) {
    effects->aborts.push_back({route_.decode, attempt_});  // it waits for KV that nobody needs
  }
  Finish(std::move(end), effects);
}

void RequestAttempts::TakeAccount(const WorkerEvent& event) {
  if (prefill_done_) return;
  prefill_done_ = true;
  kv_bytes_moved_ += event.kv_bytes_moved;
  kv_lane_ = event.kv_lane;
}

RequestAttempts::Effects RequestAttempts::OnWorkerLost(absl::Time now, WorkerId worker,
                                                       const absl::Status& why) {
  Effects effects;
  if (phase_ != Phase::kRunning) return effects;
  if (route_.prefill == worker) {
    if (first_taken_ && (prefill_done_ || decode_next_ > decode_first_)) {
      prefill_done_ = true;  // its part is done
    } else {
      Fail(now, {worker}, why, &effects);
    }
  } else if (route_.decode == worker) {
    Fail(now, {worker}, why, &effects);
  }
  std::erase_if(effects.aborts, [&](const Abort& a) { return a.worker == worker; });
  return effects;
}

RequestAttempts::Effects RequestAttempts::Stop(End end) {
  Effects effects;
  if (phase_ == Phase::kEnded) return effects;
  if (phase_ == Phase::kRunning) AbortAll(&effects);
  Finish(std::move(end), &effects);
  return effects;
}

void RequestAttempts::Finish(End end, Effects* effects) {
  phase_ = Phase::kEnded;
  wake_ = absl::InfiniteFuture();
  held_.clear();
  effects->end = std::move(end);
}

void RequestAttempts::Fail(absl::Time now, std::initializer_list<WorkerId> culprits,
                           const absl::Status& why, Effects* effects, absl::Duration retry_after) {
  AbortAll(effects);
  held_.clear();
  if (!Retryable(why.code())) return Finish({Reason::kError, why}, effects);
  const bool refused = why.code() == absl::StatusCode::kResourceExhausted;
  int& count = refused ? refusals_ : faults_;
  if (++count >= (refused ? limits_.refusals_max : limits_.attempts_max)) {
    const std::string text =
        absl::StrCat("given up after ", attempt_, " attempts, the last ", count,
                     " without a token; the last one: ", absl::StatusCodeToString(why.code()), ": ",
                     why.message());
    return Finish({Reason::kError,
                   refused ? absl::ResourceExhaustedError(text) : absl::UnavailableError(text)},
                  effects);
  }
  // A full decode worker says so by way of the prefill worker, which is not to blame.
  if (refused) {
    avoid_.insert(route_.decode);
  } else {
    avoid_.insert(culprits.begin(), culprits.end());
    effects->faults = culprits;
  }
  phase_ = Phase::kWaiting;
  wake_ = now + std::max(Backoff(count), retry_after);
}

void RequestAttempts::AbortAll(Effects* effects) {
  for (std::optional<WorkerId> worker : {std::optional(route_.decode), route_.prefill}) {
    if (!worker) continue;
    if (worker == route_.prefill && prefill_done_) continue;
    effects->aborts.push_back({*worker, attempt_});
  }
}

// Doubles, and is drawn from [1/2, 1) of that, so that the requests of a lost worker do not arrive
// at the next one together.
absl::Duration RequestAttempts::Backoff(int n) {
  const absl::Duration full =
      std::min(limits_.backoff_max, limits_.backoff_min * (int64_t{1} << std::min(n - 1, 20)));
  return full * std::uniform_real_distribution<double>(0.5, 1.0)(*rng_);
}

}  // namespace switchyard

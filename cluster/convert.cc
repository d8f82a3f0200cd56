#include "cluster/convert.h"

#include <algorithm>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace switchyard {

AttemptKey FromProto(const cluster::v1::AttemptId& id) { return {id.request(), id.attempt()}; }

void ToProto(const AttemptKey& key, cluster::v1::AttemptId* id) {
  id->set_request(key.request);
  id->set_attempt(key.attempt);
}

SamplingParams FromProto(const cluster::v1::WorkerSampling& sampling) {
  SamplingParams out{.temperature = sampling.temperature(),
                     .top_k = sampling.top_k(),
                     .top_p = sampling.top_p(),
                     .min_p = sampling.min_p(),
                     .presence_penalty = sampling.presence_penalty(),
                     .frequency_penalty = sampling.frequency_penalty(),
                     .repetition_penalty = sampling.repetition_penalty(),
                     .logit_bias = {},
                     .seed = sampling.seed(),
                     .sample = sampling.sample(),
                     .logprobs = sampling.logprobs()};
  const int n = std::min(sampling.bias_tokens_size(), sampling.bias_values_size());
  for (int i = 0; i < n; ++i) {
    out.logit_bias.emplace_back(sampling.bias_tokens(i), sampling.bias_values(i));
  }
  return out;
}

void ToProto(const SamplingParams& sampling, cluster::v1::WorkerSampling* out) {
  out->set_temperature(sampling.temperature);
  out->set_top_k(sampling.top_k);
  out->set_top_p(sampling.top_p);
  out->set_seed(sampling.seed);
  out->set_logprobs(sampling.logprobs);
  out->set_min_p(sampling.min_p);
  out->set_presence_penalty(sampling.presence_penalty);
  out->set_frequency_penalty(sampling.frequency_penalty);
  out->set_repetition_penalty(sampling.repetition_penalty);
  out->set_sample(sampling.sample);
  for (const auto& [token, bias] : sampling.logit_bias) {
    out->add_bias_tokens(token);
    out->add_bias_values(bias);
  }
}

SampledToken FromProto(const cluster::v1::ScoredToken& token) {
  SampledToken out{
      .token = token.token(), .logprob = token.logprob(), .rank = token.rank(), .top = {}};
  const int n = std::min(token.top_tokens_size(), token.top_logprobs_size());
  out.top.reserve(n);
  for (int i = 0; i < n; ++i) out.top.push_back({token.top_tokens(i), token.top_logprobs(i)});
  return out;
}

void ToProto(const SampledToken& token, cluster::v1::ScoredToken* out) {
  out->set_token(token.token);
  out->set_logprob(token.logprob);
  out->set_rank(token.rank);
  for (const TokenLogprob& t : token.top) {
    out->add_top_tokens(t.token);
    out->add_top_logprobs(t.logprob);
  }
}

void SetRetryAfter(absl::Duration after, absl::Status* status) {
  status->SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(after))));
}

absl::Duration RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterUrl);
  int64_t ms = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &ms)) return absl::ZeroDuration();
  return std::clamp(absl::Milliseconds(ms), absl::ZeroDuration(), absl::Minutes(1));
}

cluster::v1::AttemptEvent ErrorEvent(const AttemptKey& key, const absl::Status& status) {
  cluster::v1::AttemptEvent event;
  ToProto(key, event.mutable_id());
  event.set_finish(cluster::v1::FINISH_ERROR);
  event.set_error_code(static_cast<uint32_t>(status.code()));
  event.set_error(std::string(status.message()));
  event.set_retry_after_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(RetryAfter(status))));
  return event;
}

absl::Status ErrorOf(const cluster::v1::AttemptEvent& event) {
  constexpr uint32_t kLastCode = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
  const bool known = event.error_code() >= 1 && event.error_code() <= kLastCode;
  absl::Status status(
      known ? static_cast<absl::StatusCode>(event.error_code()) : absl::StatusCode::kInternal,
      event.error());
  if (event.retry_after_ms() > 0) {
    SetRetryAfter(absl::Milliseconds(event.retry_after_ms()), &status);
  }
  return status;
}

}  // namespace switchyard

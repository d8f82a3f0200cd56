#include "engine/request.h"

#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

template <typename T, typename U, typename V>
absl::Status OutOfRange(absl::string_view field, T value, U low, V high) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; allowed are ", low, " to ", high));
}

absl::Status CheckIds(absl::string_view field, const std::vector<TokenId>& ids, int vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return OutOfRange(absl::StrCat(field, "[", i, "]"), ids[i], 0, vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogits(const SamplingParams& p) {
  if (!(p.min_p >= 0 && p.min_p <= 1)) return OutOfRange("min_p", p.min_p, 0, 1);
  for (const auto& [field, value] : {std::pair("presence_penalty", p.presence_penalty),
                                     std::pair("frequency_penalty", p.frequency_penalty)}) {
    if (!(std::abs(value) <= kPenaltyMax)) {
      return OutOfRange(field, value, -kPenaltyMax, kPenaltyMax);
    }
  }
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= kRepetitionPenaltyMax)) {
    return absl::InvalidArgumentError(absl::StrCat("repetition_penalty is ", p.repetition_penalty,
                                                   "; allowed is (0, ", kRepetitionPenaltyMax,
                                                   "]"));
  }
  if (p.logit_bias.size() > kLogitBiasMax) {
    return OutOfRange("number of logit_bias", p.logit_bias.size(), 0, kLogitBiasMax);
  }
  std::set<TokenId> seen;
  for (const auto& [token, bias] : p.logit_bias) {
    if (!(std::abs(bias) <= kLogitBiasValueMax)) {
      return OutOfRange(absl::StrCat("logit_bias of ", token), bias, -kLogitBiasValueMax,
                        kLogitBiasValueMax);
    }
    if (!seen.insert(token).second) {
      return absl::InvalidArgumentError(absl::StrCat("logit_bias names token ", token, " twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const SamplingParams& p) {
  if (!(p.temperature >= 0 && p.temperature <= kTemperatureMax)) {
    return OutOfRange("temperature", p.temperature, 0, kTemperatureMax);
  }
  if (p.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_k is ", p.top_k, "; it must be at least 0 (off)"));
  }
  if (!(p.top_p > 0 && p.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p is ", p.top_p, "; allowed is (0, 1]"));
  }
  if (p.logprobs < -1 || p.logprobs > kLogprobsMax) {
    return OutOfRange("logprobs", p.logprobs, -1, kLogprobsMax);
  }
  return CheckLogits(p);
}

}  // namespace

absl::Status CheckRequest(const EngineRequest& r) {
  if (r.key.request.empty() || r.key.request.size() > kRequestIdBytesMax) {
    return OutOfRange("length of the request's id", r.key.request.size(), 1, kRequestIdBytesMax);
  }
  if (r.key.attempt < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("attempt is ", r.key.attempt, "; attempts count from 1"));
  }
  if (r.prompt_ids.empty()) return absl::InvalidArgumentError("prompt_ids is empty");
  if (r.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", r.max_tokens, "; it must be at least 1"));
  }
  if (r.generated_ids.size() >= static_cast<size_t>(r.max_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat("generated_ids has ", r.generated_ids.size(),
                                                   " tokens; max_tokens ", r.max_tokens,
                                                   " leaves none to generate"));
  }
  if (r.min_tokens < 0 || r.min_tokens > r.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "min_tokens is ", r.min_tokens, "; allowed are 0 to max_tokens, ", r.max_tokens));
  }
  if (r.stop_token_ids.size() > kStopTokenIdsMax) {
    return OutOfRange("number of stop_token_ids", r.stop_token_ids.size(), 0, kStopTokenIdsMax);
  }
  if (r.cache_salt.size() > kCacheSaltBytesMax) {
    return OutOfRange("length of cache_salt", r.cache_salt.size(), 0, kCacheSaltBytesMax);
  }
  if (r.prompt_logprobs < -1 || r.prompt_logprobs > kLogprobsMax) {
    return OutOfRange("prompt_logprobs", r.prompt_logprobs, -1, kLogprobsMax);
  }
  return CheckSampling(r.sampling);
}

absl::Status CheckRequest(const EngineRequest& r, int vocab_size, int max_model_len) {
  RETURN_IF_ERROR(CheckRequest(r));
  const size_t given = r.prompt_ids.size() + r.generated_ids.size();
  if (given >= static_cast<size_t>(max_model_len)) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_ids and generated_ids have ", given,
                                                   " tokens; max_model_len ", max_model_len,
                                                   " leaves at most ", max_model_len - 1));
  }
  RETURN_IF_ERROR(CheckIds("prompt_ids", r.prompt_ids, vocab_size));
  RETURN_IF_ERROR(CheckIds("generated_ids", r.generated_ids, vocab_size));
  for (const auto& [token, bias] : r.sampling.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return OutOfRange("token of logit_bias", token, 0, vocab_size - 1);
    }
  }
  return CheckIds("stop_token_ids", r.stop_token_ids, vocab_size);
}

}  // namespace switchyard

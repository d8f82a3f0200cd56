#include "engine/request.h"

#include <cmath>

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

absl::Status CheckSampling(const SamplingParams& p) {
  if (!(p.temperature >= 0) || !std::isfinite(p.temperature)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", p.temperature, "; it must be finite and at least 0"));
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
  return absl::OkStatus();
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
  if (r.stop_token_ids.size() > kStopTokenIdsMax) {
    return OutOfRange("number of stop_token_ids", r.stop_token_ids.size(), 0, kStopTokenIdsMax);
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
  return CheckIds("stop_token_ids", r.stop_token_ids, vocab_size);
}

}  // namespace switchyard

#include "router/validate.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

template <typename... Parts>
absl::Status Bad(absl::string_view field, const Parts&... parts) {
  return BadField({field.data(), field.size()}, absl::StrCat(parts...));
}

absl::Status CheckTokens(const char* field, const std::vector<TokenId>& ids, int vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return Bad(absl::StrCat(field, "[", i, "]"), " is ", ids[i], ", must be in [0, ", vocab_size,
                 ")");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const ModelDescription& model, const RouterLimits& limits,
                         const ClientRequest& r) {
  const size_t n = r.prompt_ids.size();
  if (n == 0) return Bad("prompt", " has 0 tokens, must have at least 1");
  if (n >= static_cast<size_t>(model.max_model_len)) {
    return Bad("prompt", " has ", n, " tokens, must have fewer than max_model_len ",
               model.max_model_len);
  }
  if (limits.prompt_tokens_max > 0 && n > static_cast<size_t>(limits.prompt_tokens_max)) {
    return Bad("prompt", " has ", n, " tokens, must have at most ", limits.prompt_tokens_max);
  }
  return CheckTokens("prompt", r.prompt_ids, model.vocab_size);
}

absl::Status CheckLogitBias(const ModelDescription& model, const SamplingParams& s) {
  if (s.logit_bias.size() > kLogitBiasMax) {
    return Bad("logit_bias", " has ", s.logit_bias.size(), " tokens, must have at most ",
               kLogitBiasMax);
  }
  std::set<TokenId> seen;
  for (const auto& [token, bias] : s.logit_bias) {
    const std::string field = absl::StrCat("logit_bias[", token, "]");
    if (token < 0 || token >= model.vocab_size) {
      return Bad(field, ": the token must be in [0, ", model.vocab_size, ")");
    }
    if (!(std::abs(bias) <= kLogitBiasValueMax)) {
      return Bad(field, " is ", bias, ", must be in [", -kLogitBiasValueMax, ", ",
                 kLogitBiasValueMax, "]");
    }
    if (!seen.insert(token).second) return Bad(field, " is given twice");
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const RouterLimits& limits, const ClientRequest& r) {
  const SamplingParams& s = r.sampling;
  if (!(s.temperature >= 0 && s.temperature <= kTemperatureMax)) {  // NaN too
    return Bad("temperature", " is ", s.temperature, ", must be in [0, ", kTemperatureMax, "]");
  }
  if (!(s.top_p > 0 && s.top_p <= 1)) return Bad("top_p", " is ", s.top_p, ", must be in (0, 1]");
  if (!(s.min_p >= 0 && s.min_p <= 1)) return Bad("min_p", " is ", s.min_p, ", must be in [0, 1]");
  for (auto [field, value] : {std::pair("presence_penalty", s.presence_penalty),
                              std::pair("frequency_penalty", s.frequency_penalty)}) {
    if (!(std::abs(value) <= kPenaltyMax)) {
      return Bad(field, " is ", value, ", must be in [", -kPenaltyMax, ", ", kPenaltyMax, "]");
    }
  }
  if (!(s.repetition_penalty > 0 && s.repetition_penalty <= kRepetitionPenaltyMax)) {
    return Bad("repetition_penalty", " is ", s.repetition_penalty, ", must be in (0, ",
               kRepetitionPenaltyMax, "]");
  }
  if (s.top_k < -1) return Bad("top_k", " is ", s.top_k, ", must be at least -1");
  for (auto [field, value] :
       {std::pair("logprobs", s.logprobs), std::pair("prompt_logprobs", r.prompt_logprobs)}) {
    if (value < -1 || value > limits.logprobs_max) {
      return Bad(field, " is ", value, ", must be in [0, ", limits.logprobs_max, "]");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const ModelDescription& model, const RouterLimits& limits,
                        bool has_tokenizer, const ClientRequest& r) {
  if (r.stop.size() > static_cast<size_t>(limits.stop_strings_max)) {
    return Bad("stop", " has ", r.stop.size(), " strings, must have at most ",
               limits.stop_strings_max);
  }
  if (!r.stop.empty() && !has_tokenizer) {
    return Bad("stop", ": the checkpoint has no tokenizer, so there is no text to match");
  }
  for (size_t i = 0; i < r.stop.size(); ++i) {
    const size_t bytes = r.stop[i].size();
    if (bytes == 0 || bytes > static_cast<size_t>(limits.stop_bytes_max)) {
      return Bad(absl::StrCat("stop[", i, "]"), " has ", bytes, " bytes, must have 1 to ",
                 limits.stop_bytes_max);
    }
  }
  if (r.stop_token_ids.size() > static_cast<size_t>(limits.stop_token_ids_max)) {
    return Bad("stop_token_ids", " has ", r.stop_token_ids.size(), " ids, must have at most ",
               limits.stop_token_ids_max);
  }
  return CheckTokens("stop_token_ids", r.stop_token_ids, model.vocab_size);
}

}  // namespace

absl::Status BadField(std::string_view field, std::string_view message) {
  const absl::string_view name(field.data(), field.size());
  absl::Status status = absl::InvalidArgumentError(
      absl::StrCat(name, absl::string_view(message.data(), message.size())));
  status.SetPayload(kFieldPayload, absl::Cord(name));
  return status;
}

absl::Status ValidateRequest(const ModelDescription& model, const RouterLimits& limits,
                             bool has_tokenizer, ClientRequest* request) {
  if (request->request_id.size() > kRequestIdBytesMax) {
    return Bad("request_id", " has ", request->request_id.size(), " bytes, must have at most ",
               kRequestIdBytesMax);
  }
  if (request->cache_salt.size() > kCacheSaltBytesMax) {
    return Bad("cache_salt", " has ", request->cache_salt.size(), " bytes, must have at most ",
               kCacheSaltBytesMax);
  }
  RETURN_IF_ERROR(CheckPrompt(model, limits, *request));
  if (request->max_tokens < 1) {
    return Bad("max_tokens", " is ", request->max_tokens, ", must be at least 1");
  }
  if (request->min_tokens < 0 || request->min_tokens > request->max_tokens) {
    return Bad("min_tokens", " is ", request->min_tokens, ", must be in [0, max_tokens ",
               request->max_tokens, "]");
  }
  RETURN_IF_ERROR(CheckSampling(limits, *request));
  RETURN_IF_ERROR(CheckLogitBias(model, request->sampling));
  RETURN_IF_ERROR(CheckStops(model, limits, has_tokenizer, *request));
  const int room = model.max_model_len - static_cast<int>(request->prompt_ids.size());
  request->max_tokens = std::min(request->max_tokens, room);
  request->min_tokens = std::min(request->min_tokens, room);
  request->sampling.top_k = std::max(request->sampling.top_k, 0);
  return absl::OkStatus();
}

absl::Status CheckListed(const ModelDescription& model, const std::vector<ClientRequest>& choices,
                         bool streamed) {
  int64_t of_prompts = 0, of_answers = 0;
  for (const ClientRequest& r : choices) {
    const auto prompt = static_cast<int64_t>(r.prompt_ids.size());
    const int64_t answer = std::min<int64_t>(r.max_tokens, model.max_model_len - prompt);
    of_prompts += prompt * ListedPerToken(r.prompt_logprobs);
    if (!streamed) of_answers += answer * ListedPerToken(r.sampling.logprobs);
  }
  const int64_t limit = streamed ? kListedOfStreamMax : kListedMax;
  if (of_prompts + of_answers <= limit) return absl::OkStatus();
  return Bad(of_prompts > of_answers ? "prompt_logprobs" : "logprobs", ": ", choices.size(),
             " answers may list ", of_prompts, " logprobs of prompts and ", of_answers,
             " of answers, must be at most ", limit);
}

absl::StatusOr<std::vector<TokenId>> EncodePrompt(std::string_view field, std::string_view text,
                                                  bool add_special_tokens, bool truncated,
                                                  const ModelDescription& model,
                                                  const Tokenizer* tokenizer) {
  const absl::string_view name(field.data(), field.size());
  if (tokenizer == nullptr) return Bad(name, ": this checkpoint has no tokenizer: give token ids");
  const size_t per_token = tokenizer->bytes_per_token_max();
  const auto tokens_max = static_cast<size_t>(model.max_model_len) - 1;
  if (!truncated && per_token > 0 && text.size() / per_token > tokens_max) {
    return Bad(name, " has ", text.size(), " bytes, which are at least ", text.size() / per_token,
               " tokens, must have fewer than max_model_len ", model.max_model_len);
  }
  absl::StatusOr<std::vector<TokenId>> ids = tokenizer->Encode(text, add_special_tokens);
  if (!ids.ok()) return Bad(name, ": ", ids.status().message());
  return ids;
}

}  // namespace switchyard

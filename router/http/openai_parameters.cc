// The parameters that completions and chat share.
#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/openai_fields.h"
#include "router/http/openai_parse.h"
#include "router/samples.h"
#include "router/validate.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr float kTimeoutSecondsMax = 1e6f;

struct NeutralField {
  const char* name;
  const char* values;  // a JSON array
};

// Known fields that ask for what is not there. Their neutral values ask for nothing.
constexpr NeutralField kNeutralFields[] = {
    {"allowed_token_ids", "[[]]"},
    {"audio", "[]"},
    {"bad_words", "[[]]"},
    {"best_of", "[1]"},
    {"chat_template", "[]"},
    {"detokenize", "[true]"},
    {"early_stopping", "[false]"},
    {"function_call", "[\"none\"]"},
    {"functions", "[[]]"},
    {"guided_choice", "[]"},
    {"guided_grammar", "[]"},
    {"guided_json", "[]"},
    {"guided_regex", "[]"},
    {"kv_transfer_params", "[]"},
    {"length_penalty", "[1]"},
    {"logits_processors", "[[]]"},
    {"mm_processor_kwargs", "[{}]"},
    {"modalities", "[[\"text\"]]"},
    {"prediction", "[]"},
    {"reasoning_effort", "[\"none\"]"},
    {"response_format", "[{\"type\":\"text\"}]"},
    {"structured_outputs", "[]"},
    {"suffix", "[\"\"]"},
    {"use_beam_search", "[false]"},
    {"web_search_options", "[]"},
};

absl::Status ReadStop(const Json& body, const ApiContext& context, ClientRequest* out) {
  const RouterLimits& limits = *context.limits;
  FieldReader fields(body);
  if (const Json* ids = fields.Find("stop_token_ids")) {
    if (!ids->is_array() || ids->size() > static_cast<size_t>(limits.stop_token_ids_max)) {
      return FieldError("stop_token_ids", absl::StrCat(Shown(*ids), " is not an array of at most ",
                                                       limits.stop_token_ids_max, " token ids"));
    }
    ASSIGN_OR_RETURN(out->stop_token_ids, ReadIds("stop_token_ids", *ids, context));
  }
  const Json* stop = fields.Find("stop");
  if (stop == nullptr) return absl::OkStatus();
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (list.size() > static_cast<size_t>(limits.stop_strings_max)) {
    return FieldError(
        "stop", absl::StrCat(Shown(list), " has more than ", limits.stop_strings_max, " strings"));
  }
  for (const Json& value : list) {
    if (!value.is_string() || value.get_ref<const std::string&>().empty() ||
        value.get_ref<const std::string&>().size() > static_cast<size_t>(limits.stop_bytes_max)) {
      return FieldError("stop", absl::StrCat(Shown(value), " is not a string of 1 to ",
                                             limits.stop_bytes_max, " bytes"));
    }
    out->stop.push_back(value.get<std::string>());
  }
  if (!out->stop.empty() && context.tokenizer == nullptr) {
    return FieldError("stop", "this checkpoint has no tokenizer: use stop_token_ids");
  }
  return absl::OkStatus();
}

absl::Status ReadStreamOptions(const Json& body, ApiRequest* out) {
  FieldReader fields(body);
  out->stream = fields.Bool("stream", false);
  const Json* options = fields.Find("stream_options");
  if (options == nullptr) return fields.status();
  if (!options->is_object()) {
    return FieldError("stream_options", absl::StrCat(Shown(*options), " is not an object"));
  }
  if (!out->stream) return FieldError("stream_options", "needs stream true");
  FieldReader inner(*options, "stream_options.");
  out->include_usage = inner.Bool("include_usage", false);
  out->continuous_usage = inner.Bool("continuous_usage_stats", false);
  RETURN_IF_ERROR(fields.status());
  return inner.status();
}

// {"<token id>": bias, …}
absl::Status ReadLogitBias(const Json& body, const ApiContext& context, SamplingParams* out) {
  const Json* all = FieldReader(body).Find("logit_bias");
  if (all == nullptr) return absl::OkStatus();
  if (!all->is_object() || all->size() > kLogitBiasMax) {
    return FieldError("logit_bias", absl::StrCat(Shown(*all), " is not an object of at most ",
                                                 kLogitBiasMax, " token ids"));
  }
  FieldReader biases(*all, "logit_bias.");
  for (const auto& [name, value] : all->items()) {
    TokenId token = 0;
    if (!absl::SimpleAtoi(name, &token) || token < 0 || token >= context.model->vocab_size) {
      return FieldError("logit_bias", absl::StrCat(Shown(name), " is not a token id from 0 to ",
                                                   context.model->vocab_size - 1));
    }
    const float bias = biases.Number(name, 0, -kLogitBiasValueMax, kLogitBiasValueMax);
    out->logit_bias.emplace_back(token, bias);
  }
  return biases.status();
}

absl::Status ReadSampling(const Json& body, const ApiContext& context, ClientRequest* common) {
  FieldReader fields(body);
  SamplingParams& sampling = common->sampling;
  sampling.temperature = fields.Number("temperature", 1, 0, kTemperatureMax);
  sampling.top_p = fields.Number("top_p", 1, 0, 1, /*above_min=*/true);
  sampling.top_k =
      static_cast<int32_t>(std::max<int64_t>(0, fields.Int("top_k", 0, -1, kInt32Max)));
  sampling.min_p = fields.Number("min_p", 0, 0, 1);
  sampling.presence_penalty = fields.Number("presence_penalty", 0, -kPenaltyMax, kPenaltyMax);
  sampling.frequency_penalty = fields.Number("frequency_penalty", 0, -kPenaltyMax, kPenaltyMax);
  sampling.repetition_penalty = fields.Number("repetition_penalty", 1, 0, kRepetitionPenaltyMax,
                                              /*above_min=*/true);
  const Json* seed = fields.Find("seed");
  // −1 is what some clients send for none. (Json's == takes 2^64 − 1 for it.)
  if (seed != nullptr && (seed->is_number_unsigned() || *seed != -1)) {
    sampling.seed = fields.Uint64("seed", 0);
    common->seed_given = true;
  }
  RETURN_IF_ERROR(fields.status());
  return ReadLogitBias(body, context, &sampling);
}

}  // namespace

absl::Status CheckModel(const Json& body, const ApiContext& context) {
  const auto it = body.find("model");
  if (it == body.end() || it->is_null() || *it == context.model->id) return absl::OkStatus();
  if (!it->is_string()) return FieldError("model", absl::StrCat(Shown(*it), " is not a string"));
  return FieldError("model",
                    absl::StrCat(Shown(*it), " is not served here; ", context.model->id, " is"),
                    absl::StatusCode::kNotFound);
}

absl::Status ReadParameters(const Json& body, const ApiContext& context, ApiRequest* out,
                            ClientRequest* common) {
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  for (const NeutralField& field : kNeutralFields) fields.Neutral(field.name, field.values);
  out->n = static_cast<int>(fields.Int("n", 1, 1, kSamplesMax));
  common->ignore_eos = fields.Bool("ignore_eos", false);
  common->min_tokens = static_cast<int>(fields.Int("min_tokens", 0, 0, kInt32Max));
  common->cache_salt = fields.String("cache_salt", kCacheSaltBytesMax);
  common->include_stop = fields.Bool("include_stop_str_in_output", false);
  common->skip_special_tokens = fields.Bool("skip_special_tokens", true);
  common->priority = static_cast<int>(fields.Int("priority", 0, -kInt32Max, kInt32Max));
  out->prompt_logprobs =
      static_cast<int>(fields.Int("prompt_logprobs", -1, 0, context.limits->logprobs_max));
  out->return_token_ids = fields.Bool("return_token_ids", false);
  out->tokens_as_ids = fields.Bool("return_tokens_as_token_ids", false);
  out->request_id = fields.String("request_id", kRequestIdBytesMax);
  const float seconds = fields.Number("timeout", 0, 0, kTimeoutSecondsMax, /*above_min=*/true);
  if (seconds > 0) common->deadline = absl::Seconds(seconds);
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(ReadSampling(body, context, common));
  RETURN_IF_ERROR(ReadStreamOptions(body, out));
  return ReadStop(body, context, common);
}

}  // namespace switchyard

#include "router/http/openai_request.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/openai_fields.h"
#include "router/validate.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

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
    {"cache_salt", "[\"\"]"},
    {"chat_template", "[]"},
    {"continue_final_message", "[false]"},
    {"detokenize", "[true]"},
    {"documents", "[[]]"},
    {"early_stopping", "[false]"},
    {"frequency_penalty", "[0]"},
    {"function_call", "[\"none\"]"},
    {"functions", "[[]]"},
    {"guided_choice", "[]"},
    {"guided_grammar", "[]"},
    {"guided_json", "[]"},
    {"guided_regex", "[]"},
    {"include_stop_str_in_output", "[false]"},
    {"kv_transfer_params", "[]"},
    {"length_penalty", "[1]"},
    {"logit_bias", "[{}]"},
    {"logits_processors", "[[]]"},
    {"min_p", "[0]"},
    {"min_tokens", "[0]"},
    {"mm_processor_kwargs", "[{}]"},
    {"modalities", "[[\"text\"]]"},
    {"n", "[1]"},
    {"prediction", "[]"},
    {"presence_penalty", "[0]"},
    {"reasoning_effort", "[\"none\"]"},
    {"repetition_penalty", "[1]"},
    {"response_format", "[{\"type\":\"text\"}]"},
    {"structured_outputs", "[]"},
    {"suffix", "[\"\"]"},
    {"tool_choice", "[\"none\",\"auto\"]"},
    {"tools", "[[]]"},
    {"truncate_prompt_tokens", "[]"},
    {"use_beam_search", "[false]"},
    {"web_search_options", "[]"},
};

absl::Status NoTokenizer(std::string_view field) {
  return FieldError(field, "this checkpoint has no tokenizer: give token ids");
}

absl::StatusOr<std::vector<TokenId>> Encode(std::string_view field, std::string_view text,
                                            bool add_special_tokens, const ApiContext& context) {
  if (context.tokenizer == nullptr) return NoTokenizer(field);
  absl::StatusOr<std::vector<TokenId>> ids = context.tokenizer->Encode(text, add_special_tokens);
  if (!ids.ok()) return FieldError(field, std::string(ids.status().message()));
  if (ids->empty()) return FieldError(field, "has no tokens");
  return ids;
}

// Ids that the model has.
absl::StatusOr<std::vector<TokenId>> ReadIds(std::string_view field, const Json& list,
                                             const ApiContext& context) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const Json& value : list) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() >= static_cast<uint64_t>(context.model->vocab_size)) {
      return FieldError(
          field, absl::StrCat(Shown(value), " at index ", ids.size(),
                              " is not a token id from 0 to ", context.model->vocab_size - 1));
    }
    ids.push_back(static_cast<TokenId>(value.get<uint64_t>()));
  }
  return ids;
}

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

absl::Status CheckModel(const Json& body, const ApiContext& context) {
  const auto it = body.find("model");
  if (it == body.end() || it->is_null() || *it == context.model->id) return absl::OkStatus();
  if (!it->is_string()) return FieldError("model", absl::StrCat(Shown(*it), " is not a string"));
  return FieldError("model",
                    absl::StrCat(Shown(*it), " is not served here; ", context.model->id, " is"),
                    absl::StatusCode::kNotFound);
}

absl::Status ReadStreamOptions(const Json& body, ApiRequest* out) {
  FieldReader fields(body);
  out->stream = fields.Bool("stream", false);
  const Json* options = fields.Find("stream_options");
  if (options == nullptr) return fields.status();
  if (!options->is_object()) {
    return FieldError("stream_options", absl::StrCat(Shown(*options), " is not an object"));
  }
  FieldReader inner(*options, "stream_options.");
  out->include_usage = inner.Bool("include_usage", false);
  inner.Neutral("continuous_usage_stats", "[false]");
  RETURN_IF_ERROR(fields.status());
  return inner.status();
}

// What both endpoints share; `common` is the request without its prompt and max_tokens.
absl::Status ReadShared(const Json& body, const ApiContext& context, ApiRequest* out,
                        ClientRequest* common) {
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  for (const NeutralField& field : kNeutralFields) fields.Neutral(field.name, field.values);
  SamplingParams& sampling = common->sampling;
  sampling.temperature = fields.Number("temperature", 1, 0, kTemperatureMax);
  sampling.top_p = fields.Number("top_p", 1, 0, 1, /*above_min=*/true);
  sampling.top_k =
      static_cast<int32_t>(std::max<int64_t>(0, fields.Int("top_k", 0, -1, kInt32Max)));
  const Json* seed = fields.Find("seed");
  // −1 is what some clients send for none. (Json's == takes 2^64 − 1 for it.)
  if (seed != nullptr && (seed->is_number_unsigned() || *seed != -1)) {
    sampling.seed = fields.Uint64("seed", 0);
    common->seed_given = true;
  }
  common->ignore_eos = fields.Bool("ignore_eos", false);
  common->skip_special_tokens = fields.Bool("skip_special_tokens", true);
  common->priority = static_cast<int>(fields.Int("priority", 0, -kInt32Max, kInt32Max));
  out->prompt_logprobs =
      static_cast<int>(fields.Int("prompt_logprobs", -1, 0, context.limits->logprobs_max));
  out->return_token_ids = fields.Bool("return_token_ids", false);
  out->tokens_as_ids = fields.Bool("return_tokens_as_token_ids", false);
  out->request_id = fields.String("request_id", kRequestIdBytesMax);
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(ReadStreamOptions(body, out));
  return ReadStop(body, context, common);
}

absl::StatusOr<std::vector<TokenId>> ReadPrompt(const Json& value, bool add_special_tokens,
                                                const ApiContext& context) {
  if (value.is_string()) {
    return Encode("prompt", value.get_ref<const std::string&>(), add_special_tokens, context);
  }
  if (value.is_array() && !value.empty()) return ReadIds("prompt", value, context);
  return FieldError("prompt", absl::StrCat(Shown(value), " is neither text nor token ids"));
}

// A text, texts, token ids or lists of token ids.
absl::StatusOr<std::vector<std::vector<TokenId>>> ReadPrompts(const Json& body,
                                                              const ApiContext& context) {
  FieldReader fields(body);
  const bool add_special_tokens = fields.Bool("add_special_tokens", true);
  RETURN_IF_ERROR(fields.status());
  const Json* value = fields.Find("prompt");
  if (value == nullptr) return FieldError("prompt", "is missing");
  std::vector<std::vector<TokenId>> out;
  const bool batch = value->is_array() && !value->empty() &&
                     (value->front().is_string() || value->front().is_array());
  if (!batch) {
    ASSIGN_OR_RETURN(out.emplace_back(), ReadPrompt(*value, add_special_tokens, context));
    return out;
  }
  if (value->size() > kPromptsMax) {
    return FieldError("prompt",
                      absl::StrCat(value->size(), " prompts are more than ", kPromptsMax));
  }
  for (const Json& one : *value) {
    ASSIGN_OR_RETURN(out.emplace_back(), ReadPrompt(one, add_special_tokens, context));
  }
  return out;
}

// Content as one text: what templates of text models expect.
absl::StatusOr<std::string> ReadContent(const std::string& field, const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    return FieldError(field, absl::StrCat(Shown(content), " is neither text nor a list of parts"));
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    if (!part.is_object() || part.value("type", Json()) != "text" ||
        !part.value("text", Json()).is_string()) {
      return FieldError(absl::StrCat(field, "[", i, "]"), "only parts of type text are supported");
    }
    absl::StrAppend(&text, i == 0 ? "" : "\n", part["text"].get_ref<const std::string&>());
  }
  return text;
}

absl::StatusOr<Json> ReadMessages(const Json& body) {
  const auto it = body.find("messages");
  if (it == body.end() || !it->is_array() || it->empty()) {
    return FieldError("messages", "must be a list of at least one message");
  }
  Json out = *it;
  for (size_t i = 0; i < out.size(); ++i) {
    const std::string field = absl::StrCat("messages[", i, "]");
    Json& message = out[i];
    if (!message.is_object()) {
      return FieldError(field, absl::StrCat(Shown(message), " is not an object"));
    }
    const Json role = message.value("role", Json());
    if (role != "system" && role != "developer" && role != "user" && role != "assistant" &&
        role != "tool") {
      return FieldError(
          field + ".role",
          absl::StrCat(Shown(role), " is none of system, developer, user, assistant, tool"));
    }
    const Json content = message.value("content", Json());
    if (content.is_null() && role == "assistant") {
      message["content"] = "";  // as beside tool calls
      continue;
    }
    ASSIGN_OR_RETURN(std::string text, ReadContent(field + ".content", content));
    message["content"] = std::move(text);
  }
  return out;
}

absl::StatusOr<std::vector<TokenId>> ReadChatPrompt(const Json& body, const ApiContext& context) {
  ASSIGN_OR_RETURN(Json messages, ReadMessages(body));
  if (context.tokenizer == nullptr) return NoTokenizer("messages");
  if (!context.render_chat) {
    return FieldError("messages", "this checkpoint has no chat template: use /v1/completions");
  }
  FieldReader fields(body);
  Json chat = Json::object();
  if (const Json* more = fields.Find("chat_template_kwargs")) {
    if (!more->is_object()) {
      return FieldError("chat_template_kwargs", absl::StrCat(Shown(*more), " is not an object"));
    }
    chat = *more;
  }
  chat["messages"] = std::move(messages);
  chat["add_generation_prompt"] = fields.Bool("add_generation_prompt", true);
  const bool add_special_tokens = fields.Bool("add_special_tokens", false);
  RETURN_IF_ERROR(fields.status());
  absl::StatusOr<std::string> text = context.render_chat(chat);
  if (!text.ok()) {
    return FieldError("messages", std::string(text.status().message()));
  }
  return Encode("messages", *text, add_special_tokens, context);
}

}  // namespace

absl::StatusOr<ApiRequest> ParseCompletion(std::string_view text, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  ApiRequest out;
  ClientRequest common;
  RETURN_IF_ERROR(ReadShared(body, context, &out, &common));
  FieldReader fields(body);
  out.echo = fields.Bool("echo", false);
  out.logprobs = static_cast<int>(fields.Int("logprobs", -1, 0, context.limits->logprobs_max));
  common.max_tokens = static_cast<int>(fields.Int("max_tokens", 16, out.echo ? 0 : 1, kInt32Max));
  RETURN_IF_ERROR(fields.status());
  out.score_only = common.max_tokens == 0;
  common.max_tokens = std::max(common.max_tokens, 1);
  common.sampling.logprobs = out.logprobs;
  common.prompt_logprobs = std::max(out.prompt_logprobs, out.echo ? out.logprobs : -1);
  ASSIGN_OR_RETURN(std::vector<std::vector<TokenId>> prompts, ReadPrompts(body, context));
  for (std::vector<TokenId>& ids : prompts) {
    out.choices.push_back(common);
    out.choices.back().prompt_ids = std::move(ids);
  }
  return out;
}

absl::StatusOr<ApiRequest> ParseChatCompletion(std::string_view text, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  ApiRequest out;
  out.chat = true;
  ClientRequest common;
  RETURN_IF_ERROR(ReadShared(body, context, &out, &common));
  FieldReader fields(body);
  fields.Neutral("echo", "[false]");
  const int64_t top = fields.Int("top_logprobs", 0, 0, context.limits->logprobs_max);
  out.logprobs = fields.Bool("logprobs", false) ? static_cast<int>(top) : -1;
  if (out.logprobs < 0 && top > 0) fields.Fail("top_logprobs", "needs logprobs true");
  const int64_t old_name = fields.Int("max_tokens", 0, 1, kInt32Max);
  common.max_tokens = static_cast<int>(fields.Int("max_completion_tokens", old_name, 1, kInt32Max));
  RETURN_IF_ERROR(fields.status());
  common.sampling.logprobs = out.logprobs;
  common.prompt_logprobs = out.prompt_logprobs;
  ASSIGN_OR_RETURN(common.prompt_ids, ReadChatPrompt(body, context));
  if (common.max_tokens == 0) {  // not given: what the context holds
    const int64_t rest =
        context.model->max_model_len - static_cast<int64_t>(common.prompt_ids.size());
    common.max_tokens = static_cast<int>(std::max<int64_t>(1, rest));
  }
  out.choices.push_back(std::move(common));
  return out;
}

absl::StatusOr<std::vector<TokenId>> ParseTokenize(std::string_view text,
                                                   const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  const char* name = fields.Find("text") != nullptr ? "text" : "prompt";
  if (fields.Find(name) == nullptr) return FieldError("prompt", "is missing");
  const std::string prompt = fields.String(name, std::numeric_limits<size_t>::max());
  const bool add_special_tokens = fields.Bool("add_special_tokens", true);
  RETURN_IF_ERROR(fields.status());
  if (context.tokenizer == nullptr) {
    return FieldError(name, "this checkpoint has no tokenizer");
  }
  return context.tokenizer->Encode(prompt, add_special_tokens);
}

absl::StatusOr<std::string> ParseDetokenize(std::string_view text, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  const Json* tokens = fields.Find("tokens");
  const bool skip_special_tokens = fields.Bool("skip_special_tokens", true);
  RETURN_IF_ERROR(fields.status());
  if (tokens == nullptr || !tokens->is_array()) {
    return FieldError("tokens", "must be a list of token ids");
  }
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ReadIds("tokens", *tokens, context));
  if (context.tokenizer == nullptr) {
    return FieldError("tokens", "this checkpoint has no tokenizer");
  }
  return context.tokenizer->Decode(ids, skip_special_tokens);
}

}  // namespace switchyard

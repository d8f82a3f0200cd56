#include "router/http/openai_request.h"

#include <algorithm>
#include <limits>

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

absl::Status Admit(const ApiContext& context, const ClientRequest& common) {
  return context.admit ? context.admit(common.priority, common.deadline) : absl::OkStatus();
}

// n choices of each prompt.
absl::Status AddChoices(std::vector<std::vector<TokenId>> prompts, ClientRequest common,
                        const ApiContext& context, ApiRequest* out) {
  if (common.min_tokens > common.max_tokens) {
    return FieldError(
        "min_tokens",
        absl::StrCat(common.min_tokens, " is more than max_tokens, which is ", common.max_tokens));
  }
  for (std::vector<TokenId>& ids : prompts) {
    common.prompt_ids = std::move(ids);
    AppendSamples(common, out->n, &out->choices);
  }
  return CheckListed(*context.model, out->choices, out->stream);
}

// Of an answer whose length the client left open: what the context holds, or what may be listed.
int DefaultMaxTokens(size_t prompt_tokens, const ApiContext& context, const ApiRequest& out) {
  const int64_t room = context.model->max_model_len - static_cast<int64_t>(prompt_tokens);
  const int64_t listed = out.n * ListedPerToken(out.logprobs);
  if (out.stream || listed == 0) return static_cast<int>(room);
  const int64_t of_prompts =
      out.n * static_cast<int64_t>(prompt_tokens) * ListedPerToken(out.prompt_logprobs);
  return static_cast<int>(std::clamp<int64_t>((kListedMax - of_prompts) / listed, 1, room));
}

// Ids as they come from the tokenizer may be many more than a prompt's.
absl::Status CheckTokenizeBytes(std::string_view field, size_t bytes) {
  if (bytes <= kTokenizeBytesMax) return absl::OkStatus();
  return FieldError(field,
                    absl::StrCat("has ", bytes, " bytes, must have at most ", kTokenizeBytesMax));
}

// A tokenizer's error becomes one about the field.
template <typename T>
absl::StatusOr<T> Named(std::string_view field, absl::StatusOr<T> result) {
  if (!result.ok()) return FieldError(field, std::string(result.status().message()));
  return result;
}

}  // namespace

absl::StatusOr<ApiRequest> ParseCompletion(std::string_view text, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  ApiRequest out;
  ClientRequest common;
  RETURN_IF_ERROR(ReadParameters(body, context, &out, &common));
  FieldReader fields(body);
  out.echo = fields.Bool("echo", false);
  out.logprobs = static_cast<int>(fields.Int("logprobs", -1, 0, context.limits->logprobs_max));
  const int least = out.echo ? 0 : 1;
  const int64_t old_name = fields.Int("max_tokens", 16, least, kInt32Max);
  common.max_tokens =
      static_cast<int>(fields.Int("max_completion_tokens", old_name, least, kInt32Max));
  RETURN_IF_ERROR(fields.status());
  out.score_only = common.max_tokens == 0;
  common.max_tokens = std::max(common.max_tokens, 1);
  common.sampling.logprobs = out.logprobs;
  common.prompt_logprobs = std::max(out.prompt_logprobs, out.echo ? out.logprobs : -1);
  RETURN_IF_ERROR(Admit(context, common));
  ASSIGN_OR_RETURN(std::vector<std::vector<TokenId>> prompts, ReadPrompts(body, out.n, context));
  RETURN_IF_ERROR(AddChoices(std::move(prompts), std::move(common), context, &out));
  return out;
}

absl::StatusOr<ApiRequest> ParseChatCompletion(std::string_view text, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  ApiRequest out;
  out.chat = true;
  ClientRequest common;
  RETURN_IF_ERROR(ReadParameters(body, context, &out, &common));
  FieldReader fields(body);
  fields.Neutral("echo", "[false]");
  fields.Neutral("tool_choice", "[\"none\",\"auto\"]");
  const Json* tools = fields.Find("tools");
  if (tools != nullptr && !tools->empty() && body.value("tool_choice", Json()) != "none") {
    fields.Fail("tools", "calls are not read from the answer: tool_choice must be \"none\"");
  }
  const int64_t top = fields.Int("top_logprobs", 0, 0, context.limits->logprobs_max);
  out.logprobs = fields.Bool("logprobs", false) ? static_cast<int>(top) : -1;
  if (out.logprobs < 0 && top > 0) fields.Fail("top_logprobs", "needs logprobs true");
  const int64_t old_name = fields.Int("max_tokens", 0, 1, kInt32Max);
  common.max_tokens = static_cast<int>(fields.Int("max_completion_tokens", old_name, 1, kInt32Max));
  RETURN_IF_ERROR(fields.status());
  common.sampling.logprobs = out.logprobs;
  common.prompt_logprobs = out.prompt_logprobs;
  RETURN_IF_ERROR(Admit(context, common));
  ASSIGN_OR_RETURN(std::vector<TokenId> ids, ReadChatPrompt(body, context));
  if (common.max_tokens == 0) common.max_tokens = DefaultMaxTokens(ids.size(), context, out);
  RETURN_IF_ERROR(AddChoices({std::move(ids)}, std::move(common), context, &out));
  return out;
}

absl::StatusOr<std::vector<TokenId>> ParseTokenize(std::string_view text,
                                                   const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  if (fields.Find("messages") != nullptr) {
    ASSIGN_OR_RETURN(const ChatText chat, RenderChat(body, context));
    RETURN_IF_ERROR(CheckTokenizeBytes("messages", chat.text.size()));
    return Named("messages", context.tokenizer->Encode(chat.text, chat.add_special_tokens));
  }
  const char* name = fields.Find("text") != nullptr ? "text" : "prompt";
  if (fields.Find(name) == nullptr) return FieldError("prompt", "is missing");
  const std::string prompt = fields.String(name, std::numeric_limits<size_t>::max());
  const bool add_special_tokens = fields.Bool("add_special_tokens", true);
  RETURN_IF_ERROR(fields.status());
  if (context.tokenizer == nullptr) {
    return FieldError(name, "this checkpoint has no tokenizer");
  }
  RETURN_IF_ERROR(CheckTokenizeBytes(name, prompt.size()));
  return Named(name, context.tokenizer->Encode(prompt, add_special_tokens));
}

absl::StatusOr<std::string> ParseDetokenize(std::string_view text, const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  const Json* tokens = fields.Find("tokens");
  const bool skip_special_tokens = fields.Bool("skip_special_tokens", false);
  RETURN_IF_ERROR(fields.status());
  if (tokens == nullptr || !tokens->is_array()) {
    return FieldError("tokens", "must be a list of token ids");
  }
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ReadIds("tokens", *tokens, context));
  if (context.tokenizer == nullptr) {
    return FieldError("tokens", "this checkpoint has no tokenizer");
  }
  return Named("tokens", context.tokenizer->Decode(ids, skip_special_tokens));
}

}  // namespace switchyard

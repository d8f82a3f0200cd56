#include "router/http/openai_request.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/openai_fields.h"
#include "router/http/openai_parse.h"
#include "router/samples.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

absl::Status Admit(const ApiContext& context, const ClientRequest& common) {
  return context.admit ? context.admit(common.priority, common.deadline) : absl::OkStatus();
}

// n choices of each prompt.
absl::Status AddChoices(std::vector<std::vector<TokenId>> prompts, ClientRequest common,
                        ApiRequest* out) {
  const size_t n = static_cast<size_t>(out->n);
  if (prompts.size() * n > kPromptsMax) {
    return FieldError("n", absl::StrCat(n, " samples of ", prompts.size(),
                                        " prompts are more than ", kPromptsMax, " choices"));
  }
  if (common.min_tokens > common.max_tokens) {
    return FieldError(
        "min_tokens",
        absl::StrCat(common.min_tokens, " is more than max_tokens, which is ", common.max_tokens));
  }
  for (std::vector<TokenId>& ids : prompts) {
    common.prompt_ids = std::move(ids);
    AppendSamples(common, out->n, &out->choices);
  }
  return absl::OkStatus();
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
  common.max_tokens = static_cast<int>(fields.Int("max_tokens", 16, out.echo ? 0 : 1, kInt32Max));
  RETURN_IF_ERROR(fields.status());
  out.score_only = common.max_tokens == 0;
  common.max_tokens = std::max(common.max_tokens, 1);
  common.sampling.logprobs = out.logprobs;
  common.prompt_logprobs = std::max(out.prompt_logprobs, out.echo ? out.logprobs : -1);
  RETURN_IF_ERROR(Admit(context, common));
  ASSIGN_OR_RETURN(std::vector<std::vector<TokenId>> prompts, ReadPrompts(body, context));
  RETURN_IF_ERROR(AddChoices(std::move(prompts), std::move(common), &out));
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
  if (common.max_tokens == 0) {  // not given: what the context holds
    common.max_tokens = context.model->max_model_len - static_cast<int>(ids.size());
  }
  RETURN_IF_ERROR(AddChoices({std::move(ids)}, std::move(common), &out));
  return out;
}

absl::StatusOr<std::vector<TokenId>> ParseTokenize(std::string_view text,
                                                   const ApiContext& context) {
  ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text));
  RETURN_IF_ERROR(CheckModel(body, context));
  FieldReader fields(body);
  if (fields.Find("messages") != nullptr) return ReadChatPrompt(body, context);
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

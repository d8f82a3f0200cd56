// router/http/openai_parse.h: private to the reading of requests: the parts that more than one
// endpoint has. Errors carry the field (FieldError).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "router/http/openai_fields.h"
#include "router/http/openai_request.h"

namespace switchyard {

// The body's "model" is this one, or none. kNotFound otherwise.
absl::Status CheckModel(const nlohmann::ordered_json& body, const ApiContext& context);
// All but the prompt, max_tokens and logprobs, which differ; `common` is what every choice starts
// from.
absl::Status ReadParameters(const nlohmann::ordered_json& body, const ApiContext& context,
                            ApiRequest* out, ClientRequest* common);

// Ids that the model has. `list` is an array.
absl::StatusOr<std::vector<TokenId>> ReadIds(std::string_view field,
                                             const nlohmann::ordered_json& list,
                                             const ApiContext& context);
// "prompt": a text, texts, token ids or lists of token ids. Cut by truncate_prompt_tokens, and
// each shorter than the model's context. At most kPromptsMax with `n` answers each.
absl::StatusOr<std::vector<std::vector<TokenId>>> ReadPrompts(const nlohmann::ordered_json& body,
                                                              int n, const ApiContext& context);
// "messages" through the chat template, for a tokenizer that is there.
struct ChatText {
  std::string text;
  bool add_special_tokens = false;
};
absl::StatusOr<ChatText> RenderChat(const nlohmann::ordered_json& body, const ApiContext& context);
// The same as a prompt; cut and checked as above.
absl::StatusOr<std::vector<TokenId>> ReadChatPrompt(const nlohmann::ordered_json& body,
                                                    const ApiContext& context);

}  // namespace switchyard

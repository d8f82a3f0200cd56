// router/http/openai_request.h: bodies of the OpenAI API to requests of the router. Pure functions
// of the bytes; every limit and type is checked here, the model's own limits again in the core.
//
// A known field with a value that cannot be honoured is an error that names field, value and limit;
// null and neutral values are accepted; unknown fields are ignored.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "router/router.h"

namespace switchyard {

// What a body is read against. Pointees outlive the call.
struct ApiContext {
  const ModelDescription* model = nullptr;  // as it is now: the workers' registration changes it
  const RouterLimits* limits = nullptr;
  const Tokenizer* tokenizer = nullptr;  // null: text is refused
  // The chat template, applied to {messages, add_generation_prompt, …}; empty: chat is refused.
  std::function<absl::StatusOr<std::string>(const nlohmann::ordered_json& context)> render_chat;
  // RouterCore::CheckAdmission, before anything is tokenized; empty: nobody is refused.
  std::function<absl::Status(int priority, absl::Duration deadline)> admit;
};

// Prompts of one body, times n.
inline constexpr size_t kPromptsMax = 1024;

// One /v1/completions or /v1/chat/completions.
struct ApiRequest {
  bool chat = false;
  std::vector<ClientRequest> choices;  // n per prompt, in order; without request_id
  int n = 1;
  std::string request_id;  // the client's own, or empty
  bool stream = false;
  bool include_usage = false;     // of a stream: a last chunk with the usage
  bool continuous_usage = false;  // the usage so far with every chunk
  bool echo = false;              // the prompts are part of the texts
  bool score_only = false;        // max_tokens 0: the one token that is computed is not shown
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // names tokens "token_id:N" in logprobs
  int logprobs = -1;           // best tokens to list; −1: no logprobs
  int prompt_logprobs = -1;    // as an answer of its own, apart from echo
};

// Errors: kInvalidArgument; kNotFound for another model's name.
absl::StatusOr<ApiRequest> ParseCompletion(std::string_view body, const ApiContext& context);
absl::StatusOr<ApiRequest> ParseChatCompletion(std::string_view body, const ApiContext& context);

// Of a text for /tokenize, which may be longer than the context: its ids are all in memory.
inline constexpr size_t kTokenizeBytesMax = 4 << 20;

// {"prompt" or "text", "add_special_tokens"}, or the fields of a chat's prompt ("messages", …), to
// ids, however many the context holds; {"tokens", "skip_special_tokens"} to text. Errors as above.
absl::StatusOr<std::vector<TokenId>> ParseTokenize(std::string_view body,
                                                   const ApiContext& context);
absl::StatusOr<std::string> ParseDetokenize(std::string_view body, const ApiContext& context);

}  // namespace switchyard

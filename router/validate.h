// router/validate.h: a client's request against the model and the limits. Pure.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router/router.h"

namespace switchyard {

// The payload of an error that is about one field: the field's name.
inline constexpr char kFieldPayload[] = "switchyard/field";
// One of them: `field`, and then what is wrong with it.
absl::Status BadField(std::string_view field, std::string_view message);

// kInvalidArgument names field, value and limit, and has a kFieldPayload. Brings `request` into the
// form that workers take: max_tokens and min_tokens cut to the context that the prompt leaves,
// top_k −1 to 0.
absl::Status ValidateRequest(const ModelDescription& model, const RouterLimits& limits,
                             bool has_tokenizer, ClientRequest* request);

// Of one client's request, all of its answers: an entry of a list costs some hundred bytes while
// the JSON is made. In a stream each prompt's lists are one event, and events wait for slow
// clients: HttpServerOptions::pending_bytes_max has room for one of that size.
inline constexpr int64_t kListedMax = 1 << 19;
inline constexpr int64_t kListedOfStreamMax = 1 << 16;

// How many logprobs are listed with a token: its own and the `best` ones; −1: none.
constexpr int64_t ListedPerToken(int best) { return int64_t{best} + 1; }

// Whether the logprobs that `choices` may list, with the tokens of prompts and, unless they are
// streamed, of answers, stay below those limits. kInvalidArgument, as above.
absl::Status CheckListed(const ModelDescription& model, const std::vector<ClientRequest>& choices,
                         bool streamed);

// The tokens of a prompt that a client gave as the text of `field`. A text that cannot have fewer
// than max_model_len tokens is refused before it is tokenized, unless it is `truncated` after that.
// `tokenizer`: null if the checkpoint has none. kInvalidArgument, as above.
absl::StatusOr<std::vector<TokenId>> EncodePrompt(std::string_view field, std::string_view text,
                                                  bool add_special_tokens, bool truncated,
                                                  const ModelDescription& model,
                                                  const Tokenizer* tokenizer);

}  // namespace switchyard

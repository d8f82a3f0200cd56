// engine/requests_file.h: many requests as JSON lines, and their results as JSON lines
// (`generate --requests`).
//
// A request: {"id": "a", "prompt": "text" | [1, 2], "prompt_ids": [1, 2], "max_tokens": 16,
//   "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "presence_penalty": 0,
//   "frequency_penalty": 0, "repetition_penalty": 1, "logit_bias": {"7": -1.5}, "seed": 0,
//   "sample": 0, "logprobs": null, "prompt_logprobs": null, "stop_token_ids": [], "min_tokens": 0,
//   "cache_salt": "", "ignore_eos": false, "priority": 0}
// One of prompt and prompt_ids is needed (prompt_ids wins); the rest defaults to what is shown, and
// the id to the line's number. null means the default. An unknown field is refused.
//
// A result: {"id", "prompt_tokens", "token_ids", "finish_reason"}, then, where asked for,
// "logprobs"
//   [float per token], "ranks", "top_logprobs" [[{"id", "logprob"}…] per token] and
//   "prompt_logprobs" [null, float…] per prompt token; with finish_reason "error" also "error".
//   Floats are printed shortest round-trip.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/request.h"

namespace switchyard {

struct FileRequest {
  std::optional<std::string> text;  // to be tokenized into request.prompt_ids by the caller
  EngineRequest request;            // key.request is the id
};

// Errors are kInvalidArgument and name line, field, value and limit. Empty lines are skipped. Ids
// are unique. Text prompts leave prompt_ids empty; all else has passed CheckRequest.
absl::StatusOr<std::vector<FileRequest>> ParseRequests(std::string_view json_lines);

struct FileResult {
  std::string id;
  int prompt_tokens = 0;
  std::vector<SampledToken> tokens;
  std::vector<SampledToken> prompt_logprobs;  // as EngineOutput's
  FinishReason finish = FinishReason::kNone;
  absl::Status error;
};

// One line, newline included. `logprobs` and `prompt_logprobs` as the request asked.
std::string FormatResult(const FileResult& result, const EngineRequest& request);

}  // namespace switchyard

// engine/request.h: what an engine is asked for and what it answers.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "kernels/sample.h"

namespace switchyard {

inline constexpr int kLogprobsMax = 20;
inline constexpr size_t kStopTokenIdsMax = 256;

enum class FinishReason { kNone, kStop, kLength, kAborted, kError };

struct EngineRequest {
  AttemptKey key;
  std::vector<TokenId> prompt_ids;     // [1, max_model_len)
  std::vector<TokenId> generated_ids;  // tokens that the router has already accepted (a replay)
  SamplingParams sampling;
  int max_tokens = 16;  // of the whole request, generated_ids included
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  // End-of-sequence and stop tokens cannot be drawn before so many are generated.
  int min_tokens = 0;
  int priority = 0;  // smaller is served first, as in vLLM
  // Report log-probabilities of the prompt's own tokens (echo). −1: no; n: as
  // SamplingParams::logprobs.
  int32_t prompt_logprobs = -1;
  std::string cache_salt;  // requests with another one share no KV with this one
  // Stop after the first token is sampled and keep the blocks until Release(key): the prefill half
  // of a hand-off. The output with the first token has finish kNone, unless that token ends the
  // request as a whole; blocks are held in both cases, and if it ends with kError.
  bool prefill_only = false;
};

// One generated token, or the end of an attempt without one.
struct EngineOutput {
  AttemptKey key;
  int32_t index = 0;  // position among the generated tokens: generated_ids.size() is the first
  std::optional<SampledToken> token;
  FinishReason finish = FinishReason::kNone;
  absl::Status error;  // why, if finish is kError
  // With the first token, if asked for: entry i scores prompt_ids[i + 1] given prompt_ids[0…i].
  std::vector<SampledToken> prompt_logprobs;
  // With the first token: prompt and replayed tokens whose KV was in the cache.
  int cached_tokens = 0;
};

// Checks what does not depend on a model: key, counts and sampling parameters. kInvalidArgument
// names field, value and limit.
absl::Status CheckRequest(const EngineRequest& request);
// The same, and prompt, generated and stop ids against the vocabulary, and the length against
// max_model_len: at least one token must be left to generate.
absl::Status CheckRequest(const EngineRequest& request, int vocab_size, int max_model_len);

}  // namespace switchyard

// kernels/sample.h: from one row of logits to a token. A pure function: same row, parameters, seed
// and position give the same token on every machine of one kernel path.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"

namespace switchyard {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy (ties to the lowest id)
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // (0, 1]; 1: off
  uint64_t seed = 0;
  // Log-probabilities to report for each generated token: −1 none (logprob stays 0 and rank 1), 0
  // the chosen token's, n also the n best.
  int32_t logprobs = -1;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0;              // log softmax of the raw logits (no temperature, no truncation)
  int32_t rank = 1;               // 1 + tokens with a greater logit
  std::vector<TokenLogprob> top;  // params.logprobs best, descending, ties to the lowest id
};

// Draws with Philox(seed, position): temperature, then top-k, then top-p over the softmax of what
// is left (a token is kept while the mass before it is < top_p), then the inverse CDF in id order.
// `position` is the absolute position of the token that is drawn. logits [V], V >= 1, finite
// (others give some token of the vocabulary). Time is linear in V.
SampledToken SampleToken(std::span<const float> logits, const SamplingParams& params,
                         uint64_t position);

// The same report for a token that is given, in [0, V) (echo, prompt log-probabilities).
SampledToken ScoreToken(std::span<const float> logits, TokenId token, int32_t logprobs);

}  // namespace switchyard

// kernels/sample.h: from one row of logits to a token. A pure function: same row, parameters, seed
// and position give the same token on every machine of one kernel path.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/ids.h"

namespace switchyard {

// The most that a request may ask for.
inline constexpr float kTemperatureMax = 100;
inline constexpr float kPenaltyMax = 2;  // of presence and frequency, either sign
inline constexpr float kRepetitionPenaltyMax = 100;
inline constexpr size_t kLogitBiasMax = 1024;
inline constexpr float kLogitBiasValueMax = 100;  // either sign

struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy (ties to the lowest id)
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // (0, 1]; 1: off
  float min_p = 0.0f;               // [0, 1]: of the most probable token's probability; 0: off
  float presence_penalty = 0.0f;    // taken from the logit of each token that was generated
  float frequency_penalty = 0.0f;   // the same, times how often it was
  float repetition_penalty = 1.0f;  // > 0: divides positive logits of prompt and generated tokens,
                                    // multiplies negative ones
  std::vector<std::pair<TokenId, float>> logit_bias = {};  // added to the logits; each token once
  uint64_t seed = 0;
  uint32_t sample = 0;  // which of a prompt's n samples: each draws its own numbers
  // Log-probabilities to report for each generated token: −1 none (logprob stays 0 and rank 1), 0
  // the chosen token's, n also the n best.
  int32_t logprobs = -1;

  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
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

// What a request says about tokens by their ids. All are in [0, V).
struct TokenHistory {
  std::span<const TokenId> prompt, generated;
  std::span<const TokenId> banned;  // may not be drawn now
};

// True if AdjustLogits would change anything.
bool AdjustsLogits(const SamplingParams& params, const TokenHistory& history);
// Bias, then bans (to −∞), then repetition, frequency and presence penalties. Depends on the ids
// alone, so that a replay has the same bits.
void AdjustLogits(const SamplingParams& params, const TokenHistory& history,
                  std::span<float> logits);

// Memory of draws, one thread's: once it is as large as they need, they take none.
struct DrawMemory {
  struct Candidate {
    uint64_t key;     // descending: the order of preference
    uint64_t weight;  // kernels/token_weights.h
  };
  // For draws from so many logits: addresses only, until a draw has that many candidates.
  void Reserve(size_t vocabulary);

  std::vector<float> maxima;
  std::vector<uint64_t> sums;
  std::vector<Candidate> kept;
};

// Draws with Philox(seed, position, sample): temperature, then min-p, top-k, and top-p over the
// softmax of what is left (a token is kept while the mass before it is < top_p), then the inverse
// CDF in id order. `position` is the absolute position of the token that is drawn. logits [V],
// V >= 1, finite or −∞ (others give some token of the vocabulary). Time is linear in V.
TokenId ChooseToken(std::span<const float> logits, const SamplingParams& params, uint64_t position,
                    DrawMemory& memory);
inline TokenId ChooseToken(std::span<const float> logits, const SamplingParams& params,
                           uint64_t position) {
  DrawMemory memory;
  return ChooseToken(logits, params, position, memory);
}

// The report on a token that was chosen or is given, in [0, V). `logits` are the model's own, not
// adjusted; a logit in them is finite.
SampledToken ScoreToken(std::span<const float> logits, TokenId token, int32_t logprobs);

}  // namespace switchyard

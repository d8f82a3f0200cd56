#include "kernels/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/philox.h"
#include "kernels/token_weights.h"

namespace switchyard {
namespace {

// Orders tokens by logit, ties by lower id, as one integer: descending keys are the ranking. A
// total order even of NaNs, so that selection algorithms stay within bounds whatever the logits.
uint64_t RankKey(float logit, uint32_t id) {
  uint32_t u = std::bit_cast<uint32_t>(logit + 0.0f);  // −0 ties with +0
  u = (u & 0x80000000u) ? ~u : u | 0x80000000u;
  return (uint64_t{u} << 32) | static_cast<uint32_t>(~id);
}
uint32_t IdOf(uint64_t key) { return ~static_cast<uint32_t>(key); }

TokenId ArgMax(std::span<const float> logits) {
  const auto best = std::find(logits.begin(), logits.end(), HighestLogit(logits));
  return best == logits.end() ? 0 : static_cast<TokenId>(best - logits.begin());
}

using Candidate = DrawMemory::Candidate;  // a token that may be drawn, by its RankKey

bool Better(const Candidate& a, const Candidate& b) { return a.key > b.key; }
uint64_t SumOf(const Candidate* begin, const Candidate* end) {
  return std::accumulate(begin, end, uint64_t{0},
                         [](uint64_t s, const Candidate& c) { return s + c.weight; });
}

// The number of candidates that a nucleus of so much weight takes, the best first; they are moved
// to the front. Halves the range that holds the cut, so that the time is linear.
size_t TopP(std::span<Candidate> all, double limit) {
  // Tokens before `begin` are kept, `mass` is theirs; tokens from `end` on are dropped.
  size_t begin = 0, end = all.size();
  uint64_t mass = 0;
  while (begin < end) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(all.begin() + begin, all.begin() + middle, all.begin() + end, Better);
    const uint64_t before = mass + SumOf(all.data() + begin, all.data() + middle);
    if (static_cast<double>(before) < limit) {  // `middle` is kept
      begin = middle + 1;
      mass = before + all[middle].weight;
    } else {
      end = middle;
    }
  }
  return std::max<size_t>(begin, 1);
}

bool Truncates(const SamplingParams& p) { return p.top_k > 0 || p.top_p < 1 || p.min_p > 0; }

// The tokens whose logit is at least `logit_min` and that weigh `weight_min` or more, ascending by
// id. Blocks without any are passed over.
void Collect(const TokenWeights& tokens, double logit_min, double weight_min,
             std::vector<Candidate>* found) {
  found->clear();
  uint64_t weights[TokenWeights::kBlock];
  for (size_t b = 0; b < tokens.blocks(); ++b) {
    if (tokens.highest(b) < logit_min) continue;
    tokens.Weigh(b, weights);
    const std::span<const float> logits = tokens.logits(b);
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] >= logit_min) || static_cast<double>(weights[i]) < weight_min) continue;
      const auto id = static_cast<uint32_t>(b * TokenWeights::kBlock + i);
      found->push_back({RankKey(logits[i], id), weights[i]});
    }
  }
}

uint64_t SumOf(const TokenWeights& tokens) {
  uint64_t sum = 0;
  for (size_t b = 0; b < tokens.blocks(); ++b) sum += tokens.Sum(b);
  return sum;
}

// `kept`: the tokens that min-p, top-k and top-p leave, ascending by id. Most tokens are far below
// the few that are kept: the best are looked for a little below the highest logit, then further
// down.
void Truncate(const SamplingParams& params, const TokenWeights& tokens,
              std::vector<Candidate>& kept) {
  constexpr double kNearest = -4, kLowest = -64;  // below it nothing weighs anything
  const double weight_min = static_cast<double>(params.min_p) * static_cast<double>(tokens.most());
  // Weights are rounded by far less than a factor of e.
  const double last =
      params.min_p > 0 ? std::max<double>(std::log(params.min_p) - 1, kLowest) : kLowest;
  const auto most = static_cast<size_t>(params.top_k);
  const bool nucleus_of_all = params.top_k == 0 && params.top_p < 1.0f && params.min_p == 0;
  const double top_p = params.top_p;
  const double mass = nucleus_of_all ? top_p * static_cast<double>(SumOf(tokens)) : 0;
  const auto sum = [&] {
    return static_cast<double>(SumOf(kept.data(), kept.data() + kept.size()));
  };
  const auto enough = [&] {
    return params.top_k > 0 ? kept.size() >= most : nucleus_of_all && sum() >= mass;
  };
  double x = params.top_k > 0 || nucleus_of_all ? std::max(kNearest, last) : last;
  for (Collect(tokens, tokens.LogitAt(x), weight_min, &kept); x > last && !enough();) {
    x = std::max(2 * x, last);
    Collect(tokens, tokens.LogitAt(x), weight_min, &kept);
  }
  if (params.top_k > 0 && most < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + params.top_k, kept.end(), Better);
    kept.resize(most);
  }
  if (params.top_p < 1.0f) kept.resize(TopP(kept, nucleus_of_all ? mass : top_p * sum()));
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return IdOf(a.key) < IdOf(b.key); });
}

// floor(u · total), below total.
uint64_t Pick(double u, uint64_t total) {
  return std::min(static_cast<uint64_t>(u * static_cast<double>(total)), total - 1);
}

// The first that, with all before it, weighs more than `left`, which is below the sum.
size_t Find(std::span<const uint64_t> weights, uint64_t* left) {
  for (size_t i = 0; i < weights.size(); ++i) {
    if (*left < weights[i]) return i;
    *left -= weights[i];
  }
  SY_CHECK(false);
  return 0;
}

TokenId Draw(std::span<const float> logits, const SamplingParams& params, uint64_t position,
             DrawMemory& memory) {
  const TokenWeights tokens(logits, params.temperature, memory.maxima);
  const double u = PhiloxUniform(params.seed, position, params.sample);
  std::vector<uint64_t>& sums = memory.sums;  // of candidates, or of blocks of all tokens
  sums.clear();
  if (Truncates(params)) {
    Truncate(params, tokens, memory.kept);
    for (const Candidate& c : memory.kept) sums.push_back(c.weight);
  } else {
    for (size_t b = 0; b < tokens.blocks(); ++b) sums.push_back(tokens.Sum(b));
  }
  const uint64_t total = std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  if (total == 0) return ArgMax(logits);  // only where logits are not finite
  uint64_t left = Pick(u, total);
  const size_t found = Find(sums, &left);
  if (Truncates(params)) return static_cast<TokenId>(IdOf(memory.kept[found].key));
  uint64_t weights[TokenWeights::kBlock];
  tokens.Weigh(found, weights);
  return static_cast<TokenId>(found * TokenWeights::kBlock + Find(weights, &left));
}

// The log of the softmax, relative to the highest logit so that nothing is lost to its size.
class LogSoftmax {
 public:
  explicit LogSoftmax(std::span<const float> logits) : highest_(logits[ArgMax(logits)]) {
    double sum = 0;
    for (const float l : logits) sum += std::exp(l - highest_);
    log_sum_ = std::log(sum);
  }
  float operator()(float logit) const { return static_cast<float>((logit - highest_) - log_sum_); }

 private:
  double highest_, log_sum_;
};

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, size_t count,
                                      const LogSoftmax& log_softmax) {
  std::vector<uint64_t> keys(logits.size());
  for (uint32_t id = 0; id < keys.size(); ++id) keys[id] = RankKey(logits[id], id);
  count = std::min(count, keys.size());
  if (count < keys.size()) {
    std::nth_element(keys.begin(), keys.begin() + count, keys.end(), std::greater<>());
    keys.resize(count);
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  std::vector<TokenLogprob> top;
  for (const uint64_t key : keys) {
    top.push_back({static_cast<TokenId>(IdOf(key)), log_softmax(logits[IdOf(key)])});
  }
  return top;
}

}  // namespace

void DrawMemory::Reserve(size_t vocabulary) {
  maxima.reserve((vocabulary + TokenWeights::kBlock - 1) / TokenWeights::kBlock);
  kept.reserve(vocabulary);
  sums.reserve(vocabulary);
}

SampledToken ScoreToken(std::span<const float> logits, TokenId token, int32_t logprobs) {
  SY_CHECK_MSG(token >= 0 && static_cast<size_t>(token) < logits.size(), "token ", token, " of ",
               logits.size());
  SampledToken out{.token = token, .logprob = 0, .rank = 1, .top = {}};
  if (logprobs < 0) return out;
  const LogSoftmax log_softmax(logits);
  out.logprob = log_softmax(logits[token]);
  out.rank += static_cast<int32_t>(
      std::count_if(logits.begin(), logits.end(), [&](float l) { return l > logits[token]; }));
  if (logprobs > 0) out.top = TopLogprobs(logits, logprobs, log_softmax);
  return out;
}

TokenId ChooseToken(std::span<const float> logits, const SamplingParams& params, uint64_t position,
                    DrawMemory& memory) {
  SY_CHECK(!logits.empty());
  return params.temperature > 0 ? Draw(logits, params, position, memory) : ArgMax(logits);
}

bool AdjustsLogits(const SamplingParams& p, const TokenHistory& history) {
  return !p.logit_bias.empty() || !history.banned.empty() || p.repetition_penalty != 1 ||
         ((p.presence_penalty != 0 || p.frequency_penalty != 0) && !history.generated.empty());
}

void AdjustLogits(const SamplingParams& params, const TokenHistory& history,
                  std::span<float> logits) {
  for (const auto& [token, bias] : params.logit_bias) logits[token] += bias;
  for (const TokenId token : history.banned) {
    logits[token] = -std::numeric_limits<float>::infinity();
  }
  struct Seen {
    uint32_t generated = 0;
    bool anywhere = false;
  };
  std::vector<Seen> seen(logits.size());
  for (const TokenId token : history.prompt) seen[token].anywhere = true;
  for (const TokenId token : history.generated) {
    seen[token].anywhere = true;
    ++seen[token].generated;
  }
  for (size_t id = 0; id < logits.size(); ++id) {
    float& logit = logits[id];
    if (seen[id].anywhere) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    if (seen[id].generated == 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(seen[id].generated);
    logit -= params.presence_penalty;
  }
}

}  // namespace switchyard

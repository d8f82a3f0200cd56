#include "kernels/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/philox.h"

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
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Probabilities in fixed point: integers add up to the same sum in any order, so the choice does
// not depend on how the selection below happens to partition. The most probable token weighs 2^bits
// and V of them fit 63 bits.
class Weights {
 public:
  Weights(std::span<const float> logits, float temperature)
      : logits_(logits),
        highest_(logits[ArgMax(logits)]),
        inverse_temperature_(1.0 / temperature),
        bits_(62 - std::bit_width(logits.size())) {}

  uint64_t operator()(uint32_t id) const {
    const double x = (static_cast<double>(logits_[id]) - highest_) * inverse_temperature_;
    if (!(x > -64.0)) return 0;  // too small to count, or NaN
    return static_cast<uint64_t>(std::ldexp(std::exp(x), bits_));
  }
  double highest() const { return std::ldexp(1.0, bits_); }  // the most probable token's weight

 private:
  std::span<const float> logits_;
  double highest_;
  double inverse_temperature_;
  int bits_;
};

// A token that may be drawn.
struct Candidate {
  uint64_t key;     // RankKey
  uint64_t weight;  // Weights
};
bool Better(const Candidate& a, const Candidate& b) { return a.key > b.key; }
uint64_t SumOf(const Candidate* begin, const Candidate* end) {
  return std::accumulate(begin, end, uint64_t{0},
                         [](uint64_t s, const Candidate& c) { return s + c.weight; });
}

// The number of candidates that top-p keeps; they are moved to the front. Halves the range that
// holds the cut, so that the time is linear.
size_t TopP(std::span<Candidate> all, float top_p) {
  const double limit =
      static_cast<double>(top_p) * static_cast<double>(SumOf(all.data(), all.data() + all.size()));
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

// The tokens that min-p, top-k and top-p leave, ascending by id.
std::vector<Candidate> Truncate(std::span<const float> logits, const SamplingParams& params,
                                const Weights& weights) {
  const double weight_min = static_cast<double>(params.min_p) * weights.highest();
  std::vector<Candidate> kept;
  kept.reserve(logits.size());
  for (uint32_t id = 0; id < logits.size(); ++id) {
    const uint64_t weight = weights(id);
    if (static_cast<double>(weight) < weight_min) continue;
    kept.push_back({RankKey(logits[id], id), weight});
  }
  if (kept.empty()) return kept;  // only where logits are not finite
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + params.top_k, kept.end(), Better);
    kept.resize(params.top_k);
  }
  if (params.top_p < 1.0f) kept.resize(TopP(kept, params.top_p));
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return IdOf(a.key) < IdOf(b.key); });
  return kept;
}

// floor(u · total), below total.
uint64_t Pick(double u, uint64_t total) {
  return std::min(static_cast<uint64_t>(u * static_cast<double>(total)), total - 1);
}

TokenId Draw(std::span<const float> logits, const SamplingParams& params, uint64_t position) {
  const Weights weights(logits, params.temperature);
  const double u = PhiloxUniform(params.seed, position, params.sample);
  std::vector<Candidate> kept;
  if (Truncates(params)) {
    kept = Truncate(logits, params, weights);
  } else {
    kept.resize(logits.size());
    for (uint32_t id = 0; id < logits.size(); ++id) kept[id] = {~id, weights(id)};
  }
  const uint64_t total = SumOf(kept.data(), kept.data() + kept.size());
  if (total == 0) return ArgMax(logits);  // only where logits are not finite
  uint64_t left = Pick(u, total);
  for (const Candidate& c : kept) {
    if (left < c.weight) return static_cast<TokenId>(IdOf(c.key));
    left -= c.weight;
  }
  SY_CHECK(false);  // left < the sum of the weights
  return 0;
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

TokenId ChooseToken(std::span<const float> logits, const SamplingParams& params,
                    uint64_t position) {
  SY_CHECK(!logits.empty());
  return params.temperature > 0 ? Draw(logits, params, position) : ArgMax(logits);
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

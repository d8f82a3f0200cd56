#include "kernels/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "common/philox.h"
#include "kernels/token_weights.h"

namespace switchyard {
namespace {

SampledToken SampleToken(const std::vector<float>& logits, const SamplingParams& params,
                         uint64_t position) {
  return ScoreToken(logits, ChooseToken(logits, params, position), params.logprobs);
}

// What 2,000 positions draw.
std::set<TokenId> Drawn(const std::vector<float>& logits, const SamplingParams& params) {
  std::set<TokenId> tokens;
  for (uint64_t p = 0; p < 2000; ++p) tokens.insert(SampleToken(logits, params, p).token);
  return tokens;
}

TEST(SampleTest, GreedyTakesTheLowestOfTheBest) {
  const std::vector<float> logits = {1, 3, 2, 3};
  for (uint64_t p = 0; p < 10; ++p) {
    EXPECT_EQ(SampleToken(logits, {.temperature = 0}, p).token, 1);
  }
}

TEST(SampleTest, DrawIsTheInverseOfTheCdfInIdOrder) {
  const std::vector<float> logits(4, 2.0f);
  for (uint64_t p = 0; p < 100; ++p) {
    const double u = PhiloxUniform(7, p, 0);
    EXPECT_EQ(SampleToken(logits, {.seed = 7}, p).token, static_cast<TokenId>(u * 4));
  }
}

// Pearson's statistic of n draws against the probabilities of the tokens.
double ChiSquare(const std::vector<float>& logits, const SamplingParams& params,
                 const std::vector<double>& expected, int n) {
  std::vector<int> seen(logits.size());
  for (int p = 0; p < n; ++p) ++seen[SampleToken(logits, params, p).token];
  double chi = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(seen[i], 0) << i;
      continue;
    }
    chi += (seen[i] - n * expected[i]) * (seen[i] - n * expected[i]) / (n * expected[i]);
  }
  return chi;
}

TEST(SampleTest, FrequenciesFollowTheSoftmax) {
  const std::vector<double> p = {0.05, 0.4, 0.1, 0.25, 0.2};
  std::vector<float> logits, doubled;
  for (const double v : p) {
    logits.push_back(static_cast<float>(std::log(v)));
    doubled.push_back(static_cast<float>(2 * std::log(v)));
  }
  // The 0.999 quantile with 4 degrees of freedom is 18.5.
  EXPECT_LT(ChiSquare(logits, {.seed = 1}, p, 20000), 18.5);
  EXPECT_LT(ChiSquare(doubled, {.temperature = 2.0f, .seed = 2}, p, 20000), 18.5);
  // top_k 3 leaves 0.4, 0.25, 0.2; top_p 0.6 of that (0.51 of 0.85) leaves 0.4, 0.25.
  EXPECT_LT(ChiSquare(logits, {.top_k = 3, .seed = 3}, {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85},
                      20000),
            13.8);
  EXPECT_LT(ChiSquare(logits, {.top_k = 3, .top_p = 0.6f, .seed = 4},
                      {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0}, 20000),
            10.8);
}

TEST(SampleTest, TruncationKeepsTheLowestIdsOfATie) {
  const std::vector<float> logits(8, 1.0f);
  EXPECT_EQ(Drawn(logits, {.top_k = 3}), (std::set<TokenId>{0, 1, 2}));
  // Mass before ids 0…3 is 0, 1/8, 2/8, 3/8 < 1/2; before id 4 it is not.
  EXPECT_EQ(Drawn(logits, {.top_p = 0.5f}), (std::set<TokenId>{0, 1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.top_k = 4, .top_p = 0.5f}), (std::set<TokenId>{0, 1}));
}

TEST(SampleTest, EdgesOfTopKAndTopP) {
  const std::vector<float> logits = {0, 1, 3, 2};
  EXPECT_EQ(Drawn(logits, {.top_k = 1}), (std::set<TokenId>{2}));
  EXPECT_EQ(Drawn(logits, {.top_p = 1e-6f}), (std::set<TokenId>{2}));
  EXPECT_EQ(Drawn(logits, {.top_k = 4}).size(), 4u);
  EXPECT_EQ(Drawn(logits, {.top_k = 100, .top_p = 0.99999f}).size(), 4u);
  EXPECT_EQ(Drawn({5.0f}, {.top_k = 1, .top_p = 0.5f}), (std::set<TokenId>{0}));
}

// The straightforward way: sort everything, cut, draw.
std::set<TokenId> KeptBySorting(const std::vector<float>& logits, int top_k, double top_p) {
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  if (top_k > 0) order.resize(std::min<size_t>(top_k, order.size()));
  double total = 0, before = 0;
  for (const TokenId t : order) total += std::exp(double{logits[t]});
  std::set<TokenId> kept;
  for (const TokenId t : order) {
    if (before >= top_p * total) break;
    kept.insert(t);
    before += std::exp(double{logits[t]});
  }
  return kept;
}

TEST(SampleTest, LargeVocabularyDrawsOnlyFromWhatASortWouldKeep) {
  std::mt19937 rng(17);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(150000);
  for (float& l : logits) l = normal(rng);
  for (const auto& [k, p] : {std::pair{50, 1.0f}, {0, 0.3f}, {1000, 0.9f}}) {
    const std::set<TokenId> kept = KeptBySorting(logits, k, p);
    for (uint64_t position = 0; position < 10; ++position) {
      const SampledToken t = SampleToken(logits, {.top_k = k, .top_p = p}, position);
      EXPECT_TRUE(kept.contains(t.token)) << k << " " << p << " " << t.token;
    }
  }
}

TEST(SampleTest, OneLogitThatIsNotFiniteIsFoundWhereverItIs) {
  const float most = std::numeric_limits<float>::max();
  for (const size_t n : {size_t{1}, size_t{3}, size_t{32}, size_t{33}, size_t{167}}) {
    std::vector<float> logits(n, most);
    EXPECT_TRUE(AllFinite(logits));
    for (size_t i = 0; i < n; ++i) {
      for (const float bad :
           {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
            std::numeric_limits<float>::quiet_NaN()}) {
        logits[i] = bad;
        EXPECT_FALSE(AllFinite(logits)) << i << " of " << n;
      }
      logits[i] = -most;
    }
    EXPECT_TRUE(AllFinite(logits));
  }
  EXPECT_TRUE(AllFinite({}));
}

TEST(SampleTest, AllWidthsOfVectorsWeighAlike) {
  std::mt19937 rng(29);
  std::normal_distribution<float> normal(0, 20);
  std::vector<float> logits(2 * TokenWeights::kBlock + 77);
  for (float& l : logits) l = normal(rng);
  logits[5] = -std::numeric_limits<float>::infinity();
  logits[6] = std::numeric_limits<float>::quiet_NaN();
  const float highest = HighestLogit(logits);
  logits[7] = highest - 64.0f, logits[8] = std::nextafter(logits[7], highest);
  for (const float temperature : {0.03f, 1.0f, 50.0f}) {
    std::vector<float> maxima;
    const TokenWeights tokens(logits, temperature, maxima);
    for (size_t block = 0; block < tokens.blocks(); ++block) {
      uint64_t wanted[TokenWeights::kBlock], got[TokenWeights::kBlock];
      tokens.Weigh(block, wanted, 0);
      for (int width = 1; width < TokenWeights::widths(); ++width) {
        tokens.Weigh(block, got, width);
        EXPECT_TRUE(std::ranges::equal(got, wanted)) << "width " << width << ", block " << block;
      }
      for (size_t i = 0; i < tokens.logits(block).size(); ++i) {
        const double x = (double{tokens.logits(block)[i]} - highest) / temperature;
        const double exact =
            x > -64 ? std::ldexp(std::exp(x), 62 - std::bit_width(logits.size())) : 0;
        EXPECT_NEAR(static_cast<double>(wanted[i]), exact, 1 + exact * 0x1p-46) << i;
      }
    }
  }
}

// The definition, with all tokens weighed and sorted.
TokenId DrawBySorting(const std::vector<float>& logits, const SamplingParams& p,
                      uint64_t position) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  const int bits = 62 - std::bit_width(logits.size());
  struct Token {
    TokenId id;
    float logit;
    uint64_t weight;
  };
  std::vector<Token> tokens;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double x = (double{logits[i]} - highest) * (1.0 / p.temperature);
    const double weight = x > -64 ? std::ldexp(std::exp(x), bits) : 0;
    if (weight < double{p.min_p} * std::ldexp(1.0, bits)) continue;
    tokens.push_back({static_cast<TokenId>(i), logits[i], static_cast<uint64_t>(weight)});
  }
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const Token& a, const Token& b) { return a.logit > b.logit; });
  if (p.top_k > 0) tokens.resize(std::min<size_t>(p.top_k, tokens.size()));
  const auto add = [](uint64_t sum, const Token& t) { return sum + t.weight; };
  const uint64_t all = std::accumulate(tokens.begin(), tokens.end(), uint64_t{0}, add);
  uint64_t kept = 0;
  size_t count = 0;
  while (count < tokens.size() &&
         (p.top_p == 1 || static_cast<double>(kept) < p.top_p * static_cast<double>(all))) {
    kept += tokens[count++].weight;
  }
  tokens.resize(count);
  std::sort(tokens.begin(), tokens.end(),
            [](const Token& a, const Token& b) { return a.id < b.id; });
  const double u = PhiloxUniform(p.seed, position, p.sample);
  uint64_t left = static_cast<uint64_t>(u * static_cast<double>(kept));
  for (const Token& t : tokens) {
    if (left < t.weight) return t.id;
    left -= t.weight;
  }
  return -1;
}

TEST(SampleTest, DrawsWhatTheDefinitionSays) {
  std::mt19937 rng(23);
  const auto one_of = [&](auto... values) {
    const std::common_type_t<decltype(values)...> all[] = {values...};
    return all[rng() % sizeof...(values)];
  };
  for (int round = 0; round < 400; ++round) {
    std::vector<float> logits(one_of(1, 7, 1023, 1024, 1025, 5000));
    std::normal_distribution<float> normal(0, one_of(0.1f, 3.0f, 30.0f));
    for (float& l : logits) l = normal(rng);
    if (round % 3 == 0) {  // ties
      for (float& l : logits) l = std::round(l);
    }
    if (round % 5 == 0) {
      for (float& l : logits) l = rng() % 2 == 0 ? -std::numeric_limits<float>::infinity() : l;
      logits[rng() % logits.size()] = 1;
    }
    const SamplingParams params{.temperature = one_of(0.05f, 0.7f, 1.0f, 5.0f, 100.0f),
                                .top_k = one_of(0, 0, 1, 40, 2000),
                                .top_p = one_of(1.0f, 1.0f, 0.1f, 0.9f, 0.9999f),
                                .min_p = one_of(0.0f, 0.0f, 0.001f, 0.2f, 1.0f),
                                .seed = rng()};
    for (uint64_t position = 0; position < 5; ++position) {
      EXPECT_EQ(ChooseToken(logits, params, position), DrawBySorting(logits, params, position))
          << logits.size() << " tokens, temperature " << params.temperature << ", top_k "
          << params.top_k << ", top_p " << params.top_p << ", min_p " << params.min_p;
    }
  }
}

TEST(SampleTest, ReportsRawLogProbabilities) {
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.125f),
                                     std::log(0.25f)};
  // Temperature and truncation do not enter the report.
  const SampledToken t = SampleToken(logits, {.temperature = 0.1f, .top_k = 1, .logprobs = 3}, 0);
  EXPECT_EQ(t.token, 1);
  EXPECT_EQ(t.rank, 1);
  EXPECT_NEAR(t.logprob, std::log(0.5), 1e-6);
  ASSERT_EQ(t.top.size(), 3u);
  EXPECT_EQ(t.top[0].token, 1);
  EXPECT_EQ(t.top[1].token, 3);
  EXPECT_EQ(t.top[2].token, 0);  // ties with 2
  EXPECT_NEAR(t.top[2].logprob, std::log(0.125), 1e-6);

  const SampledToken given = ScoreToken(logits, 2, 0);
  EXPECT_EQ(given.rank, 3);  // two tokens are better, token 0 is equal
  EXPECT_NEAR(given.logprob, std::log(0.125), 1e-6);
  EXPECT_TRUE(given.top.empty());
  EXPECT_EQ(ScoreToken(logits, 2, 100).top.size(), 4u);
}

TEST(SampleTest, LogProbabilitiesOfLargeLogitsStayFinite) {
  const std::vector<float> logits = {1e30f, -1e30f, 1e30f};
  EXPECT_NEAR(ScoreToken(logits, 2, 0).logprob, -std::log(2.0), 1e-6);
}

TEST(SampleTest, LogitsThatAreNotFiniteGiveSomeToken) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& logits :
       {std::vector<float>{nan, nan, nan}, {1, nan, 2}, {inf, 0, inf}, {-inf, -inf, -inf}}) {
    for (uint64_t p = 0; p < 20; ++p) {
      const TokenId t = SampleToken(logits, {.top_k = 2, .top_p = 0.5f, .logprobs = 2}, p).token;
      EXPECT_GE(t, 0);
      EXPECT_LT(t, 3);
    }
  }
}

TEST(SampleTest, TheDrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits(100, 0.0f);
  const SamplingParams params{.seed = 5};
  std::set<TokenId> by_position, by_seed;
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(SampleToken(logits, params, i).token, SampleToken(logits, params, i).token);
    by_position.insert(SampleToken(logits, params, i).token);
    by_seed.insert(SampleToken(logits, {.seed = i}, 3).token);
  }
  EXPECT_GT(by_position.size(), 20u);
  EXPECT_GT(by_seed.size(), 20u);
}

TEST(SampleTest, EachSampleOfAPromptDrawsItsOwnNumbers) {
  const std::vector<float> logits(1000, 0.0f);
  std::set<TokenId> tokens;
  for (uint32_t i = 0; i < 50; ++i) {
    const TokenId token = ChooseToken(logits, {.seed = 5, .sample = i}, 3);
    tokens.insert(token);
    EXPECT_EQ(token, static_cast<TokenId>(PhiloxUniform(5, 3, i) * 1000)) << i;
  }
  EXPECT_GT(tokens.size(), 40u);
}

TEST(SampleTest, MinPKeepsTokensByTheBestOnesProbability) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.3f),
                                     std::log(0.2f)};
  EXPECT_EQ(Drawn(logits, {.min_p = 0.24f}), (std::set<TokenId>{0, 1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.min_p = 0.26f}), (std::set<TokenId>{1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.min_p = 0.7f}), (std::set<TokenId>{1, 2}));
  EXPECT_EQ(Drawn(logits, {.min_p = 1.0f}), (std::set<TokenId>{1}));
  // The temperature comes first (0.2/0.4 is 1/4 at T = 0.5), top-k and top-p after.
  EXPECT_EQ(Drawn(logits, {.temperature = 0.5f, .min_p = 0.3f}), (std::set<TokenId>{1, 2}));
  EXPECT_EQ(Drawn(logits, {.top_k = 2, .min_p = 0.26f}), (std::set<TokenId>{1, 2}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.4f, .min_p = 0.7f}), (std::set<TokenId>{1}));
}

TEST(SampleTest, PenaltiesAndBiasFollowTheIds) {
  const std::vector<TokenId> prompt = {0, 1, 1}, generated = {1, 2, 2};
  const TokenHistory history{.prompt = prompt, .generated = generated, .banned = {}};
  const auto adjusted = [&](const SamplingParams& params, const TokenHistory& h) {
    std::vector<float> logits = {2, 2, -2, -2, 1};
    EXPECT_TRUE(AdjustsLogits(params, h));
    AdjustLogits(params, h, logits);
    return logits;
  };
  using V = std::vector<float>;
  EXPECT_EQ(adjusted({.presence_penalty = 0.5f}, history), (V{2, 1.5f, -2.5f, -2, 1}));
  EXPECT_EQ(adjusted({.frequency_penalty = 0.5f}, history), (V{2, 1.5f, -3, -2, 1}));
  EXPECT_EQ(adjusted({.repetition_penalty = 2}, history), (V{1, 1, -4, -2, 1}));
  EXPECT_EQ(adjusted({.logit_bias = {{4, 3.0f}, {3, -1.0f}}}, history), (V{2, 2, -2, -3, 4}));
  const std::vector<TokenId> banned = {4};
  EXPECT_EQ(adjusted({}, {.prompt = prompt, .generated = {}, .banned = banned}),
            (V{2, 2, -2, -2, -std::numeric_limits<float>::infinity()}));
  // The bias first, then the penalties on what it gives.
  EXPECT_EQ(adjusted({.frequency_penalty = 1, .repetition_penalty = 2, .logit_bias = {{2, 6.0f}}},
                     history),
            (V{1, 0, 0, -2, 1}));

  EXPECT_FALSE(AdjustsLogits({}, history));
  EXPECT_FALSE(AdjustsLogits({.presence_penalty = 1, .frequency_penalty = 1},
                             {.prompt = prompt, .generated = {}, .banned = {}}));
}

TEST(SampleTest, ABannedTokenIsNeverDrawn) {
  std::vector<float> logits = {9, 1, 1, 1};
  const std::vector<TokenId> banned = {0};
  AdjustLogits({}, {.prompt = {}, .generated = {}, .banned = banned}, logits);
  EXPECT_EQ(Drawn(logits, {}), (std::set<TokenId>{1, 2, 3}));
  EXPECT_EQ(Drawn(logits, {.top_p = 0.99f}), (std::set<TokenId>{1, 2, 3}));
  EXPECT_EQ(ChooseToken(logits, {.temperature = 0}, 0), 1);
}

}  // namespace
}  // namespace switchyard

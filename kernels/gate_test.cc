#include "kernels/gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace switchyard {
namespace {

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice Choose(const GateConfig& c, std::vector<float> logits, std::span<const float> bias = {}) {
  Choice out{std::vector<int32_t>(c.top_k, -1), std::vector<float>(c.top_k, NAN)};
  const size_t k = c.top_k;
  KernelContext ctx(1);
  ChooseExperts(ctx, c, Matrix<const float>(logits.data(), {1, logits.size()}), bias,
                Matrix<int32_t>(out.experts.data(), {1, k}),
                Matrix<float>(out.weights.data(), {1, k}));
  return out;
}

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

TEST(GateTest, SoftmaxIsOverAllExpertsBeforeTheChoice) {
  // exp: 1, 2, 4, 1 of 8.
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(4.0f), 0.0f};
  const Choice plain = Choose({.experts = 4, .top_k = 2}, logits);
  EXPECT_EQ(plain.experts, (std::vector<int32_t>{2, 1}));
  EXPECT_NEAR(plain.weights[0], 0.5f, 1e-6);
  EXPECT_NEAR(plain.weights[1], 0.25f, 1e-6);
  const Choice normal =
      Choose({.experts = 4, .top_k = 2, .normalize = true, .scale = 3.0f}, logits);
  EXPECT_NEAR(normal.weights[0], 2.0f, 1e-6);
  EXPECT_NEAR(normal.weights[1], 1.0f, 1e-6);
}

TEST(GateTest, TiesGoToTheLowestId) {
  const Choice c = Choose({.experts = 5, .top_k = 3}, {1, 2, 2, 1, 2});
  EXPECT_EQ(c.experts, (std::vector<int32_t>{1, 2, 4}));
}

TEST(GateTest, BiasChangesTheChoiceAndNotTheWeights) {
  const std::vector<float> bias = {0.0f, 0.0f, 1.0f};
  const Choice c =
      Choose({.scoring = GateScoring::kSigmoid, .experts = 3, .top_k = 2}, {2, 1, -1}, bias);
  EXPECT_EQ(c.experts, (std::vector<int32_t>{2, 0}));
  EXPECT_FLOAT_EQ(c.weights[0], Sigmoid(-1));
  EXPECT_FLOAT_EQ(c.weights[1], Sigmoid(2));
}

TEST(GateTest, GroupsCompeteByTheirTwoBest) {
  // Group 0 has the single best expert, group 1 the best two together.
  GateConfig c{.scoring = GateScoring::kSigmoid,
               .experts = 6,
               .top_k = 2,
               .groups = 2,
               .groups_chosen = 1,
               .group_score_top2 = true,
               .normalize = true,
               .scale = 2.5f};
  const std::vector<float> logits = {3, -3, -3, 1, 2, -1};
  const Choice top2 = Choose(c, logits);
  EXPECT_EQ(top2.experts, (std::vector<int32_t>{4, 3}));
  const float sum = Sigmoid(2) + Sigmoid(1);
  EXPECT_FLOAT_EQ(top2.weights[0], Sigmoid(2) / sum * 2.5f);
  EXPECT_FLOAT_EQ(top2.weights[1], Sigmoid(1) / sum * 2.5f);
  c.group_score_top2 = false;
  EXPECT_EQ(Choose(c, logits).experts, (std::vector<int32_t>{0, 1}));
}

TEST(GateTest, MaskedGroupsLoseToNegativeScores) {
  // A masked expert scores −∞, so one with a negative biased score is still chosen before it.
  const std::vector<float> bias = {0.0f, -5.0f, 0.0f, 0.0f};
  const GateConfig c{
      .scoring = GateScoring::kSigmoid, .experts = 4, .top_k = 2, .groups = 2, .groups_chosen = 1};
  EXPECT_EQ(Choose(c, {4, 0, 3, 3}, bias).experts, (std::vector<int32_t>{0, 1}));
}

TEST(GateTest, VanishedSigmoidScoresDoNotDivideByZero) {
  const Choice c =
      Choose({.scoring = GateScoring::kSigmoid, .experts = 2, .top_k = 2, .normalize = true},
             {-200, -200});
  for (const float w : c.weights) EXPECT_EQ(w, 0.0f);
}

TEST(GateTest, RandomChoicesMatchASort) {
  const uint32_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  const GateConfig c{.experts = 64, .top_k = 8};
  for (int round = 0; round < 100; ++round) {
    std::vector<float> logits(c.experts);
    for (float& l : logits) l = static_cast<float>(rng() % 40) / 8;  // many ties
    std::vector<int32_t> order(c.experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return logits[a] > logits[b]; });
    order.resize(c.top_k);
    EXPECT_EQ(Choose(c, logits).experts, order);
  }
}

}  // namespace
}  // namespace switchyard

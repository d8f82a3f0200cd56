#include "moe/load_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <nlohmann/json.hpp>
#include <random>

#include "common/file.h"

namespace switchyard {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kLayers = 2, kExperts = 3;

Matrix<const int32_t> View(const std::vector<int32_t>& counts) {
  return {counts.data(), {kLayers, kExperts}};
}

TEST(LoadStatisticsTest, TotalsAreThoseOfTheLastSteps) {
  for (int window : {1, 2, 5}) {
    SCOPED_TRACE(window);
    std::mt19937 rng(window);
    auto stats =
        LoadStatistics::Create({.layers = kLayers, .experts = kExperts, .window_steps = window});
    ASSERT_TRUE(stats.ok());
    EXPECT_THAT(stats->Loads(), Each(0.0));
    std::deque<std::vector<int32_t>> steps;
    for (int i = 0; i < 40; ++i) {
      std::vector<int32_t> counts(kLayers * kExperts);
      for (int32_t& c : counts) c = rng() % 2 ? INT32_MAX : static_cast<int32_t>(rng() % 5);
      ASSERT_TRUE(stats->AddStep(View(counts)).ok());
      steps.push_back(counts);
      if (steps.size() > static_cast<size_t>(window)) steps.pop_front();
      EXPECT_EQ(stats->steps(), static_cast<int>(steps.size()));
      for (size_t l = 0; l < kLayers; ++l) {
        for (size_t e = 0; e < kExperts; ++e) {
          int64_t wanted = 0;
          for (const auto& s : steps) wanted += s[l * kExperts + e];
          EXPECT_EQ(stats->totals()(l, e), wanted);
          EXPECT_EQ(stats->Loads()[l * kExperts + e], static_cast<double>(wanted));
        }
      }
    }
  }
}

TEST(LoadStatisticsTest, RefusedStepChangesNothing) {
  auto stats = LoadStatistics::Create({.layers = kLayers, .experts = kExperts, .window_steps = 2});
  ASSERT_TRUE(stats.ok());
  ASSERT_TRUE(stats->AddStep(View({1, 2, 3, 4, 5, 6})).ok());
  const absl::Status negative = stats->AddStep(View({9, 9, 9, 9, -1, 9}));
  EXPECT_EQ(negative.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(negative.message()), HasSubstr("layer 1, expert 1"));
  const std::vector<int32_t> counts(9);
  EXPECT_FALSE(stats->AddStep({counts.data(), {3, 3}}).ok());
  EXPECT_FALSE(stats->AddStep({counts.data(), {2, 4}}).ok());
  EXPECT_EQ(stats->steps(), 1);
  EXPECT_THAT(stats->Loads(), ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(LoadStatisticsTest, RefusesSizes) {
  EXPECT_FALSE(LoadStatistics::Create({.layers = 0, .experts = 1, .window_steps = 1}).ok());
  EXPECT_FALSE(LoadStatistics::Create({.layers = 1, .experts = -1, .window_steps = -1}).ok());
  EXPECT_FALSE(LoadStatistics::Create({.layers = 1, .experts = 1, .window_steps = 0}).ok());
  EXPECT_FALSE(
      LoadStatistics::Create({.layers = 1 << 10, .experts = 1 << 10, .window_steps = 65}).ok());
  EXPECT_FALSE(
      LoadStatistics::Create({.layers = INT32_MAX, .experts = INT32_MAX, .window_steps = INT32_MAX})
          .ok());
}

TEST(RankBalanceTest, LayersAddUp) {
  const auto text = ReadFile("tests/data/eplb-vectors.json", 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto vector = nlohmann::json::parse(*text)["load_stats"];
  RankBalance sum;
  for (const auto& layer : vector["tokens_per_layer_rank"]) {
    sum += RankBalance::Of(layer.get<std::vector<double>>());
  }
  EXPECT_EQ(sum.mean, vector["avg"]);
  EXPECT_EQ(sum.max, vector["max"]);
  EXPECT_EQ(sum.balancedness(), vector["balancedness"]);
}

TEST(RankBalanceTest, NoLoadIsBalanced) {
  EXPECT_EQ(RankBalance::Of({}).balancedness(), 1);
  EXPECT_EQ(RankBalance::Of(std::vector<double>{0, 0}).balancedness(), 1);
  EXPECT_EQ(RankBalance::Of(std::vector<double>{3, 1}).balancedness(), 2.0 / 3);
}

}  // namespace
}  // namespace switchyard

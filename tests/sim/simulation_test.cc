#include "tests/sim/simulation.h"

#include <gtest/gtest.h>

namespace switchyard::sim {
namespace {

TEST(SimulationTest, RunFollowsFromItsSeed) {
  Shared shared;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const RunResult a = RunSeed(seed, &shared, {.faults = std::nullopt, .keep_log = true});
    const RunResult b = RunSeed(seed, &shared, {.faults = std::nullopt, .keep_log = true});
    EXPECT_EQ(a.violation, "") << seed;
    EXPECT_EQ(a.log, b.log) << seed;
    EXPECT_EQ(a.events, b.events) << seed;
  }
}

TEST(SimulationTest, FaultsAreFeltAndSurvived) {
  Shared shared;
  RunResult sum;
  for (uint64_t seed = 1000; seed < 1200; ++seed) {
    const RunResult run = RunSeed(seed, &shared);
    EXPECT_EQ(run.violation, "") << seed;
    sum.requests += run.requests;
    sum.completed += run.completed;
    sum.retried += run.retried;
    sum.frames_spoilt += run.frames_spoilt;
  }
  EXPECT_GT(sum.retried, 20);
  EXPECT_GT(sum.frames_spoilt, 20u);
  EXPECT_GT(sum.completed, sum.requests * 8 / 10);
}

// A model whose answers do not follow from the whole history would make every check above vain.
TEST(SimulationTest, OracleFollowsFromEveryTokenOfTheHistory) {
  const SamplingParams greedy{.temperature = 0};
  const std::vector<TokenId> history = {5, 6, 7, 8, 9, 10, 11, 12};
  const auto tokens = SimModel::Expected(history, greedy, 8, /*ignore_eos=*/true);
  for (size_t i = 0; i < history.size(); ++i) {
    std::vector<TokenId> other = history;
    ++other[i];
    EXPECT_NE(SimModel::Expected(other, greedy, 8, true), tokens) << i;
  }
  const auto first = SimModel::Expected(history, greedy, 3, true);
  std::vector<TokenId> longer = history;
  longer.insert(longer.end(), first.begin(), first.end());
  const auto rest = SimModel::Expected(longer, greedy, 5, true);
  EXPECT_TRUE(std::equal(rest.begin(), rest.end(), tokens.begin() + 3));
}

}  // namespace
}  // namespace switchyard::sim

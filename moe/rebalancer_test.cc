#include "moe/rebalancer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "moe/ep_testing.h"
#include "moe/rebalance_plan.h"

namespace switchyard {
namespace {

using Act = Rebalancer::Act;

// ---- plans

std::vector<int64_t> RandomLoads(std::mt19937& rng, int layers, int experts) {
  std::vector<int64_t> loads;
  for (int i = 0; i < layers * experts; ++i) {
    loads.push_back(rng() % 4 == 0 ? static_cast<int64_t>(rng() % 1000) : 1 + rng() % 10);
  }
  return loads;
}

Matrix<const int64_t> View(const std::vector<int64_t>& loads, const Placement& p) {
  return {loads.data(), {static_cast<size_t>(p.layers()), static_cast<size_t>(p.experts())}};
}

double MaxLoad(const Placement& p, int layer, const std::vector<int64_t>& loads) {
  const auto row = loads.begin() + static_cast<ptrdiff_t>(layer) * p.experts();
  return RankBalance::Of(p.RankLoads(layer, std::vector<double>(row, row + p.experts()))).max;
}

TEST(RebalancePlanTest, NoLayerGetsWorseAndWhatStaysDoesNotMove) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    const int ranks = 1 + static_cast<int>(rng() % 4), per_rank = 2 + static_cast<int>(rng() % 4);
    const int experts = ranks * per_rank, layers = 1 + static_cast<int>(rng() % 3);
    const Placement current = testing::RandomPlacement(
        rng, layers, experts, static_cast<int>(rng() % ranks) * ranks, ranks);
    const std::vector<int64_t> loads = RandomLoads(rng, layers, experts);
    const auto plan = PlanRebalance(current, View(loads, current), {.threshold = 0}).value();
    EXPECT_GE(plan.after.balancedness(), plan.before.balancedness());
    if (plan.placement == nullptr) continue;
    const Placement& next = *plan.placement;
    EXPECT_EQ(next.version(), current.version() + 1);
    double after = 0;
    for (int l = 0; l < layers; ++l) {
      EXPECT_LE(MaxLoad(next, l, loads), MaxLoad(current, l, loads)) << "layer " << l;
      after += MaxLoad(next, l, loads);
    }
    EXPECT_NEAR(plan.after.max, after, 1e-6 * after);
    for (int r = 0; r < ranks; ++r) {
      for (int l = 0; l < layers; ++l) {
        const auto was = current.Hosted(l, RankId(r)), is = next.Hosted(l, RankId(r));
        for (size_t s = 0; s < is.size(); ++s) {
          // One that the rank has already moved to no other slot, unless it was there twice.
          const bool kept = std::count(is.begin(), is.end(), was[s]) > 0;
          const bool twice = std::count(was.begin(), was.end(), was[s]) > 1;
          EXPECT_TRUE(!kept || twice || is[s] == was[s]) << l << " " << r << " " << s;
        }
      }
    }
  }
}

TEST(RebalancePlanTest, EqualLoadsMakeEqualPlansAndASecondLookFindsNothing) {
  std::mt19937 rng(5);
  const Placement current = testing::RandomPlacement(rng, 3, 16, 8, 4);
  const std::vector<int64_t> loads = RandomLoads(rng, 3, 16);
  const auto plan = PlanRebalance(current, View(loads, current), {.threshold = 0}).value();
  const auto same = PlanRebalance(current, View(loads, current), {.threshold = 0}).value();
  ASSERT_NE(plan.placement, nullptr);
  EXPECT_EQ(EncodePlacement(*plan.placement), EncodePlacement(*same.placement));
  const auto again = PlanRebalance(*plan.placement, View(loads, current), {.threshold = 0});
  EXPECT_EQ(again->placement, nullptr);
  EXPECT_NEAR(again->after.balancedness(), plan.after.balancedness(), 1e-9);
}

TEST(RebalancePlanTest, AThresholdAndALimitOfFetchesHold) {
  std::mt19937 rng(7);
  const Placement current = testing::RandomPlacement(rng, 6, 16, 4, 4);
  const std::vector<int64_t> loads = RandomLoads(rng, 6, 16);
  const auto all = PlanRebalance(current, View(loads, current), {.threshold = 0}).value();
  const double gain = all.after.balancedness() - all.before.balancedness();
  EXPECT_EQ(PlanRebalance(current, View(loads, current), {.threshold = gain + 1e-9})->placement,
            nullptr);
  const int limit = current.slots_per_rank();
  const auto few =
      PlanRebalance(current, View(loads, current), {.threshold = 0, .fetched_experts_max = 0})
          .value();
  ASSERT_NE(few.placement, nullptr);
  size_t fetched = 0, fetched_by_all = 0;
  for (int r = 0; r < 4; ++r) {
    const auto here = NewExperts(current, *few.placement, RankId(r));
    EXPECT_LE(here.size(), static_cast<size_t>(limit));
    fetched += here.size();
    fetched_by_all += NewExperts(current, *all.placement, RankId(r)).size();
  }
  EXPECT_LT(fetched, fetched_by_all);
  EXPECT_GT(few.after.balancedness(), few.before.balancedness());
}

TEST(RebalancePlanTest, WithoutLoadNothingMovesAndBadLoadsAreRefused) {
  const Placement p = Placement::InOrder(1, 2, 8, 4).value();
  std::vector<int64_t> loads(16);
  EXPECT_EQ(PlanRebalance(p, View(loads, p), {.threshold = 0})->placement, nullptr);
  loads[3] = 5;
  loads[4] = -1;
  EXPECT_TRUE(absl::IsInvalidArgument(PlanRebalance(p, View(loads, p), {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(PlanRebalance(p, {loads.data(), {1, 8}}, {}).status()));
}

TEST(RebalancePlanTest, PlacementsSurviveTheWireAndOthersAreRefused) {
  std::mt19937 rng(9);
  const Placement p = testing::RandomPlacement(rng, 3, 8, 4, 2);
  const std::string bytes = EncodePlacement(p);
  const auto back = DecodePlacement(bytes, p);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->version(), p.version());
  EXPECT_EQ(TableDigest(*back), TableDigest(p));
  EXPECT_FALSE(DecodePlacement(bytes.substr(1), p).ok());
  std::string foreign = bytes;
  foreign[9] = 1;  // expert 256 and more
  EXPECT_FALSE(DecodePlacement(foreign, p).ok());
  const std::vector<bool> present = {true, false};
  const Placement holes = p.Without(7, present).value();
  EXPECT_FALSE(DecodePlacement(EncodePlacement(holes), holes).ok());
}

// ---- rounds: N machines and their headers, step after step

struct Ranks {
  explicit Ranks(int n, absl::Duration interval = absl::Seconds(1)) {
    for (int r = 0; r < n; ++r) machines.emplace_back(interval, 1, 4);
  }
  Act Step() {
    std::vector<StepHeader> headers(machines.size());
    for (size_t r = 0; r < machines.size(); ++r) {
      headers[r].epoch = absent == static_cast<int>(r) ? 0 : 1;
      if (headers[r].epoch != 0) machines[r].Fill(static_cast<int>(r), now, &headers[r]);
    }
    now += absl::Milliseconds(100);
    const Act act = machines[0].OnHeaders(headers);
    for (const Rebalancer& m : machines) EXPECT_EQ(m.OnHeaders(headers), act);
    for (Rebalancer& m : machines) {
      if (act == Act::kGather) m.Begin(now);
      if (act == Act::kSwitch || act == Act::kDrop) m.End();
    }
    return act;
  }
  // Steps until something happens, or many.
  Act Next() {
    for (int i = 0; i < 100; ++i) {
      const Act act = Step();
      if (act != Act::kNone) return act;
    }
    return Act::kNone;
  }
  std::vector<Rebalancer> machines;
  absl::Time now = absl::UnixEpoch();
  int absent = -1;
};

TEST(RebalancerTest, AllSwitchWhenTheLastIsReady) {
  Ranks ranks(3);
  ASSERT_EQ(ranks.Next(), Act::kGather);
  EXPECT_GE(ranks.now - absl::UnixEpoch(), absl::Seconds(1));
  for (int r = 2; r >= 0; --r) {
    EXPECT_EQ(ranks.Next(), Act::kNone) << "rank " << r << " is not ready";
    ranks.machines[r].Ready(77);
    EXPECT_TRUE(ranks.machines[r].untold());
  }
  EXPECT_EQ(ranks.Step(), Act::kSwitch);
  EXPECT_FALSE(ranks.machines[0].busy());
  EXPECT_EQ(ranks.Next(), Act::kGather);
}

TEST(RebalancerTest, OneThatIsLateKeepsTheNextRoundFromBeginning) {
  Ranks ranks(2);
  ASSERT_EQ(ranks.Next(), Act::kGather);
  ranks.machines[0].End();  // nothing to gain, as the other will find
  EXPECT_EQ(ranks.Next(), Act::kNone);
  ranks.machines[1].End();
  EXPECT_EQ(ranks.Step(), Act::kGather);
}

TEST(RebalancerTest, AllDropWhenOneGivesUpOrFindsAnotherPlan) {
  Ranks ranks(3);
  ASSERT_EQ(ranks.Next(), Act::kGather);
  ranks.machines[0].Ready(77);
  EXPECT_EQ(ranks.Step(), Act::kNone);
  ranks.machines[2].GiveUp();
  EXPECT_EQ(ranks.Step(), Act::kDrop);
  ASSERT_EQ(ranks.Next(), Act::kGather);
  ranks.machines[0].Ready(77);
  ranks.machines[1].Ready(78);
  EXPECT_EQ(ranks.Step(), Act::kDrop);
  ASSERT_EQ(ranks.Next(), Act::kGather);
  ranks.machines[0].End();
  ranks.machines[1].Ready(78);
  EXPECT_EQ(ranks.Step(), Act::kDrop);
}

TEST(RebalancerTest, NothingBeginsWhileARankIsMissingOrWithoutAnInterval) {
  Ranks ranks(3);
  ranks.absent = 1;
  EXPECT_EQ(ranks.Next(), Act::kNone);
  ranks.absent = -1;
  EXPECT_EQ(ranks.Next(), Act::kGather);
  EXPECT_EQ(Ranks(3, absl::ZeroDuration()).Next(), Act::kNone);
}

TEST(RebalancerTest, LoadsAreThoseSinceTheLastRound) {
  Rebalancer machine(absl::Seconds(1), 1, 4);
  const std::vector<int32_t> counts = {1, 2, 3, 4};
  machine.Count({counts.data(), {1, 4}});
  machine.Count({counts.data(), {1, 4}});
  EXPECT_EQ(machine.Begin(absl::UnixEpoch()), (std::vector<int64_t>{2, 4, 6, 8}));
  machine.End();
  EXPECT_EQ(machine.Begin(absl::UnixEpoch()), (std::vector<int64_t>{0, 0, 0, 0}));
}

// Random events in any order, headers seen by all: all begin, switch and drop together.
TEST(RebalancerTest, RandomEventsNeverPartTheRanks) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    Ranks ranks(2 + static_cast<int>(rng() % 4), absl::Milliseconds(200));
    std::map<Act, int> seen;
    std::vector<bool> settled(ranks.machines.size());
    for (int i = 0; i < 400; ++i) {
      const size_t r = rng() % ranks.machines.size();
      if (ranks.machines[r].busy() && !settled[r]) {
        settled[r] = true;
        rng() % 20 == 0 ? ranks.machines[r].GiveUp() : ranks.machines[r].Ready(1 + rng() % 40 / 39);
      }
      const Act act = ranks.Step();
      ++seen[act];
      if (act == Act::kSwitch || act == Act::kDrop) settled.assign(settled.size(), false);
    }
    EXPECT_GT(seen[Act::kGather], 5);
    EXPECT_GT(seen[Act::kSwitch], 0);
  }
}

}  // namespace
}  // namespace switchyard

// What a run and a rate are judged by.
#include "bench/verdict.h"

#include <gtest/gtest.h>

#include "bench/sweep.h"

namespace switchyard {
namespace {

VerdictInput Sound() {
  VerdictInput in;
  in.run.wanted = in.completed = 1000;
  in.paced = true;
  in.duration = absl::Seconds(100);
  in.ttft_means_ms = {10, 11, 9, 10, 10, 11, 10, 9, 10, 11};
  in.tpot_means_ms = in.ttft_means_ms;
  return in;
}

TEST(VerdictTest, EachReasonIsFound) {
  EXPECT_TRUE(Judge(Sound()).invalid.empty());
  const auto reason = [](auto change) {
    VerdictInput in = Sound();
    change(in);
    const Verdict v = Judge(in);
    return v.invalid.empty() ? std::string() : v.invalid.front();
  };
  EXPECT_EQ(reason([](VerdictInput& in) { in.run.interrupted = true; }),
            "interrupted: 1000 of 1000 requests ended");
  EXPECT_EQ(reason([](VerdictInput& in) { in.failed = 20; }), "errors: 20 of 1020 requests failed");
  EXPECT_EQ(reason([](VerdictInput& in) { in.percentile_max = 99.99; }),
            "too few samples: p99.99 of 1000 requests; at least 10000 are wanted");
  EXPECT_EQ(reason([](VerdictInput& in) { in.late = 11; }),
            "driver saturated: 11 of 1000 requests left more than 10ms late");
  EXPECT_EQ(
      reason([](VerdictInput& in) { in.completed = 40, in.late = 1, in.percentile_max = 90; }), "");
  EXPECT_EQ(reason([](VerdictInput& in) { in.held_back = 500; }), "");
  EXPECT_EQ(reason([](VerdictInput& in) { in.held_back = 500, in.late = 11; }),
            "driver saturated: 11 of 1000 requests left more than 10ms late");
  EXPECT_TRUE(reason([](VerdictInput& in) {
                in.run.clock_error = -absl::Seconds(1);
              }).starts_with("clock: "));
  EXPECT_TRUE(reason([](VerdictInput& in) {
                in.ttft_means_ms = {40, 38, 41, 40, 39, 10, 11, 9, 10, 10};
              }).ends_with("(not warmed up)"));
  EXPECT_TRUE(reason([](VerdictInput& in) {
                in.tpot_means_ms = {10, 11, 9, 10, 10, 40, 38, 41, 40, 39};
              }).ends_with("(the load is more than the server takes)"));
  // Noise is no drift, however wide.
  EXPECT_EQ(
      reason([](VerdictInput& in) { in.ttft_means_ms = {1, 40, 2, 50, 9, 60, 2, 1, 50, 70}; }), "");
}

TEST(RateSearchTest, FindsTheEdge) {
  for (const double edge : {0.3, 1.0, 7.7, 450.0}) {
    RateSearch search(1, 1e5, 0.05);
    int trials = 0;
    while (const auto rate = search.Next()) {
      search.Tell(*rate <= edge);
      ASSERT_LT(++trials, 40);
    }
    EXPECT_LE(search.best(), edge);
    EXPECT_GE(search.best() * 1.05, edge);
  }
  RateSearch never(1, 100, 0.05), always(1, 100, 0.05);
  for (int i = 0; never.Next(); ++i) {
    ASSERT_LT(i, 20);
    never.Tell(false);
  }
  EXPECT_EQ(never.best(), 0);
  while (always.Next()) always.Tell(true);
  EXPECT_EQ(always.best(), 100);
}

nlohmann::ordered_json Trial(int ended, int late, int bad, int failed) {
  return {{"num_prompts", ended},
          {"driver_late", late},
          {"failed", failed},
          {"goodput_missed", {{"ttft", bad}}},
          {"goodput_share", 1.0 * (ended - bad - failed) / ended}};
}

TEST(SweepTest, ALateRequestDecidesNothing) {
  EXPECT_TRUE(JudgeTrial(Trial(20, 1, 0, 0), 0.99).met);
  EXPECT_TRUE(JudgeTrial(Trial(20, 1, 1, 0), 0.95).met);
  EXPECT_TRUE(JudgeTrial(Trial(1000, 50, 50, 0), 0.95).met) << "as many late as may be bad";
  EXPECT_TRUE(JudgeTrial(Trial(1000, 10, 0, 0), 1).met);
  const TrialVerdict late = JudgeTrial(Trial(1000, 51, 0, 0), 0.95);
  EXPECT_FALSE(late.met || late.sent);
  EXPECT_EQ(late.why, "this driver sent 5.1 % more than 10ms late");
  const TrialVerdict bad = JudgeTrial(Trial(1000, 10, 12, 3), 0.99);
  EXPECT_TRUE(!bad.met && bad.sent);
  EXPECT_EQ(bad.why, "98.5 % good of 99 % wanted: 12 missed ttft, 3 failed");
}

}  // namespace
}  // namespace switchyard

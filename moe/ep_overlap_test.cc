// The choice between one micro-batch and two, from headers alone.
#include "moe/ep_overlap.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <vector>

namespace switchyard {
namespace {

// Steps of `rows` rows (of rank 0; rank 1 has one) through a policy; cost(split) says what each
// takes. How many of the steps from `from` on were split.
int Splits(OverlapPolicy& policy, int steps, int from, uint32_t rows,
           const std::function<uint32_t(bool split)>& cost) {
  int splits = 0;
  uint32_t micros = 0;
  for (int i = 0; i < steps; ++i) {
    const StepHeader headers[] = {{.rows = rows, .micros = micros},
                                  {.rows = 1, .micros = micros / 2}};
    const bool split = policy.Split(headers);
    micros = cost(split);
    splits += i >= from && split;
  }
  return splits;
}

TEST(OverlapPolicyTest, OnAndOffAreWhatTheySay) {
  OverlapPolicy on(EpOverlap::kOn), off(EpOverlap::kOff);
  const StepHeader one[] = {{.rows = 0}, {.rows = 1}}, none[] = {{.rows = 0}, {.rows = 0}};
  EXPECT_TRUE(on.Split(one));
  EXPECT_FALSE(on.Split(none));
  EXPECT_FALSE(off.Split(one));
}

TEST(OverlapPolicyTest, KeepsTheFasterWayAndLooksAtTheOtherSeldom) {
  for (const uint32_t split_cost : {700u, 1400u}) {
    std::mt19937 noise(split_cost);
    OverlapPolicy policy(EpOverlap::kAuto);
    const int splits = Splits(policy, 1100, 100, 256, [&](bool split) {
      return (split ? split_cost : 1000) + noise() % 100;
    });
    if (split_cost == 700) {
      EXPECT_GE(splits, 970);
    } else {
      EXPECT_LE(splits, 30);
      EXPECT_GE(splits, 1);
    }
  }
}

TEST(OverlapPolicyTest, StaysWithOneForAGainOfNothing) {
  OverlapPolicy policy(EpOverlap::kAuto);
  EXPECT_LE(Splits(policy, 1100, 100, 256, [](bool split) { return split ? 990u : 1000u; }), 30);
}

TEST(OverlapPolicyTest, FollowsALinkThatChanges) {
  OverlapPolicy policy(EpOverlap::kAuto);
  const auto slow = [](bool split) { return split ? 700u : 1000u; };
  const auto fast = [](bool split) { return split ? 600u : 500u; };
  Splits(policy, 200, 0, 256, slow);
  EXPECT_LE(Splits(policy, 1500, 500, 256, fast), 30);
  EXPECT_GE(Splits(policy, 6000, 5000, 256, slow), 970);
}

TEST(OverlapPolicyTest, SizesAreWeighedApartAndFewRowsNever) {
  OverlapPolicy policy(EpOverlap::kAuto);
  uint32_t micros = 0;
  int large = 0, small = 0, tiny = 0;
  for (int i = 0; i < 900; ++i) {
    const uint32_t rows = i % 3 == 0 ? 512 : i % 3 == 1 ? 64 : OverlapPolicy::kRowsMin - 1;
    const StepHeader header = {.rows = rows, .micros = micros};
    const bool split = policy.Split({&header, 1});
    micros = rows == 512 ? (split ? 500 : 900) : (split ? 90 : 50);
    (rows == 512 ? large : rows == 64 ? small : tiny) += i >= 60 && split;
  }
  EXPECT_GE(large, 260);
  EXPECT_LE(small, 20);
  EXPECT_EQ(tiny, 0);
}

// Ranks that are fed the same headers never disagree, whatever stands in them.
TEST(OverlapPolicyTest, EqualHeadersEqualChoices) {
  std::mt19937 rng(3);
  OverlapPolicy a(EpOverlap::kAuto), b(EpOverlap::kAuto);
  for (int i = 0; i < 20000; ++i) {
    std::vector<StepHeader> headers(1 + rng() % 4);
    for (StepHeader& h : headers) {
      h.rows = rng() % 4 == 0 ? 0 : rng() >> (rng() % 32);
      h.micros = rng() >> (rng() % 32);
    }
    ASSERT_EQ(a.Split(headers), b.Split(headers)) << i;
  }
}

}  // namespace
}  // namespace switchyard

#include "router/backlog.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

// `n` requests of cost 100 wait, after ten were served, one each `gap`.
Backlog With(int n, absl::Duration gap) {
  Backlog b;
  for (int i = 0; i < n; ++i) b.Add(0, 100, kStart);
  for (int i = 0; i < Backlog::kShortQueue; ++i) b.Add(0, 100, kStart);
  for (int i = 1; i <= 10; ++i) {
    b.Add(0, 100, kStart + i * gap);
    b.Served(0, 100, kStart + i * gap);
  }
  for (int i = 0; i < Backlog::kShortQueue; ++i) b.Drop(0, 100);
  return b;
}

TEST(BacklogTest, WaitsAreWhatStandsBeforeAtTheRateOfLate) {
  Backlog b = With(20, absl::Milliseconds(50));
  EXPECT_NEAR(absl::ToDoubleSeconds(b.Wait(0)), 20 * 0.05, 0.1);
  b.Add(0, 2000, kStart + absl::Seconds(1));
  EXPECT_NEAR(absl::ToDoubleSeconds(b.Wait(0)), 40 * 0.05, 0.2);
}

TEST(BacklogTest, ShortQueuesAndUnknownRatesRefuseNobody) {
  EXPECT_EQ(With(Backlog::kShortQueue - 1, absl::Seconds(1)).Wait(0), absl::ZeroDuration());
  Backlog b;
  for (int i = 0; i < 1000; ++i) b.Add(0, 1000, kStart);
  EXPECT_EQ(b.Wait(0), absl::ZeroDuration());
}

TEST(BacklogTest, OnlyThoseThatGoBeforeCount) {
  Backlog b = With(20, absl::Milliseconds(50));
  EXPECT_EQ(b.Wait(-1), absl::ZeroDuration());
  EXPECT_EQ(b.Wait(1), b.Wait(0));
  b.Add(-1, 10'000, kStart + absl::Seconds(1));
  EXPECT_NEAR(absl::ToDoubleSeconds(b.Wait(-1)), 5, 0.5);
  EXPECT_NEAR(absl::ToDoubleSeconds(b.Wait(0)), 6, 0.6);
  b.Drop(-1, 10'000);
  EXPECT_EQ(b.Wait(-1), absl::ZeroDuration());
}

TEST(BacklogTest, TheRateFollowsAndAnOutageIsForgotten) {
  Backlog b = With(20, absl::Milliseconds(50));
  absl::Time now = kStart + absl::Milliseconds(500);
  const absl::Duration before = b.Wait(0);
  b.Served(0, 100, now += absl::Minutes(1));
  b.Add(0, 100, now);
  EXPECT_LT(b.Wait(0), 10 * before);
  for (int i = 0; i < 200; ++i) {
    b.Served(0, 100, now += absl::Milliseconds(50));
    b.Add(0, 100, now);
  }
  EXPECT_NEAR(absl::FDivDuration(b.Wait(0), before), 1, 0.1);
}

TEST(BacklogTest, TimeInWhichNobodyWaitsDoesNotCount) {
  Backlog b = With(0, absl::Milliseconds(50));
  for (int i = 0; i < 20; ++i) b.Add(0, 100, kStart + absl::Seconds(9));
  EXPECT_NEAR(absl::ToDoubleSeconds(b.Wait(0)), 20 * 0.05, 0.1);
}

TEST(BacklogTest, OneAfterTheOtherSaysNothingOfManyAtOnce) {
  Backlog b;
  for (int i = 0; i < 100; ++i) {
    b.Add(0, 10, kStart + i * absl::Seconds(1));
    b.Served(0, 10, kStart + (i + 1) * absl::Seconds(1));
  }
  for (int i = 0; i < 100; ++i) b.Add(0, 1000, kStart + absl::Seconds(100));
  EXPECT_EQ(b.Wait(0), absl::ZeroDuration());
}

TEST(BacklogTest, TheRateOfAnotherLoadIsForgotten) {
  Backlog b = With(0, absl::Seconds(1));
  for (int i = 0; i < 100; ++i) b.Add(0, 1000, kStart + absl::Minutes(1));
  EXPECT_EQ(b.Wait(0), absl::ZeroDuration());
}

}  // namespace
}  // namespace switchyard

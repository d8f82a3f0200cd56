#include "router/breaker.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

const absl::Time kStart = absl::UnixEpoch();

TEST(BreakerTest, PausesDoubleAndOneAttemptTriesAfterEach) {
  Breaker b;
  absl::Time now = kStart;
  EXPECT_TRUE(b.Allows(now));
  for (absl::Duration pause = Breaker::kPauseMin; pause <= Breaker::kPauseMax; pause *= 2) {
    b.OnFault(now);
    b.OnFault(now);  // the same one, of another request
    EXPECT_FALSE(b.Allows(now + pause - absl::Nanoseconds(1)));
    now += pause;
    ASSERT_TRUE(b.Allows(now));
    b.OnStart(now);
    EXPECT_FALSE(b.Allows(now)) << "one trial per pause";
    now += pause;
  }
  for (int i = 0; i < 100; ++i) {
    b.OnFault(now);
    now += Breaker::kPauseMax;
    EXPECT_TRUE(b.Allows(now));
  }
  b.OnSuccess();
  b.OnStart(now);
  EXPECT_TRUE(b.Allows(now));
}

}  // namespace
}  // namespace switchyard

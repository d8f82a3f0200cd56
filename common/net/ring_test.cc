#include "common/net/ring.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <string>

namespace switchyard {
namespace {

TEST(RingTest, SkipsTheEndWhereAFrameDoesNotFit) {
  RingWriter w(100);
  EXPECT_EQ(w.Take(60), 0u);
  EXPECT_FALSE(w.Take(60));
  ASSERT_TRUE(w.Credit(60).ok());
  EXPECT_EQ(w.Take(60), 100u);  // not 60: 40 bytes are left before the end
  EXPECT_FALSE(w.Take(101));
}

TEST(RingTest, EmptyRingHasRoomForHalfOfItAnywhere) {
  for (uint64_t start = 1; start <= 100; ++start) {
    RingWriter w(100);
    ASSERT_TRUE(w.Take(start));
    ASSERT_TRUE(w.Credit(start).ok());
    EXPECT_TRUE(w.HasRoom(50)) << start;
  }
}

TEST(RingTest, LateCreditChangesNothingAndFalseCreditIsRefused) {
  RingWriter w(100);
  ASSERT_TRUE(w.Take(80));
  ASSERT_TRUE(w.Credit(80).ok());
  ASSERT_TRUE(w.Credit(40).ok());
  EXPECT_EQ(w.in_flight(), 0u);
  EXPECT_EQ(w.Credit(81).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RingTest, ReaderRefusesPositionsThatCannotBe) {
  RingReader r(100);
  ASSERT_EQ(*r.Accept(0, 60), 0u);
  EXPECT_FALSE(r.Accept(0, 10).ok());                // behind
  EXPECT_FALSE(r.Accept(59, 10).ok());               // overlaps
  EXPECT_FALSE(r.Accept(60, 50).ok());               // over the end
  EXPECT_FALSE(r.Accept(150, 20).ok());              // further than a ring away
  EXPECT_FALSE(r.Accept(60, ~uint64_t{0}).ok());     // overflow
  EXPECT_FALSE(r.Accept(~uint64_t{0} - 5, 6).ok());  // overflow
  EXPECT_EQ(*r.Accept(100, 60), 0u);                 // a skipped end
  EXPECT_EQ(r.consumed(), 160u);
}

TEST(RingTest, WriterAndReaderAgreeWhateverIsCredited) {
  const uint64_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 rng(seed);
  RingWriter w(1000);
  RingReader r(1000);
  std::deque<std::pair<uint64_t, uint64_t>> bells;  // sent, not yet read: position, bytes
  uint64_t credit = 0;
  for (int i = 0; i < 100000; ++i) {
    const uint64_t bytes = 1 + rng() % 500;
    if (auto at = w.Take(bytes)) {
      // Never over what the reader has not yet copied.
      for (auto [p, n] : bells) {
        const uint64_t a = *at % 1000, b = p % 1000;
        ASSERT_TRUE(a + bytes <= b || b + n <= a);
      }
      bells.push_back({*at, bytes});
    } else {
      ASSERT_GT(w.in_flight(), 0u);
    }
    if (!bells.empty() && rng() % 2) {
      auto [p, n] = bells.front();
      bells.pop_front();
      // A bell may be lost: the next one makes up for it.
      if (bells.empty() || rng() % 16) {
        auto offset = r.Accept(p, n);
        ASSERT_TRUE(offset.ok()) << offset.status();
        ASSERT_EQ(*offset, p % 1000);
      }
    }
    if (rng() % 3 == 0) credit = r.consumed();
    ASSERT_TRUE(w.Credit(credit).ok());
  }
}

}  // namespace
}  // namespace switchyard

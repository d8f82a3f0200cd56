#include "prefill/handoff_client.h"

#include <algorithm>
#include <map>
#include <random>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

using Effect = HandoffClient::Effect;
using Effects = HandoffClient::Effects;

const absl::Time kStart = absl::UnixEpoch();
const absl::Time kDeadline = kStart + absl::Seconds(60);

TEST(HandoffClientTest, SendsTheTokenAtOnceAndCommitsWhenTheKvHasArrived) {
  HandoffClient c(kDeadline);
  EXPECT_EQ(c.Step(HandoffClient::EngineStarted{}, kStart), Effects{Effect::kReserve});
  EXPECT_EQ(c.Step(HandoffClient::Reserved{absl::Seconds(9)}, kStart), Effects{Effect::kBegin});
  EXPECT_EQ(c.Step(HandoffClient::TokenSampled{}, kStart), Effects{Effect::kSendToken});
  EXPECT_EQ(c.Step(HandoffClient::KvSent{}, kStart), Effects{Effect::kCommit});
  EXPECT_EQ(c.Step(HandoffClient::Committed{}, kStart),
            (Effects{Effect::kSendHandedOff, Effect::kFree}));
  EXPECT_TRUE(c.done());
}

TEST(HandoffClientTest, FirstTokenThatFinishesIsNotHandedOff) {
  HandoffClient c(kDeadline);
  c.Step(HandoffClient::EngineStarted{}, kStart);
  c.Step(HandoffClient::Reserved{absl::Seconds(9)}, kStart);
  EXPECT_EQ(c.Step(HandoffClient::TokenSampled{.finishes = true}, kStart),
            (Effects{Effect::kSendToken, Effect::kCancelRemote, Effect::kStopLocal}));
  EXPECT_FALSE(c.done());
  EXPECT_EQ(c.Step(HandoffClient::KvSent{}, kStart), Effects{Effect::kFree});
  EXPECT_TRUE(c.done());
}

TEST(HandoffClientTest, BlocksStayUntilTheTransferLetsThemGo) {
  HandoffClient c(kDeadline);
  c.Step(HandoffClient::EngineStarted{}, kStart);
  EXPECT_EQ(c.Step(HandoffClient::Failed{absl::ResourceExhaustedError("no blocks")}, kStart),
            (Effects{Effect::kSendError, Effect::kCancelRemote, Effect::kStopLocal}));
  EXPECT_FALSE(c.done());
  EXPECT_EQ(c.error().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(c.Step(HandoffClient::Failed{absl::CancelledError(""), /*transfer_over=*/true}, kStart),
            Effects{Effect::kFree});
  EXPECT_EQ(c.error().code(), absl::StatusCode::kResourceExhausted) << "the first error stays";
}

TEST(HandoffClientTest, TransferMayFailBeforeItsStartIsTold) {
  HandoffClient c(kDeadline);
  EXPECT_EQ(c.Step(HandoffClient::Failed{absl::ResourceExhaustedError("transfers"),
                                         /*transfer_over=*/true},
                   kStart),
            (Effects{Effect::kSendError, Effect::kFree}));
  EXPECT_EQ(c.Step(HandoffClient::EngineStarted{}, kStart), Effects{});
  EXPECT_TRUE(c.done());
}

TEST(HandoffClientTest, AbortInTheQueueSaysNothingToAnyone) {
  HandoffClient c(kDeadline);
  EXPECT_EQ(c.Step(HandoffClient::Aborted{}, kStart), Effects{Effect::kStopLocal});
  EXPECT_EQ(c.Step(HandoffClient::LocalFreed{}, kStart), Effects{});
  EXPECT_TRUE(c.done());
}

TEST(HandoffClientTest, RenewsEveryThirdOfTheLeaseAndGivesUpWhenItRanOut) {
  HandoffClient c(kDeadline);
  c.Step(HandoffClient::EngineStarted{}, kStart);
  c.Step(HandoffClient::Reserved{absl::Seconds(9)}, kStart);
  EXPECT_EQ(c.Step(HandoffClient::Tick{}, kStart + absl::Seconds(2)), Effects{});
  EXPECT_EQ(c.Step(HandoffClient::Tick{}, kStart + absl::Seconds(3)), Effects{Effect::kRenew});
  EXPECT_EQ(c.Step(HandoffClient::Tick{}, kStart + absl::Seconds(4)), Effects{});
  c.Step(HandoffClient::Renewed{}, kStart + absl::Seconds(4));
  EXPECT_EQ(c.Step(HandoffClient::Tick{}, kStart + absl::Seconds(12)), Effects{Effect::kRenew});
  EXPECT_EQ(c.Step(HandoffClient::Tick{}, kStart + absl::Seconds(13)).front(), Effect::kSendError);
  EXPECT_EQ(c.error().code(), absl::StatusCode::kUnavailable);
}

TEST(HandoffClientTest, ReservationThatComesAfterTheEndIsGivenBack) {
  HandoffClient c(kDeadline);
  c.Step(HandoffClient::EngineStarted{}, kStart);
  c.Step(HandoffClient::Aborted{}, kStart);
  EXPECT_EQ(c.Step(HandoffClient::Reserved{absl::Seconds(9)}, kStart),
            Effects{Effect::kCancelRemote});
}

// Whatever is lost, doubled or late: one end at most for the router, blocks freed exactly once and
// never under a transfer, a commit only with token and KV, and an end by the deadline.
TEST(HandoffClientTest, HoldsItsPromisesUnderAnyOrderOfEvents) {
  for (uint64_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    HandoffClient c(kDeadline);
    absl::Time now = kStart;
    std::map<Effect, int> seen;
    bool open = false, over = false, token = false, sent = false, finishes = false;
    const auto step = [&](const HandoffClient::Event& event) {
      for (const Effect effect : c.Step(event, now)) {
        ++seen[effect];
        EXPECT_TRUE(effect != Effect::kCommit || (token && sent));
        EXPECT_TRUE(effect != Effect::kFree || !open || over);
        if (effect == Effect::kSendHandedOff || effect == Effect::kSendError) {
          EXPECT_FALSE(finishes && seen[Effect::kSendToken] > 0) << "the token was the end";
        }
      }
    };
    const auto transfer_ends = [&] {
      over = open;
      if (rng() % 2 && over) {
        sent = true;
        step(HandoffClient::KvSent{});
      } else {
        step(HandoffClient::Failed{absl::UnavailableError("x"), over});
      }
    };
    for (int i = 0; i < 40; ++i) {
      now += absl::Milliseconds(rng() % 1500);
      switch (rng() % 8) {
        case 0:
          open = true;
          step(HandoffClient::EngineStarted{});
          break;
        case 1:
          step(HandoffClient::Reserved{absl::Seconds(5)});
          break;
        case 2:
          if (!token) finishes = rng() % 4 == 0;
          token = true;
          step(HandoffClient::TokenSampled{finishes});
          break;
        case 3:
          if (open && !over) transfer_ends();
          break;
        case 4:
          step(HandoffClient::Committed{});
          break;
        case 5:
          step(HandoffClient::Renewed{});
          break;
        case 6:
          if (rng() % 4 == 0) step(HandoffClient::Aborted{});
          break;
        case 7:
          step(HandoffClient::Tick{});
          break;
      }
    }
    now = kDeadline;
    step(HandoffClient::Tick{});
    EXPECT_TRUE(c.ended());
    if (!c.done()) {
      EXPECT_EQ(seen[Effect::kStopLocal], 1);
      if (open) {
        transfer_ends();
      } else {
        step(HandoffClient::LocalFreed{});
      }
    }
    EXPECT_TRUE(c.done());
    for (const Effect once : {Effect::kReserve, Effect::kBegin, Effect::kSendToken, Effect::kCommit,
                              Effect::kStopLocal, Effect::kFree}) {
      EXPECT_LE(seen[once], 1);
    }
    EXPECT_LE(seen[Effect::kSendHandedOff] + seen[Effect::kSendError], 1);
  }
}

}  // namespace
}  // namespace switchyard

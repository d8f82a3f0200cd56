#include "decode/attempt_join.h"

#include <deque>
#include <random>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

using Do = AttemptJoin::Do;
using J = AttemptJoin;

const absl::Time kStart = absl::UnixEpoch();
constexpr uint64_t kPeer = 77;

std::vector<Do> Whats(const J::Effects& effects) {
  std::vector<Do> out;
  for (const auto& e : effects) out.push_back(e.what);
  return out;
}
using Dos = std::vector<Do>;
// Of one that has ended.
bool OwnsNothing(const AttemptJoin& join) { return join.forgettable(absl::InfiniteFuture()); }

struct Join {
  AttemptJoin join{AttemptJoin::Options{}};
  absl::Time now = kStart;
  Dos operator()(const J::Event& e) { return Whats(join.Step(e, now)); }
  // The router's request, the peer's reservation, and all of its KV.
  Dos TakeKv() {
    Dos last;
    for (const J::Event& e :
         {J::Event(J::Submitted{}), J::Event(J::ReserveCalled{1, kPeer, 40}), J::Event(J::Leased{}),
          J::Event(J::Opened{}), J::Event(J::CommitCalled{2, kPeer}), J::Event(J::KvCommitted{})}) {
      last = (*this)(e);
    }
    return last;
  }
};

TEST(AttemptJoinTest, HandOffThenSubmit) {
  Join j;
  EXPECT_EQ(j(J::ReserveCalled{1, kPeer, 40}), Dos{Do::kLease});
  EXPECT_EQ(j(J::Leased{}), Dos{Do::kOpen});
  EXPECT_EQ(j(J::Opened{}), Dos{Do::kAnswerReserve});
  EXPECT_EQ(j(J::CommitCalled{2, kPeer}), Dos{Do::kCommitKv});
  EXPECT_EQ(j(J::KvCommitted{}), Dos{});
  EXPECT_EQ(j(J::Submitted{}), Dos{Do::kAdopt});
  EXPECT_EQ(j(J::Adopted{}), Dos{Do::kAnswerCommit});
  EXPECT_EQ(j(J::CommitCalled{3, kPeer}), Dos{Do::kAnswerCommit})
      << "a repeat gets the first answer";
  EXPECT_EQ(j(J::Finished{}), Dos{});
  EXPECT_TRUE(j.join.ended());
  EXPECT_TRUE(OwnsNothing(j.join));
}

TEST(AttemptJoinTest, RepeatedCommitGetsTheFirstAnswerAlsoAfterTheEnd) {
  for (const J::Event& end : {J::Event(J::Finished{}), J::Event(J::Aborted{})}) {
    Join j;
    j.TakeKv();
    EXPECT_EQ(j(J::Adopted{}), Dos{Do::kAnswerCommit});
    j(end);
    const auto repeat = j.join.Step(J::CommitCalled{3, kPeer}, kStart);
    ASSERT_EQ(Whats(repeat), Dos{Do::kAnswerCommit});
    EXPECT_TRUE(repeat[0].status.ok()) << repeat[0].status;
    const auto stranger = j.join.Step(J::CommitCalled{4, kPeer + 1}, kStart);
    EXPECT_FALSE(stranger.at(0).status.ok());
  }
  Join failed;
  failed(J::ReserveCalled{1, kPeer, 40});
  failed(J::Leased{});
  failed(J::Opened{});
  failed(J::CommitCalled{2, kPeer});
  const auto first = failed.join.Step(J::KvCommitted{absl::DataLossError("checksum")}, kStart);
  EXPECT_EQ(first.at(0).status.code(), absl::StatusCode::kDataLoss);
  const auto repeat = failed.join.Step(J::CommitCalled{3, kPeer}, kStart);
  EXPECT_EQ(repeat.at(0).status, first.at(0).status);
}

TEST(AttemptJoinTest, SubmitThenHandOff) {
  Join j;
  EXPECT_EQ(j.TakeKv(), Dos{Do::kAdopt});
}

TEST(AttemptJoinTest, PeerThatIsRefusedAndNeverComesBackLeavesNothing) {
  Join j;
  j(J::ReserveCalled{1, kPeer, 40});
  j(J::Leased{});
  j(J::Opened{absl::UnauthenticatedError("who?")});
  j.now += absl::Seconds(11);
  j(J::Tick{});
  EXPECT_TRUE(j.join.ended());
}

TEST(AttemptJoinTest, NoBlocksIsForThePrefillRankToTell) {
  Join j;
  j(J::Submitted{});
  j(J::ReserveCalled{1, kPeer, 40});
  EXPECT_EQ(j(J::Leased{absl::ResourceExhaustedError("full")}), Dos{Do::kAnswerReserve});
  EXPECT_TRUE(j.join.ended());
  const auto again = j.join.Step(J::ReserveCalled{2, kPeer, 40}, kStart);
  EXPECT_EQ(again.at(0).status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(AttemptJoinTest, CancelBeforeEverythingLeavesATombstone) {
  Join j;
  EXPECT_EQ(j(J::CancelCalled{kPeer}), Dos{});
  EXPECT_EQ(j(J::ReserveCalled{1, kPeer, 40}), Dos{Do::kAnswerReserve});
  EXPECT_EQ(j(J::Submitted{}), Dos{});
  EXPECT_FALSE(j.join.forgettable(kStart + absl::Seconds(59)));
  EXPECT_TRUE(j.join.forgettable(kStart + absl::Seconds(60)));
}

// A first token that ends the request cancels the hand-off: an error from here that overtook it
// would have the router compute a complete answer again.
TEST(AttemptJoinTest, CancelledHandOffIsForThePrefillRankToTell) {
  Join j;
  j(J::Submitted{});
  j(J::ReserveCalled{1, kPeer, 40});
  j(J::Leased{});
  j(J::Opened{});
  EXPECT_EQ(j(J::CancelCalled{kPeer}), Dos{Do::kCancelKv});
  Join running;
  running.TakeKv();
  running(J::Adopted{});
  EXPECT_EQ(running(J::CancelCalled{kPeer}), (Dos{Do::kSendError, Do::kAbortEngine}))
      << "the router may take the prefill rank's failure for over";
}

TEST(AttemptJoinTest, AnotherPeerCanNeitherCancelNorCommit) {
  Join j;
  j(J::ReserveCalled{1, kPeer, 40});
  j(J::Leased{});
  j(J::Opened{});
  EXPECT_EQ(j(J::CancelCalled{kPeer + 1}), Dos{});
  const auto commit = j.join.Step(J::CommitCalled{2, kPeer + 1}, kStart);
  EXPECT_EQ(commit.at(0).status.code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(j.join.ended());
}

TEST(AttemptJoinTest, PeerThatMustSayHelloAgainMayComeBack) {
  Join j;
  j(J::ReserveCalled{1, kPeer, 40});
  j(J::Leased{});
  EXPECT_EQ(j(J::Opened{absl::UnauthenticatedError("who?")}),
            (Dos{Do::kAnswerReserve, Do::kFreeBlocks}));
  EXPECT_EQ(j(J::ReserveCalled{2, kPeer + 1, 40}), Dos{Do::kLease});
}

TEST(AttemptJoinTest, KvWithoutSubmitIsGivenBack) {
  Join j;
  j(J::ReserveCalled{1, kPeer, 40});
  j(J::Leased{});
  j(J::Opened{});
  j(J::CommitCalled{2, kPeer});
  j(J::KvCommitted{});
  j.now += absl::Seconds(3);
  EXPECT_EQ(j(J::Tick{}), Dos{});
  j.now += absl::Seconds(1);
  EXPECT_EQ(j(J::Tick{}), (Dos{Do::kAnswerCommit, Do::kFreeBlocks}));
}

TEST(AttemptJoinTest, AbortWhileTheEngineAdoptsFreesThroughTheEngine) {
  Join j;
  j(J::Submitted{});
  j(J::ReserveCalled{1, kPeer, 40});
  j(J::Leased{});
  j(J::Opened{});
  j(J::CommitCalled{2, kPeer});
  j(J::KvCommitted{});
  EXPECT_EQ(j(J::Aborted{}), (Dos{Do::kAnswerCommit, Do::kAbortEngine}));
  EXPECT_EQ(j(J::Adopted{}), Dos{});
  EXPECT_TRUE(OwnsNothing(j.join));
}

TEST(AttemptJoinTest, ComputesThePromptItself) {
  Join j;
  EXPECT_EQ(j(J::Submitted{.remote_prefill = false}), Dos{Do::kAddToEngine});
  EXPECT_EQ(j(J::Adopted{}), Dos{});
  EXPECT_EQ(j(J::Aborted{}), Dos{Do::kAbortEngine});
  Join full;
  full(J::Submitted{.remote_prefill = false});
  EXPECT_EQ(full(J::Adopted{absl::ResourceExhaustedError("queue")}), Dos{Do::kSendError});
}

// The world around a join: an engine and a receiver that answer late, in their own order, and that
// count blocks; a router and a prefill rank that say anything at any time.
class World {
 public:
  explicit World(uint64_t seed) : rng_(seed) {}

  void Run() {
    for (int i = 0; i < 60; ++i) {
      now_ += absl::Milliseconds(rng_() % 300);
      switch (rng_() % 9) {
        case 0:
          Feed(J::Submitted{.remote_prefill = rng_() % 5 != 0, .deadline = deadline_});
          break;
        case 1:
          Feed(J::ReserveCalled{NewWaiter(), Peer(), 40});
          break;
        case 2:
          Feed(J::CommitCalled{NewWaiter(), Peer()});
          break;
        case 3:
          if (rng_() % 12 == 0) Feed(J::CancelCalled{Peer()});
          break;
        case 4:
          if (rng_() % 12 == 0) Feed(J::Aborted{});
          break;
        case 5:
          Feed(J::Tick{});
          break;
        case 6:
          if (rng_() % 12 == 0) ReceiverDrops();
          break;
        default:
          Deliver();
          break;
      }
    }
    now_ = deadline_ + absl::Seconds(1);
    Feed(J::Tick{});
    while (!engine_.empty() || !receiver_.empty() || receiver_has_) {
      Deliver();
      if (engine_.empty() && receiver_.empty() && receiver_has_) ReceiverDrops();  // its lease
    }
    now_ += absl::Seconds(20);
    Feed(J::Tick{});
    while (!engine_.empty() || !receiver_.empty()) Deliver();
    if (in_engine_) EndInEngine();
    EXPECT_EQ(ours_, 0) << "blocks leaked";
    EXPECT_TRUE(!join_.ended() || OwnsNothing(join_));
    EXPECT_EQ(answers_, waiters_) << "a call without its one answer";
    EXPECT_LE(errors_sent_, 1);
  }

 private:
  // An event that happens later, on the engine's or the receiver's thread, which keep their order.
  using Later = std::function<void()>;

  uint64_t NewWaiter() { return ++waiters_; }
  uint64_t Peer() { return rng_() % 8 == 0 ? kPeer + 1 : kPeer; }
  bool Lucky() { return rng_() % 6 != 0; }

  void Deliver() {
    auto& queue = rng_() % 2 ? engine_ : receiver_;
    if (queue.empty()) return;
    Later later = std::move(queue.front());
    queue.pop_front();
    later();
  }

  void Feed(const J::Event& e) {
    for (const auto& effect : join_.Step(e, now_)) Execute(effect);
  }

  void ReceiverDrops() {
    if (!receiver_has_) return;
    receiver_has_ = false;
    --ours_;
    Feed(J::Dropped{absl::AbortedError("dropped")});
  }

  void EndInEngine() {
    in_engine_ = false;
    --ours_;
    Feed(J::Finished{});
  }

  void Execute(const J::Effect& effect) {
    switch (effect.what) {
      case Do::kLease:
        return engine_.push_back([this] {
          const bool ok = Lucky();
          ours_ += ok;
          Feed(J::Leased{ok ? absl::OkStatus() : absl::ResourceExhaustedError("full")});
        });
      case Do::kOpen:
        return receiver_.push_back([this] {
          const bool ok = Lucky();
          receiver_has_ = ok;
          Feed(J::Opened{ok        ? absl::OkStatus()
                         : Lucky() ? absl::AbortedError("tombstone")
                                   : absl::UnauthenticatedError("who?")});
        });
      case Do::kCommitKv:
        return receiver_.push_back([this] {
          if (!receiver_has_) return Feed(J::KvCommitted{absl::NotFoundError("gone")});
          if (!Lucky()) {
            ReceiverDrops();
            return Feed(J::KvCommitted{absl::DataLossError("checksum")});
          }
          receiver_has_ = false;
          Feed(J::KvCommitted{});
        });
      case Do::kCancelKv:
        return receiver_.push_back([this] { ReceiverDrops(); });
      case Do::kAdopt:
      case Do::kAddToEngine: {
        const bool add = effect.what == Do::kAddToEngine;
        return engine_.push_back([this, add] {
          const bool ok = Lucky();
          if (ok) {
            EXPECT_FALSE(in_engine_);
            in_engine_ = true;
            ours_ += add;
          }
          Feed(J::Adopted{ok ? absl::OkStatus() : absl::ResourceExhaustedError("queue")});
        });
      }
      case Do::kAbortEngine:
        return engine_.push_back([this] {
          if (in_engine_) --ours_;
          in_engine_ = false;
        });
      case Do::kFreeBlocks:
        return engine_.push_back([this] {
          --ours_;
          EXPECT_GE(ours_, 0) << "freed twice";
        });
      case Do::kAnswerReserve:
      case Do::kAnswerCommit:
        ++answers_;
        return;
      case Do::kSendError:
        ++errors_sent_;
        return;
    }
  }

  std::mt19937_64 rng_;
  AttemptJoin join_{AttemptJoin::Options{}};
  absl::Time now_ = kStart;
  const absl::Time deadline_ = kStart + absl::Seconds(60);
  std::deque<Later> engine_, receiver_;
  bool receiver_has_ = false, in_engine_ = false;
  int ours_ = 0;  // reservations and sequences that hold blocks, wherever they are
  uint64_t waiters_ = 0, answers_ = 0;
  int errors_sent_ = 0;
};

TEST(AttemptJoinTest, NothingLeaksAndEveryCallIsAnsweredUnderAnyOrderOfEvents) {
  for (uint64_t seed = 1; seed <= 5000 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    World(seed).Run();
  }
}

}  // namespace
}  // namespace switchyard

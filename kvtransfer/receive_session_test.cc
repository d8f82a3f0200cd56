#include "kvtransfer/receive_session.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

#include "kvtransfer/wire.h"

namespace switchyard {
namespace {

using S = ReceiveSessions;
constexpr int kLayers = 2;
constexpr uint64_t kPeer = 11;

KvTarget Target(const std::string& request, int blocks, int first = 0) {
  KvTarget t{{request, 1}, blocks * 16, {}, {}};
  for (int i = 0; i < blocks; ++i) {
    t.blocks.push_back(BlockId(first + i));
    t.generations.push_back(50 + i);
  }
  return t;
}

// The checksum that the tests give to a block.
uint64_t Sum(int layer, int index) { return 1000 * layer + index + 1; }
uint64_t Digest(int blocks) {
  std::vector<uint64_t> sums;
  for (int l = 0; l < kLayers; ++l) {
    for (int i = 0; i < blocks; ++i) sums.push_back(Sum(l, i));
  }
  return TransferDigest(sums);
}

class ReceiveSessionTest : public ::testing::Test {
 protected:
  S::Effects Do(const S::Event& e) { return sessions_.Step(e, now_); }
  absl::StatusOr<uint64_t> Open(const KvTarget& t, uint64_t peer = kPeer) {
    S::Effects out = Do(S::Open{1, peer, t});
    EXPECT_EQ(out.size(), 1u);
    return std::get<S::Opened>(out[0]).session;
  }
  S::Block BlockOf(uint64_t session, int layer, int index) {
    return {kPeer,       session,           uint32_t(layer),  uint32_t(index),
            50u + index, Sum(layer, index), Sum(layer, index)};
  }
  void FeedAll(uint64_t session, int blocks) {
    for (int l = 0; l < kLayers; ++l) {
      for (int i = 0; i < blocks; ++i) Do(BlockOf(session, l, i));
    }
  }
  absl::Status CommitStatus(uint64_t session, uint64_t digest) {
    S::Effects out = Do(S::Commit{9, kPeer, session, digest, absl::Seconds(1)});
    if (out.empty()) return absl::UnknownError("pending");
    return std::get<S::CommitDone>(out.back()).target.status();
  }

  absl::Time now_ = absl::UnixEpoch();
  S sessions_{{.layers = kLayers, .sessions_max = 4, .tombstones_max = 8}};
};

TEST_F(ReceiveSessionTest, BlocksThatAreThereAreNotExpected) {
  KvTarget t = Target("a", 3);
  t.generations[0] = 0;
  const uint64_t s = *Open(t);
  for (const uint32_t generation : {0u, 50u}) {
    EXPECT_EQ(sessions_.Expects(kPeer, s, 0, 0, generation), std::nullopt);
  }
  for (int l = 0; l < kLayers; ++l) {
    for (int i = 1; i < 3; ++i) Do(BlockOf(s, l, i));
  }
  const uint64_t digest =
      TransferDigest(std::vector<uint64_t>{0, Sum(0, 1), Sum(0, 2), 0, Sum(1, 1), Sum(1, 2)});
  EXPECT_TRUE(CommitStatus(s, digest).ok());
  KvTarget whole = Target("b", 2);
  whole.generations = {0, 0};
  EXPECT_TRUE(CommitStatus(*Open(whole), TransferDigest(std::vector<uint64_t>{0, 0, 0, 0})).ok());
}

TEST_F(ReceiveSessionTest, CommitHandsTheTargetBackOnce) {
  uint64_t s = *Open(Target("a", 3));
  FeedAll(s, 3);
  S::Effects out = Do(S::Commit{9, kPeer, s, Digest(3), absl::Seconds(1)});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(std::get<S::CommitDone>(out[0]).target->blocks.size(), 3u);
  EXPECT_EQ(CommitStatus(s, Digest(3)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(sessions_.sessions(), 0);
  EXPECT_EQ(Open(Target("a", 3)).status().code(), absl::StatusCode::kAborted);
}

TEST_F(ReceiveSessionTest, CommitWaitsForTheLastBlock) {
  uint64_t s = *Open(Target("a", 2));
  Do(BlockOf(s, 0, 0));
  EXPECT_TRUE(Do(S::Commit{9, kPeer, s, Digest(2), absl::Seconds(1)}).empty());
  EXPECT_EQ(CommitStatus(s, Digest(2)).code(), absl::StatusCode::kAlreadyExists);
  Do(BlockOf(s, 1, 1));
  Do(BlockOf(s, 0, 1));
  S::Effects out = Do(BlockOf(s, 1, 0));
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(std::get<S::CommitDone>(out[0]).op, 9u);
  EXPECT_TRUE(std::get<S::CommitDone>(out[0]).target.ok());
}

// A frame that was damaged on its way never comes: no reason to hold the blocks for the whole wait.
TEST_F(ReceiveSessionTest, CommitFailsWhenNothingHasComeForALease) {
  const absl::Duration lease = S::Options().lease;
  uint64_t s = *Open(Target("a", 2));
  EXPECT_TRUE(Do(S::Commit{9, kPeer, s, Digest(2), 6 * lease}).empty());
  for (int layer = 0; layer < kLayers; ++layer) {
    now_ += lease - absl::Seconds(1);
    EXPECT_TRUE(Do(S::Tick{}).empty());
    EXPECT_TRUE(Do(BlockOf(s, layer, 0)).empty());
  }
  now_ += lease;
  S::Effects out = Do(S::Tick{});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(std::get<S::CommitDone>(out[1]).target.status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ReceiveSessionTest, CommitFailsWhenTheWaitIsOver) {
  uint64_t s = *Open(Target("a", 2));
  EXPECT_TRUE(Do(S::Commit{9, kPeer, s, Digest(2), absl::Seconds(1)}).empty());
  EXPECT_EQ(sessions_.next_check(), now_ + absl::Seconds(1));
  now_ += absl::Seconds(1);
  S::Effects out = Do(S::Tick{});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(std::get<S::Dropped>(out[0]).target.blocks.size(), 2u);
  EXPECT_EQ(std::get<S::CommitDone>(out[1]).target.status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ReceiveSessionTest, WrongChecksumDropsAndCommitLearnsWhy) {
  uint64_t s = *Open(Target("a", 2));
  S::Block bad = BlockOf(s, 0, 0);
  bad.actual ^= 1;
  S::Effects out = Do(bad);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(std::get<S::Dropped>(out[0]).why.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CommitStatus(s, Digest(2)).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ReceiveSessionTest, WrongDigestIsDataLoss) {
  uint64_t s = *Open(Target("a", 2));
  FeedAll(s, 2);
  S::Effects out = Do(S::Commit{9, kPeer, s, Digest(2) + 1, absl::Seconds(1)});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_TRUE(std::holds_alternative<S::Dropped>(out[0]));
  EXPECT_EQ(std::get<S::CommitDone>(out[1]).target.status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ReceiveSessionTest, ExpectsOnlyWhatIsMissingAndCurrent) {
  uint64_t s = *Open(Target("a", 2, 30));
  EXPECT_EQ(sessions_.Expects(kPeer, s, 1, 1, 51), BlockId(31));
  EXPECT_FALSE(sessions_.Expects(kPeer + 1, s, 1, 1, 51));    // another peer
  EXPECT_FALSE(sessions_.Expects(kPeer, s + 1, 1, 1, 51));    // another session
  EXPECT_FALSE(sessions_.Expects(kPeer, s, kLayers, 1, 51));  // no such layer
  EXPECT_FALSE(sessions_.Expects(kPeer, s, 1, 2, 52));        // no such block
  EXPECT_FALSE(sessions_.Expects(kPeer, s, ~0u, ~0u, 51));    // nonsense
  EXPECT_FALSE(sessions_.Expects(kPeer, s, 1, 1, 50));        // an old generation
  Do(BlockOf(s, 1, 1));
  EXPECT_FALSE(sessions_.Expects(kPeer, s, 1, 1, 51));  // it is there
  Do(S::Cancel{{"a", 1}});
  EXPECT_FALSE(sessions_.Expects(kPeer, s, 1, 0, 50));  // it is over
}

TEST_F(ReceiveSessionTest, LeaseEndsUnlessRenewedOrFed) {
  uint64_t s = *Open(Target("a", 2));
  now_ += absl::Seconds(9);
  EXPECT_TRUE(Do(S::Tick{}).empty());
  Do(S::Renew{1, kPeer, {s}});
  now_ += absl::Seconds(9);
  EXPECT_TRUE(Do(S::Tick{}).empty());
  Do(BlockOf(s, 0, 0));
  now_ += absl::Seconds(9);
  EXPECT_TRUE(Do(S::Tick{}).empty());
  Do(BlockOf(s, 0, 0));  // a repeat proves nothing
  now_ += absl::Seconds(1);
  S::Effects out = Do(S::Tick{});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(std::get<S::Dropped>(out[0]).why.code(), absl::StatusCode::kAborted);
  S::Effects renewed = Do(S::Renew{1, kPeer, {s, 12345}});
  EXPECT_EQ(std::get<S::Renewed>(renewed[0]).lost, (std::vector<uint64_t>{s, 12345}));
}

// The commit's answer may take longer than a third of the lease.
TEST_F(ReceiveSessionTest, CommittedSessionIsNotLost) {
  const uint64_t s = *Open(Target("a", 1));
  FeedAll(s, 1);
  ASSERT_TRUE(CommitStatus(s, Digest(1)).ok());
  const auto lost = [&](uint64_t peer) {
    return std::get<S::Renewed>(Do(S::Renew{1, peer, {s}})[0]).lost;
  };
  EXPECT_EQ(lost(kPeer), std::vector<uint64_t>{});
  EXPECT_EQ(lost(kPeer + 1), std::vector<uint64_t>{s}) << "another peer's is as unknown as none";
  now_ += S::Options().tombstone;
  Do(S::Tick{});
  EXPECT_EQ(lost(kPeer), std::vector<uint64_t>{s});
}

TEST_F(ReceiveSessionTest, CancelBeforeOpenLeavesATombstoneForAWhile) {
  EXPECT_TRUE(Do(S::Cancel{{"a", 1}}).empty());
  EXPECT_TRUE(Do(S::Cancel{{"a", 1}}).empty());
  EXPECT_EQ(sessions_.tombstones(), 1);
  EXPECT_EQ(Open(Target("a", 1)).status().code(), absl::StatusCode::kAborted);
  now_ += absl::Seconds(60);
  Do(S::Tick{});
  EXPECT_EQ(sessions_.tombstones(), 0);
  EXPECT_TRUE(Open(Target("a", 1)).ok());
}

TEST_F(ReceiveSessionTest, TablesAreBounded) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Open(Target("r" + std::to_string(i), 1, i)).ok());
  EXPECT_EQ(Open(Target("x", 1)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Open(Target("r1", 1)).status().code(), absl::StatusCode::kAlreadyExists);
  for (int i = 0; i < 100; ++i) Do(S::Cancel{{"t" + std::to_string(i), 1}});
  EXPECT_EQ(sessions_.tombstones(), 8);
  EXPECT_EQ(sessions_.sessions(), 4);
}

TEST_F(ReceiveSessionTest, ShutdownAnswersEverything) {
  uint64_t s = *Open(Target("a", 2));
  ASSERT_TRUE(Open(Target("b", 2, 2)).ok());
  Do(S::Commit{9, kPeer, s, Digest(2), absl::Seconds(1)});
  EXPECT_EQ(Do(S::Shutdown{}).size(), 3u);  // two drops, one commit
  EXPECT_EQ(sessions_.sessions(), 0);
}

// Blocks reordered, dropped, doubled, corrupted and of other sessions; commits and cancels at any
// time; time that jumps. Whatever happens: each session ends once, each commit is answered once, a
// commit succeeds only if every block came and matched, and everything is forgotten in the end.
TEST(ReceiveSessionRandomTest, EndsEverySessionOnceAndCommitsOnlyWhole) {
  const uint64_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 rng(seed);
  S sessions({.layers = kLayers, .sessions_max = 16, .tombstones_max = 64});
  absl::Time now = absl::UnixEpoch();
  struct Model {
    int blocks;
    std::set<std::pair<int, int>> arrived;
    bool corrupt = false, ended = false;
  };
  std::map<uint64_t, Model> models;
  std::map<AttemptKey, uint64_t> ids;
  std::set<uint64_t> pending;
  uint64_t op = 0, committed = 0, dropped = 0;
  std::map<uint64_t, uint64_t> commit_of;  // op -> session
  std::set<uint64_t> right;                // ops whose digest is right
  auto apply = [&](const S::Effects& out) {
    for (const S::Effect& e : out) {
      if (auto* opened = std::get_if<S::Opened>(&e)) {
        (void)opened;
      } else if (auto* d = std::get_if<S::Dropped>(&e)) {
        Model& m = models.at(ids.at(d->target.key));
        ASSERT_FALSE(m.ended);
        m.ended = true;
        ++dropped;
      } else if (auto* c = std::get_if<S::CommitDone>(&e)) {
        ASSERT_EQ(pending.erase(c->op), 1u);
        if (!c->target.ok()) continue;
        Model& m = models.at(commit_of.at(c->op));
        ASSERT_FALSE(m.ended);
        m.ended = true;
        ++committed;
        ASSERT_TRUE(right.contains(c->op));
        ASSERT_FALSE(m.corrupt);
        ASSERT_EQ(m.arrived.size(), size_t(kLayers) * m.blocks);
      }
    }
  };
  for (int i = 0; i < 200000; ++i) {
    now += absl::Microseconds(rng() % 3000);
    if (rng() % 2000 == 0) now += absl::Seconds(rng() % 20);
    const uint64_t what = rng() % 100;
    if (what < 3) {
      const int blocks = static_cast<int>(rng() % 4);
      KvTarget t = Target("r" + std::to_string(rng() % 4000), blocks);
      S::Effects out = sessions.Step(S::Open{++op, kPeer, t}, now);
      ASSERT_EQ(out.size(), 1u);
      if (auto s = std::get<S::Opened>(out[0]).session; s.ok()) {
        models[*s] = {blocks, {}};
        ids[t.key] = *s;
      }
    } else if (what < 4) {
      apply(sessions.Step(S::Tick{}, now));
    } else if (!models.empty()) {
      // One of the last sessions, dead or alive.
      auto it = models.upper_bound(models.rbegin()->first -
                                   std::min<uint64_t>(models.rbegin()->first, rng() % 20));
      if (it == models.end()) --it;
      auto& [id, m] = *it;
      if (what < 92) {
        S::Block b{rng() % 64 ? kPeer : kPeer + 1,
                   id,
                   uint32_t(rng() % (kLayers + 1)),
                   uint32_t(rng() % 5),
                   0,
                   0,
                   0};
        b.generation = 50 + b.index - (rng() % 64 == 0);
        b.declared = b.actual = Sum(b.layer, b.index);
        if (rng() % 256 == 0) b.actual ^= 1;
        const bool expected =
            sessions.Expects(b.peer_token, id, b.layer, b.index, b.generation).has_value();
        const bool should = !m.ended && b.peer_token == kPeer && b.layer < kLayers &&
                            int(b.index) < m.blocks && b.generation == 50 + b.index &&
                            !m.arrived.contains({b.layer, b.index});
        if (!m.ended) {
          ASSERT_EQ(expected, should);
        }
        if (expected && b.actual != b.declared) m.corrupt = true;
        if (expected && b.actual == b.declared) m.arrived.insert({b.layer, b.index});
        apply(sessions.Step(b, now));
      } else if (what < 97) {
        const bool is_right = rng() % 16 != 0;
        commit_of[++op] = id;
        pending.insert(op);
        if (is_right) right.insert(op);
        apply(sessions.Step(S::Commit{op, kPeer, id, Digest(m.blocks) + !is_right,
                                      absl::Milliseconds(rng() % 3000)},
                            now));
      } else if (what < 98) {
        for (const auto& [key, s] : ids) {
          if (s == id) {
            apply(sessions.Step(S::Cancel{key}, now));
            break;
          }
        }
      } else {
        sessions.Step(S::Renew{++op, kPeer, {id}}, now);
      }
    }
    ASSERT_LE(sessions.tombstones(), 64);
    ASSERT_LE(sessions.sessions(), 16);
    if (::testing::Test::HasFatalFailure()) return;
  }
  apply(sessions.Step(S::Shutdown{}, now));
  EXPECT_TRUE(pending.empty());
  EXPECT_EQ(committed + dropped, models.size());
  EXPECT_GT(committed, 50u);
  EXPECT_GT(dropped, 50u);
  now += absl::Minutes(2);
  sessions.Step(S::Tick{}, now);
  EXPECT_EQ(sessions.tombstones(), 0);
  EXPECT_EQ(sessions.next_check(), absl::InfiniteFuture());
}

}  // namespace
}  // namespace switchyard

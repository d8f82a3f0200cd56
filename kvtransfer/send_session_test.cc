#include "kvtransfer/send_session.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

namespace switchyard {
namespace {

using S = SendSessions;
constexpr int kLayers = 2;
constexpr uint64_t kPeer = 11;
const AttemptKey kKey = {"a", 1};

std::vector<BlockId> Blocks(int first, int n) {
  std::vector<BlockId> out;
  for (int i = 0; i < n; ++i) out.push_back(BlockId(first + i));
  return out;
}
uint64_t Sum(int layer, uint32_t index) { return 1000 * layer + index + 1; }

class SendSessionTest : public ::testing::Test {
 protected:
  S::Effects Do(const S::Event& e) { return sessions_.Step(e, now_); }
  // Stages the next frame as the transport does, and gives it back.
  std::optional<SendFrame> Stage(size_t blocks_max, uint64_t peer = kPeer) {
    auto frame = sessions_.NextFrame(peer, blocks_max);
    if (frame) {
      for (FrameEntry& e : frame->entries) e.checksum = Sum(frame->layer, e.index);
      EXPECT_TRUE(Do(S::Staged{&*frame}).empty());
    }
    return frame;
  }
  static absl::Status StatusOf(const S::Effects& out) {
    if (out.empty()) return absl::UnknownError("no effect");
    return std::get<S::Done>(out.back()).result.status();
  }

  absl::Time now_ = absl::UnixEpoch();
  S sessions_{{.layers = kLayers, .block_bytes = 10, .transfers_max = 4}};
};

TEST_F(SendSessionTest, PushesWaitForBeginAndAreCoalescedByLayer) {
  Do(S::Prepare{1, kKey, 4});
  Do(S::Push{kKey, 0, 0, Blocks(20, 3)});
  Do(S::Push{kKey, 0, 3, Blocks(40, 1)});
  Do(S::Push{kKey, 1, 0, Blocks(20, 4)});
  EXPECT_FALSE(sessions_.HasWork(kPeer));
  Do(S::Begin{kKey, kPeer, 77, {5, 6, 7, 8}});
  auto first = Stage(100);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->layer, 0);
  EXPECT_EQ(first->session, 77u);
  ASSERT_EQ(first->entries.size(), 4u);
  EXPECT_EQ(first->entries[3].generation, 8u);
  EXPECT_EQ(first->blocks[3], BlockId(40));
  auto second = Stage(3);
  EXPECT_EQ(second->entries.size(), 3u);
  auto third = Stage(3);
  EXPECT_EQ(third->entries.size(), 1u);
  EXPECT_FALSE(Stage(3));
  EXPECT_FALSE(sessions_.HasWork(kPeer));
  EXPECT_TRUE(Do(S::Sent{first->transfer, 4}).empty());
  EXPECT_TRUE(Do(S::Sent{first->transfer, 3}).empty());
  S::Effects out = Do(S::Sent{first->transfer, 1});
  ASSERT_EQ(out.size(), 1u);
  auto& done = std::get<S::Done>(out[0]);
  ASSERT_TRUE(done.result.ok());
  EXPECT_EQ(done.result->bytes, 80u);
  std::vector<uint64_t> sums;
  for (int l = 0; l < kLayers; ++l) {
    for (uint32_t i = 0; i < 4; ++i) sums.push_back(Sum(l, i));
  }
  EXPECT_EQ(done.result->digest, TransferDigest(sums));
  EXPECT_EQ(sessions_.transfers(), 0);
}

TEST_F(SendSessionTest, WhatThePeerHasIsNotSent) {
  Do(S::Prepare{1, kKey, 4});
  Do(S::Push{kKey, 0, 0, Blocks(20, 1)});
  Do(S::Push{kKey, 0, 1, Blocks(21, 3)});
  Do(S::Begin{kKey, kPeer, 77, {0, 0, 7, 8}});
  Do(S::Push{kKey, 1, 0, Blocks(20, 2)});  // nothing of it is wanted
  for (int layer = 0; layer < 2; ++layer) {
    auto frame = Stage(100);
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->layer, layer);
    ASSERT_EQ(frame->entries.size(), 2u);
    EXPECT_EQ(frame->entries[0].index, 2u);
    EXPECT_EQ(frame->entries[0].generation, 7u);
    EXPECT_EQ(frame->blocks[0], BlockId(22));
    const S::Effects out = Do(S::Sent{frame->transfer, 2});
    if (layer == 0) {
      Do(S::Push{kKey, 1, 2, Blocks(22, 2)});
      continue;
    }
    ASSERT_EQ(out.size(), 1u);
    const auto& done = std::get<S::Done>(out[0]);
    EXPECT_EQ(done.result->bytes, 40u);
    EXPECT_EQ(done.result->digest, TransferDigest(std::vector<uint64_t>{
                                       0, 0, Sum(0, 2), Sum(0, 3), 0, 0, Sum(1, 2), Sum(1, 3)}));
  }
  Do(S::Prepare{2, kKey, 2});
  EXPECT_TRUE(StatusOf(Do(S::Begin{kKey, kPeer, 78, {0, 0}})).ok());  // it has everything
}

TEST_F(SendSessionTest, EmptyPromptIsCompleteAtBegin) {
  Do(S::Prepare{1, kKey, 0});
  EXPECT_TRUE(StatusOf(Do(S::Begin{kKey, kPeer, 77, {}})).ok());
}

TEST_F(SendSessionTest, MisuseEndsTheTransfer) {
  const std::vector<S::Event> wrong = {
      S::Push{kKey, kLayers, 0, Blocks(0, 1)}, S::Push{kKey, -1, 0, Blocks(0, 1)},
      S::Push{kKey, 0, -1, Blocks(0, 1)},      S::Push{kKey, 0, 3, Blocks(0, 2)},
      S::Push{kKey, 0, 5, Blocks(0, 1)},       S::Push{kKey, 0, 1, Blocks(0, 1)},
      S::Begin{kKey, kPeer, 77, {1, 2, 3}},    S::Begin{kKey, kPeer, 77, {0, 2, 0, 3}},
  };
  for (const S::Event& e : wrong) {
    Do(S::Prepare{1, kKey, 4});
    Do(S::Push{kKey, 0, 0, Blocks(0, 2)});
    EXPECT_EQ(StatusOf(Do(e)).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(sessions_.transfers(), 0);
}

TEST_F(SendSessionTest, PreparesAreBoundedAndUnique) {
  EXPECT_EQ(StatusOf(Do(S::Prepare{1, kKey, -1})).code(), absl::StatusCode::kInvalidArgument);
  Do(S::Prepare{1, kKey, 1});
  EXPECT_EQ(StatusOf(Do(S::Prepare{2, kKey, 1})).code(), absl::StatusCode::kAlreadyExists);
  for (int i = 1; i < 4; ++i) Do(S::Prepare{1, {"b", i}, 1});
  EXPECT_EQ(StatusOf(Do(S::Prepare{2, {"c", 1}, 1})).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SendSessionTest, StallsOnlyWhileThereIsWork) {
  Do(S::Prepare{1, kKey, 2});
  Do(S::Begin{kKey, kPeer, 77, {1, 2}});
  now_ += absl::Minutes(5);  // the prompt is being computed: nobody's fault
  EXPECT_TRUE(Do(S::Tick{}).empty());
  Do(S::Push{kKey, 0, 0, Blocks(0, 2)});
  now_ += absl::Seconds(9);
  EXPECT_TRUE(Do(S::Tick{}).empty());
  auto frame = Stage(1);
  now_ += absl::Seconds(9);
  EXPECT_TRUE(Do(S::Tick{}).empty());
  now_ += absl::Seconds(1);
  S::Effects out = Do(S::Tick{});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(std::get<S::PeerStalled>(out[0]).peer_token, kPeer);
  EXPECT_EQ(StatusOf(out).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(Do(S::Sent{frame->transfer, 1}).empty());  // late
  EXPECT_FALSE(Stage(1));
}

TEST_F(SendSessionTest, TransfersToOnePeerTakeTurns) {
  for (const char* name : {"a", "b"}) {
    Do(S::Prepare{1, {name, 1}, 4});
    Do(S::Begin{{name, 1}, kPeer, uint64_t(name[0]), {1, 1, 1, 1}});
    Do(S::Push{{name, 1}, 0, 0, Blocks(0, 4)});
  }
  std::string order;
  while (auto frame = Stage(2)) order += static_cast<char>(frame->session);
  EXPECT_EQ(order, "abab");
}

TEST_F(SendSessionTest, PeerGoneFailsItsTransfersOnly) {
  for (uint64_t peer : {1, 2}) {
    AttemptKey key = {std::to_string(peer), 1};
    Do(S::Prepare{peer, key, 1});
    Do(S::Begin{key, peer, 5, {1}});
    Do(S::Push{key, 0, 0, Blocks(0, 1)});
  }
  S::Effects out = Do(S::PeerGone{1, "gone"});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(std::get<S::Done>(out[0]).op, 1u);
  EXPECT_EQ(StatusOf(out).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(Stage(1, 1));
  EXPECT_TRUE(Stage(1, 2));
}

// Any order of pushes, begins, cancels, stops and completions: each transfer is done exactly once,
// with success only if every block went once.
TEST(SendSessionRandomTest, EveryTransferIsDoneOnce) {
  const uint64_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 rng(seed);
  S sessions({.layers = kLayers, .block_bytes = 10, .transfers_max = 8});
  absl::Time now = absl::UnixEpoch();
  struct Model {
    int blocks = 0;
    bool done = false;
    std::set<std::pair<int, uint32_t>> staged;
    size_t sent = 0;
    std::set<int> pushed;
  };
  std::map<uint64_t, Model> models;                 // by op
  std::vector<std::pair<uint64_t, size_t>> flying;  // transfer, blocks
  std::map<uint64_t, uint64_t> op_of_transfer;
  uint64_t ops = 0, good = 0;
  auto key_of = [](uint64_t op) { return AttemptKey{"r" + std::to_string(op), 1}; };
  auto apply = [&](const S::Effects& out) {
    for (const S::Effect& e : out) {
      auto* d = std::get_if<S::Done>(&e);
      if (d == nullptr) continue;
      Model& m = models.at(d->op);
      ASSERT_FALSE(m.done);
      m.done = true;
      if (!d->result.ok()) continue;
      ++good;
      ASSERT_EQ(m.sent, size_t(kLayers) * m.blocks);
      ASSERT_EQ(m.staged.size(), m.sent);
    }
  };
  for (int i = 0; i < 100000 && !::testing::Test::HasFatalFailure(); ++i) {
    now += absl::Milliseconds(rng() % 4);
    const uint64_t recent = ops == 0 ? 0 : ops - rng() % std::min<uint64_t>(ops, 6);
    switch (rng() % 16) {
      case 0: {
        if (rng() % 4 != 0) break;
        Model& m = models[++ops];
        m.blocks = static_cast<int>(rng() % 5);
        apply(sessions.Step(S::Prepare{ops, key_of(ops), m.blocks}, now));
        break;
      }
      case 1:
      case 2:
        if (recent == 0) break;
        apply(sessions.Step(S::Begin{key_of(recent), 1 + recent % 2, recent,
                                     std::vector<uint32_t>(models[recent].blocks, 1)},
                            now));
        break;
      case 3:
        if (rng() % 8 == 0)
          apply(sessions.Step(S::Fail{key_of(recent), absl::CancelledError()}, now));
        break;
      case 4:
        if (rng() % 256 == 0) apply(sessions.Step(S::PeerGone{1 + rng() % 2, "gone"}, now));
        apply(sessions.Step(S::Tick{}, now));
        break;
      case 5:
      case 6:
      case 7:
      case 8: {
        // A whole layer; now and then again, which is an error of the caller.
        if (recent == 0) break;
        Model& m = models[recent];
        const int layer = static_cast<int>(rng() % kLayers);
        if (!m.pushed.insert(layer).second && rng() % 256 != 0) break;
        apply(sessions.Step(S::Push{key_of(recent), layer, 0, Blocks(0, m.blocks)}, now));
        break;
      }
      case 9:
      case 10:
      case 11:
      case 12: {
        auto frame = sessions.NextFrame(1 + rng() % 2, 1 + rng() % 4);
        if (!frame) break;
        Model& m = models.at(frame->session);
        ASSERT_FALSE(m.done);
        for (const FrameEntry& e : frame->entries) {
          ASSERT_TRUE(m.staged.insert({frame->layer, e.index}).second);
        }
        op_of_transfer[frame->transfer] = frame->session;
        apply(sessions.Step(S::Staged{&*frame}, now));
        flying.push_back({frame->transfer, frame->entries.size()});
        break;
      }
      default: {
        if (flying.empty()) break;
        std::swap(flying[rng() % flying.size()], flying.back());
        auto [transfer, n] = flying.back();
        flying.pop_back();
        models.at(op_of_transfer.at(transfer)).sent += n;
        apply(sessions.Step(S::Sent{transfer, n}, now));
      }
    }
  }
  apply(sessions.Step(S::Shutdown{}, now));
  for (const auto& [op, m] : models) EXPECT_TRUE(m.done) << op;
  EXPECT_GT(good, 100u);
  EXPECT_EQ(sessions.transfers(), 0);
}

}  // namespace
}  // namespace switchyard

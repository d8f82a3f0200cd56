// The two ends in two processes, by real UCX, on both lanes: transfers that succeed, ends that are
// killed or stopped midway, and what an idle end costs. The other process is this executable again.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <atomic>

#include "absl/time/clock.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/testing.h"

namespace switchyard {
namespace {

using namespace switchyard::testing;  // NOLINT: the vocabulary of this file

constexpr uint64_t kSeed = 21;
constexpr int kBlocks = 1000;

KvLayout LayoutOf(const std::string& name) {
  return name == "large" ? LargeLayout(2) : TinyLayout(4);
}

KvTarget Target(const AttemptKey& key) {
  KvTarget t{key, kBlocks * 16, ShuffledBlocks(kBlocks, 3), {}};
  for (int i = 0; i < kBlocks; ++i) t.generations.push_back(100 + i);
  return t;
}

void FillAll(const KvStorage& kv, const std::vector<BlockId>& blocks) {
  for (int l = 0; l < kv.layout().layers; ++l) {
    for (int i = 0; i < kBlocks; ++i) FillBlock(kv, l, blocks[i], kSeed, i);
  }
}

// ---- the other process

// Meets the parent's receiver, then sends one prompt per command: the session, and how many layers
// of it to push (0: all, and answer with the digest).
int SenderMain(int fd) {
  const std::string lane = ReceiveText(fd), layout = ReceiveText(fd);
  MonotonicClock clock;
  KvStorage kv(LayoutOf(layout), kBlocks);
  const std::vector<BlockId> blocks = ShuffledBlocks(kBlocks, 5);
  FillAll(kv, blocks);
  KvSenderOptions options;
  options.lanes = {lane};
  auto sender = KvSender::Create(options, &kv, &clock);
  if (!sender.ok()) return 1;
  SendHello(fd, (*sender)->MakeHello());
  const KvHelloAnswer answer = ReceiveAnswer(fd);
  (*sender)->Connect(answer);
  for (int n = 1;; ++n) {
    const AttemptKey key = {"r", n};
    const uint64_t session = ReceiveNumber(fd);
    if (session == 0) return 0;
    const uint64_t layers = ReceiveNumber(fd);
    SendFuture done = Prepare(sender->get(), key, kBlocks);
    PushAll(sender->get(), key, layers == 0 ? kv.layout().layers : static_cast<int>(layers), blocks,
            9, n);
    (*sender)->Begin(key, answer.peer_token, session, Target(key).generations);
    if (layers == 0) {
      auto result = Await(std::move(done));
      SendNumber(fd, result.ok() ? result->digest : 0);
    }
  }
}

// Serves one receiver: Hello, then a session per request, and a commit per digest (0: none).
int ReceiverMain(int fd) {
  const std::string lane = ReceiveText(fd), layout = ReceiveText(fd);
  MonotonicClock clock;
  KvStorage kv(LayoutOf(layout), kBlocks);
  KvReceiverOptions options;
  options.numerics_id = "n";
  options.lanes = {lane};
  options.ring_bytes = 1 << 20;
  auto receiver =
      KvReceiver::Create(options, &kv, &clock, [](const KvTarget&, bool, absl::Status) {});
  if (!receiver.ok()) return 1;
  auto answer = Hello(receiver->get(), ReceiveHello(fd));
  if (!answer.ok()) return 1;
  SendAnswer(fd, *answer);
  for (int n = 1;; ++n) {
    auto session = Open(receiver->get(), answer->peer_token, Target({"r", n}));
    SendNumber(fd, session.ok() ? *session : 0);
    const uint64_t digest = ReceiveNumber(fd);
    if (digest == 0) return 0;
    auto target = Commit(receiver->get(), answer->peer_token, *session, digest);
    bool holds = target.ok();
    for (int l = 0; holds && l < kv.layout().layers; ++l) {
      for (int i = 0; holds && i < kBlocks; ++i) {
        holds = BlockHolds(kv, l, target->blocks[i], kSeed, i);
      }
    }
    SendText(fd, holds ? "holds" : target.status().ToString());
  }
}

// ---- the receiver here, the sender there
struct WithSender {
  explicit WithSender(const std::string& lane, const std::string& layout,
                      absl::Duration lease = absl::Seconds(10))
      : kv(LayoutOf(layout), kBlocks), other("sender") {
    KvReceiverOptions options;
    options.numerics_id = "n";
    options.lanes = {lane};
    options.ring_bytes = 1 << 20;
    options.lease = lease;
    receiver = *KvReceiver::Create(options, &kv, &clock,
                                   [this](const KvTarget&, bool, absl::Status) { ++dropped; });
    SendText(other.fd(), lane);
    SendText(other.fd(), layout);
    answer = *Hello(receiver.get(), ReceiveHello(other.fd()));
    SendAnswer(other.fd(), answer);
  }
  MonotonicClock clock;
  KvStorage kv;
  std::atomic<int> dropped = 0;
  OtherProcess other;
  std::unique_ptr<KvReceiver> receiver;
  KvHelloAnswer answer;
};

// ---- the sender here, the receiver there
struct WithReceiver {
  WithReceiver(const std::string& lane, const std::string& layout, KvSenderOptions options = {})
      : kv(LayoutOf(layout), kBlocks), blocks(ShuffledBlocks(kBlocks, 5)), other("receiver") {
    FillAll(kv, blocks);
    options.lanes = {lane};
    sender = *KvSender::Create(options, &kv, &clock);
    SendText(other.fd(), lane);
    SendText(other.fd(), layout);
    SendHello(other.fd(), sender->MakeHello());
    answer = ReceiveAnswer(other.fd());
    sender->Connect(answer);
  }
  MonotonicClock clock;
  KvStorage kv;
  std::vector<BlockId> blocks;
  OtherProcess other;
  std::unique_ptr<KvSender> sender;
  KvHelloAnswer answer;
};

template <typename Condition>
bool Eventually(absl::Duration within, Condition condition) {
  const absl::Time deadline = absl::Now() + within;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

class KvProcessTest : public ::testing::TestWithParam<std::string> {};

TEST_P(KvProcessTest, BlocksOfAnotherProcessArrive) {
  for (const std::string layout : {"tiny", "large"}) {
    WithSender w(GetParam(), layout);
    for (int n = 1; n <= 3; ++n) {
      auto session = Open(w.receiver.get(), w.answer.peer_token, Target({"r", n}));
      ASSERT_TRUE(session.ok()) << session.status();
      SendNumber(w.other.fd(), *session);
      SendNumber(w.other.fd(), 0);
      const uint64_t digest = ReceiveNumber(w.other.fd());
      auto target = Commit(w.receiver.get(), w.answer.peer_token, *session, digest);
      ASSERT_TRUE(target.ok()) << target.status();
      for (int l = 0; l < w.kv.layout().layers; ++l) {
        for (int i = 0; i < kBlocks; ++i) {
          ASSERT_TRUE(BlockHolds(w.kv, l, target->blocks[i], kSeed, i));
        }
      }
    }
    EXPECT_EQ(w.dropped, 0);
  }
}

TEST_P(KvProcessTest, BlocksReachAnotherProcess) {
  WithReceiver w(GetParam(), "tiny");
  for (int n = 1; n <= 3; ++n) {
    const AttemptKey key = {"r", n};
    const uint64_t session = ReceiveNumber(w.other.fd());
    SendFuture done = Prepare(w.sender.get(), key, kBlocks);
    w.sender->Begin(key, w.answer.peer_token, session, Target(key).generations);
    PushAll(w.sender.get(), key, w.kv.layout().layers, w.blocks, 50, n);
    auto result = Await(std::move(done));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->lane, GetParam());
    SendNumber(w.other.fd(), result->digest);
    EXPECT_EQ(ReceiveText(w.other.fd()), "holds");
  }
}

TEST_P(KvProcessTest, KilledSenderCostsItsLease) {
  // Begins with Open: longer than one layer takes.
  WithSender w(GetParam(), "tiny", absl::Seconds(5));
  auto session = Open(w.receiver.get(), w.answer.peer_token, Target({"r", 1}));
  ASSERT_TRUE(session.ok());
  SendNumber(w.other.fd(), *session);
  SendNumber(w.other.fd(), 1);  // one layer only
  ASSERT_TRUE(Eventually(absl::Seconds(20), [&] { return w.receiver->stats().blocks > 10; }));
  w.other.Signal(SIGKILL);
  EXPECT_EQ(w.receiver->stats().sessions, 1);  // until the lease ends
  EXPECT_TRUE(Eventually(absl::Seconds(20), [&] { return w.receiver->stats().sessions == 0; }));
  EXPECT_EQ(w.dropped, 1);
  EXPECT_TRUE(Eventually(absl::Seconds(20), [&] { return w.receiver->stats().peers == 0; }));
  auto late = Open(w.receiver.get(), w.answer.peer_token, Target({"r", 2}));
  EXPECT_EQ(late.status().code(), absl::StatusCode::kUnauthenticated);
}

TEST_P(KvProcessTest, KilledReceiverFailsItsTransfersSoon) {
  WithReceiver w(GetParam(), "tiny");
  const AttemptKey key = {"r", 1};
  const uint64_t session = ReceiveNumber(w.other.fd());
  SendFuture done = Prepare(w.sender.get(), key, kBlocks);
  w.sender->Begin(key, w.answer.peer_token, session, Target(key).generations);
  w.sender->Push(key, 0, 0, w.blocks);
  absl::SleepFor(absl::Milliseconds(50));
  w.other.Signal(SIGKILL);
  const absl::Time killed = absl::Now();
  auto result = Await(std::move(done));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  EXPECT_LT(absl::Now() - killed, absl::Seconds(3));
  SendFuture next = Prepare(w.sender.get(), {"r", 2}, kBlocks);
  w.sender->Begin({"r", 2}, w.answer.peer_token, 99, Target(key).generations);
  EXPECT_EQ(Await(std::move(next)).status().code(), absl::StatusCode::kUnavailable);
}

TEST_P(KvProcessTest, StoppedReceiverRunsIntoTheStallDeadline) {
  KvSenderOptions options;
  options.stall = absl::Milliseconds(500);
  options.in_flight_bytes_max = 2 << 20;
  WithReceiver w(GetParam(), "large", options);
  const AttemptKey key = {"r", 1};
  const uint64_t session = ReceiveNumber(w.other.fd());
  w.other.Signal(SIGSTOP);
  SendFuture done = Prepare(w.sender.get(), key, kBlocks);
  w.sender->Begin(key, w.answer.peer_token, session, Target(key).generations);
  PushAll(w.sender.get(), key, w.kv.layout().layers, w.blocks, 50, 1);
  auto result = Await(std::move(done));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded) << result.status();
  // The peer is given up: it may wake, but nothing more goes to it.
  w.other.Signal(SIGCONT);
  SendFuture next = Prepare(w.sender.get(), {"r", 2}, kBlocks);
  w.sender->Begin({"r", 2}, w.answer.peer_token, session, Target(key).generations);
  EXPECT_EQ(Await(std::move(next)).status().code(), absl::StatusCode::kUnavailable);
}

TEST_P(KvProcessTest, StoppedSenderLosesItsLeaseAndItsLateBlocksAreRefused) {
  WithSender w(GetParam(), "tiny", absl::Milliseconds(400));
  auto session = Open(w.receiver.get(), w.answer.peer_token, Target({"r", 1}));
  ASSERT_TRUE(session.ok());
  w.other.Signal(SIGSTOP);
  SendNumber(w.other.fd(), *session);
  SendNumber(w.other.fd(), 1);
  ASSERT_TRUE(Eventually(absl::Seconds(20), [&] { return w.dropped == 1; }));
  w.other.Signal(SIGCONT);
  ASSERT_TRUE(Eventually(absl::Seconds(20), [&] { return w.receiver->stats().stale_frames > 0; }));
  EXPECT_EQ(w.receiver->stats().blocks, 0u);
}

TEST_P(KvProcessTest, IdleEndsUseNoProcessor) {
  WithReceiver w(GetParam(), "tiny");
  KvReceiverOptions idle;
  idle.numerics_id = "n";
  idle.lanes = {GetParam()};
  auto local =
      KvReceiver::Create(idle, &w.kv, &w.clock, [](const KvTarget&, bool, absl::Status) {});
  ASSERT_TRUE(local.ok());
  absl::SleepFor(absl::Milliseconds(100));
  auto used = [] {
    rusage u;
    getrusage(RUSAGE_SELF, &u);
    return absl::DurationFromTimeval(u.ru_utime) + absl::DurationFromTimeval(u.ru_stime);
  };
  const absl::Duration before = used();
  absl::SleepFor(absl::Milliseconds(1500));
  // A spinning thread would have used 1.5 s. Keepalives once a second are all that is left, and
  // what a sanitizer does in the background.
  EXPECT_LT(used() - before, absl::Milliseconds(500));
}

INSTANTIATE_TEST_SUITE_P(Lanes, KvProcessTest, ::testing::Values("tcp", "shm"),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  auto [role, fd] = switchyard::testing::RoleOf(argc, argv);
  if (role == "sender") return switchyard::SenderMain(fd);
  if (role == "receiver") return switchyard::ReceiverMain(fd);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

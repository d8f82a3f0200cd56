// Both ends in one process, by real UCX, on both lanes; and a hostile sender made of wire.h alone.
#include "kvtransfer/kv_transfer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>

#include "absl/time/clock.h"
#include "kvtransfer/testing.h"
#include "kvtransfer/transport.h"

namespace switchyard {
namespace {

using testing::Await;
using testing::BlockHolds;
using testing::Commit;
using testing::FillBlock;
using testing::Hello;
using testing::Open;
using testing::Prepare;
using testing::PushAll;
using testing::ShuffledBlocks;

constexpr uint64_t kSeed = 7;

struct Ends {
  explicit Ends(const std::string& lane, const KvLayout& layout, int blocks,
                KvReceiverOptions receive = {}, KvSenderOptions send = {})
      : from(layout, blocks), to(layout, blocks) {
    receive.numerics_id = "n";
    receive.lanes = {lane};
    if (receive.ring_bytes == KvReceiverOptions{}.ring_bytes) receive.ring_bytes = 4 << 20;
    send.lanes = {lane};
    auto r =
        KvReceiver::Create(receive, &to, &clock, [this](const KvTarget& t, bool, absl::Status) {
          dropped_blocks += static_cast<int>(t.blocks.size());
        });
    EXPECT_TRUE(r.ok()) << r.status();
    receiver = *std::move(r);
    auto s = KvSender::Create(send, &from, &clock);
    EXPECT_TRUE(s.ok()) << s.status();
    sender = *std::move(s);
  }
  absl::StatusOr<KvHelloAnswer> Meet() {
    auto answer = Hello(receiver.get(), sender->MakeHello());
    if (answer.ok()) sender->Connect(*answer);
    return answer;
  }
  KvTarget Target(const std::string& request, int blocks) {
    KvTarget t{{request, 1}, blocks * 16, ShuffledBlocks(blocks, 3), {}};
    for (int i = 0; i < blocks; ++i) t.generations.push_back(100 + i);
    return t;
  }

  MonotonicClock clock;
  std::atomic<int> dropped_blocks = 0;
  KvStorage from, to;
  std::unique_ptr<KvReceiver> receiver;
  std::unique_ptr<KvSender> sender;
};

class KvTransferTest : public ::testing::TestWithParam<std::string> {};

void SendAndCompare(const std::string& lane, const KvLayout& layout, int blocks, int piece) {
  Ends ends(lane, layout, blocks);
  auto answer = ends.Meet();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->lane, lane);
  const KvTarget target = ends.Target("r", blocks);
  const std::vector<BlockId> source = ShuffledBlocks(blocks, 5);
  for (int l = 0; l < layout.layers; ++l) {
    for (int i = 0; i < blocks; ++i) FillBlock(ends.from, l, source[i], kSeed, i);
  }
  auto done = Prepare(ends.sender.get(), target.key, blocks);
  auto session = Open(ends.receiver.get(), answer->peer_token, target);
  ASSERT_TRUE(session.ok()) << session.status();
  // Half of it is pushed before Begin.
  PushAll(ends.sender.get(), target.key, layout.layers / 2, source, piece, 1);
  ends.sender->Begin(target.key, answer->peer_token, *session, target.generations);
  for (int l = layout.layers / 2; l < layout.layers; ++l) {
    ends.sender->Push(target.key, l, 0, source);
  }
  auto result = Await(std::move(done));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->lane, lane);
  EXPECT_EQ(result->bytes, layout.BlockBytesAllLayers() * blocks);
  auto committed = Commit(ends.receiver.get(), answer->peer_token, *session, result->digest);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->blocks, target.blocks);
  for (int l = 0; l < layout.layers; ++l) {
    for (int i = 0; i < blocks; ++i) {
      ASSERT_TRUE(BlockHolds(ends.to, l, target.blocks[i], kSeed, i)) << l << " " << i;
    }
  }
  EXPECT_EQ(ends.dropped_blocks, 0);
  auto again = Commit(ends.receiver.get(), answer->peer_token, *session, result->digest);
  EXPECT_EQ(again.status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_P(KvTransferTest, TinyBlocksArriveInAnyOrder) {
  SendAndCompare(GetParam(), testing::TinyLayout(6), 2000, 7);
}
TEST_P(KvTransferTest, LargeBlocksArriveInAnyOrder) {
  SendAndCompare(GetParam(), testing::LargeLayout(4), 500, 16);
}

// A sender that says what it likes: frames made by hand.
class RawSender {
 public:
  RawSender(Ends* ends, const std::string& lane) : ends_(ends) {
    workers_ = *TransportWorkers::Create({lane}, "lo");
    KvHello hello = ends->sender->MakeHello();
    hello.ucx_address = workers_.tcp->address();
    answer_ = *Hello(ends->receiver.get(), hello);
    endpoint_ = *UcxEndpoint::Create(workers_.tcp.get(), answer_.ucx_address,
                                     [this](absl::Status) { lost_ = true; });
    if (lane != "shm") return;
    ring_endpoint_ =
        *UcxEndpoint::Create(workers_.posix.get(), answer_.ring_ucx_address, [](absl::Status) {});
    mapping_ = *UcxMapping::Create(ring_endpoint_.get(), answer_.ring_rkey, answer_.ring_address,
                                   answer_.ring_bytes);
  }
  ~RawSender() { ring_endpoint_.reset(), endpoint_.reset(); }

  const KvHelloAnswer& answer() const { return answer_; }
  bool lost() const { return lost_; }
  FrameHeader Header(uint64_t session, uint32_t layer) {
    FrameHeader h{.flags = 0,
                  .peer_token = answer_.peer_token,
                  .session = session,
                  .layer = layer,
                  .block_bytes = uint32_t(ends_->to.layout().BlockBytes()),
                  .ring_position = 0};
    if (mapping_ != nullptr) h.flags = kFrameInRing, h.ring_position = position_;
    return h;
  }
  // One block with the bytes `fill`; `entry.checksum` is added to the right one.
  void Send(FrameHeader header, FrameEntry entry, std::byte fill) {
    const size_t n = ends_->to.layout().BlockBytes();
    std::vector<std::byte> payload(kFrameEntryBytes + (mapping_ ? 0 : n), fill);
    std::vector<std::byte> block(n, fill);
    entry.checksum += BlockChecksum(block);
    if (mapping_ != nullptr) {
      std::memcpy(mapping_->bytes().data() + kRingDataOffset + position_, block.data(), n);
      position_ += RingStride(n);
    }
    auto encoded = EncodeFrame(header, {&entry, 1}, payload);
    SendBytes(encoded, payload);
  }
  void SendBytes(std::span<const std::byte> header, std::span<const std::byte> payload) {
    bool done = false;
    endpoint_->Send(kFrameAm, header, payload, [&](absl::Status) { done = true; });
    while (!done) workers_.tcp->Progress();
  }
  // Until the receiver has taken `frames` of ours.
  void WaitFor(uint64_t frames) {
    for (int i = 0; i < 5000 && ends_->receiver->stats().frames < frames; ++i) {
      workers_.tcp->Progress();
      absl::SleepFor(absl::Milliseconds(1));
    }
    ASSERT_EQ(ends_->receiver->stats().frames, frames);
  }
  bool WaitUntilLost() {
    for (int i = 0; i < 5000 && !lost_; ++i) {
      workers_.tcp->Progress();
      absl::SleepFor(absl::Milliseconds(1));
    }
    return lost_;
  }

 private:
  Ends* ends_;
  TransportWorkers workers_;
  KvHelloAnswer answer_;
  std::unique_ptr<UcxEndpoint> endpoint_, ring_endpoint_;
  std::unique_ptr<UcxMapping> mapping_;
  uint64_t position_ = 0;
  bool lost_ = false;
};

TEST_P(KvTransferTest, ByteThatChangedAfterHashingIsDataLoss) {
  Ends ends(GetParam(), testing::TinyLayout(1), 8);
  RawSender raw(&ends, GetParam());
  auto session = Open(ends.receiver.get(), raw.answer().peer_token, ends.Target("r", 2));
  ASSERT_TRUE(session.ok());
  raw.Send(raw.Header(*session, 0), {0, 100, 0}, std::byte{1});
  raw.Send(raw.Header(*session, 0), {1, 101, /*checksum off by*/ 1}, std::byte{2});
  raw.WaitFor(2);
  EXPECT_EQ(ends.receiver->stats().corrupt_blocks, 1u);
  EXPECT_EQ(ends.dropped_blocks, 2);
  EXPECT_EQ(Commit(ends.receiver.get(), raw.answer().peer_token, *session, 0).status().code(),
            absl::StatusCode::kDataLoss);
}

// The sums that a device keeps of its blocks.
class Sums final : public KvDevice {
 public:
  explicit Sums(const KvStorage& kv)
      : blocks_(static_cast<size_t>(kv.blocks())), sums_(blocks_ * kv.layout().layers, 0) {}
  void TakeFromHost(std::span<const BlockId>) override {}
  uint64_t* Checksums(int layer) override { return &sums_[layer * blocks_]; }

 private:
  const size_t blocks_;
  std::vector<uint64_t> sums_;
};

TEST_P(KvTransferTest, ADevicesChecksumsTravelSoThatABadCopyOfItsMemoryIsDataLoss) {
  for (const bool damaged : {false, true}) {
    Ends ends(GetParam(), testing::TinyLayout(2), 4);
    ends.from.Attach(std::make_unique<Sums>(ends.from));
    ends.to.Attach(std::make_unique<Sums>(ends.to));
    auto answer = ends.Meet();
    ASSERT_TRUE(answer.ok()) << answer.status();
    const KvTarget target = ends.Target("r", 4);
    const std::vector<BlockId> source = ShuffledBlocks(4, 5);
    const size_t bytes = ends.from.layout().BlockBytes();
    for (int l = 0; l < 2; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int32_t b = source[i].value();
        FillBlock(ends.from, l, source[i], kSeed, i);
        ends.from.device()->Checksums(l)[b] = BlockChecksum({ends.from.Block(l, b), bytes});
      }
    }
    if (damaged) ends.from.Block(1, 2)[bytes - 1] ^= std::byte{1};
    auto done = Prepare(ends.sender.get(), target.key, 4);
    auto session = Open(ends.receiver.get(), answer->peer_token, target);
    ASSERT_TRUE(session.ok()) << session.status();
    ends.sender->Begin(target.key, answer->peer_token, *session, target.generations);
    PushAll(ends.sender.get(), target.key, 2, source, 4, 1);
    auto result = Await(std::move(done));
    ASSERT_TRUE(result.ok()) << result.status();
    auto committed = Commit(ends.receiver.get(), answer->peer_token, *session, result->digest);
    EXPECT_EQ(committed.status().code(),
              damaged ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk);
    for (int i = 0; i < 4 && !damaged; ++i) {
      const int32_t to = target.blocks[i].value(), from = source[i].value();
      EXPECT_EQ(ends.to.device()->Checksums(1)[to], ends.from.device()->Checksums(1)[from]);
    }
  }
}

TEST_P(KvTransferTest, StaleAndForeignFramesAreNotStored) {
  Ends ends(GetParam(), testing::TinyLayout(2), 8);
  for (int b = 0; b < 8; ++b) std::memset(ends.to.Block(0, b), 0x55, ends.to.layout().BlockBytes());
  RawSender raw(&ends, GetParam());
  auto session = Open(ends.receiver.get(), raw.answer().peer_token, ends.Target("r", 2));
  ASSERT_TRUE(session.ok());
  auto with_token = [&](uint64_t token) {
    FrameHeader h = raw.Header(*session, 0);
    h.peer_token = token;
    return h;
  };
  raw.Send(raw.Header(*session, 0), {0, 99, 0}, std::byte{1});       // an old generation
  raw.Send(raw.Header(*session, 2), {0, 100, 0}, std::byte{1});      // no such layer
  raw.Send(raw.Header(*session, 0), {2, 102, 0}, std::byte{1});      // no such block
  raw.Send(raw.Header(*session + 1, 0), {0, 100, 0}, std::byte{1});  // no such session
  raw.WaitFor(4);
  raw.Send(with_token(raw.answer().peer_token + 1), {0, 100, 0}, std::byte{1});  // not its name
  const std::byte garbage[200] = {};
  raw.SendBytes(std::span(garbage).first(kFrameHeaderBytes), garbage);
  raw.SendBytes(std::span(garbage).first(3), {});
  raw.WaitFor(7);
  const KvReceiverStats stats = ends.receiver->stats();
  EXPECT_EQ(stats.stale_frames, 7u);
  EXPECT_EQ(stats.blocks, 0u);
  EXPECT_EQ(stats.sessions, 1);
  for (int b = 0; b < 8; ++b) EXPECT_EQ(*ends.to.Block(0, b), std::byte{0x55});
  // A right one still goes through.
  raw.Send(raw.Header(*session, 0), {0, 100, 0}, std::byte{1});
  raw.WaitFor(8);
  EXPECT_EQ(ends.receiver->stats().blocks, 1u);
}

TEST(KvTransferRingTest, FrameOutsideTheRingCostsThePeerItsConnection) {
  Ends ends("shm", testing::TinyLayout(1), 8);
  RawSender raw(&ends, "shm");
  auto session = Open(ends.receiver.get(), raw.answer().peer_token, ends.Target("r", 2));
  ASSERT_TRUE(session.ok());
  FrameHeader h = raw.Header(*session, 0);
  h.ring_position = raw.answer().ring_bytes - 100;
  raw.Send(h, {0, 100, 0}, std::byte{1});
  EXPECT_TRUE(raw.WaitUntilLost());
  EXPECT_EQ(ends.receiver->stats().blocks, 0u);
}

TEST_P(KvTransferTest, CancelMidwayFreesBothEnds) {
  Ends ends(GetParam(), testing::LargeLayout(4), 200);
  auto answer = ends.Meet();
  ASSERT_TRUE(answer.ok());
  const KvTarget target = ends.Target("r", 200);
  auto session = Open(ends.receiver.get(), answer->peer_token, target);
  auto done = Prepare(ends.sender.get(), target.key, 200);
  ends.sender->Begin(target.key, answer->peer_token, *session, target.generations);
  ends.sender->Push(target.key, 0, 0, ShuffledBlocks(200, 1));
  ends.receiver->Cancel(target.key);
  ends.sender->Cancel(target.key);
  EXPECT_EQ(Await(std::move(done)).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Open(ends.receiver.get(), answer->peer_token, target).status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(ends.dropped_blocks, 200);
  // The lane is as good as before.
  KvTarget next = ends.Target("s", 20);
  auto again = Open(ends.receiver.get(), answer->peer_token, next);
  auto sent = Prepare(ends.sender.get(), next.key, 20);
  ends.sender->Begin(next.key, answer->peer_token, *again, next.generations);
  PushAll(ends.sender.get(), next.key, 4, ShuffledBlocks(20, 1), 3, 1);
  auto result = Await(std::move(sent));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(Commit(ends.receiver.get(), answer->peer_token, *again, result->digest).ok());
}

TEST_P(KvTransferTest, DoneComesOnceWhateverEndsIt) {
  auto ends = std::make_unique<Ends>(GetParam(), testing::TinyLayout(2), 8);
  auto answer = ends->Meet();
  ASSERT_TRUE(answer.ok());
  auto unknown_peer = Prepare(ends->sender.get(), {"a", 1}, 1);
  ends->sender->Begin({"a", 1}, 12345, 1, {1});
  EXPECT_EQ(Await(std::move(unknown_peer)).status().code(), absl::StatusCode::kUnavailable);
  auto disconnected = Prepare(ends->sender.get(), {"b", 1}, 1);
  ends->sender->Begin({"b", 1}, answer->peer_token, 1, {1});
  ends->sender->Disconnect(answer->peer_token);
  EXPECT_EQ(Await(std::move(disconnected)).status().code(), absl::StatusCode::kUnavailable);
  auto waiting = Prepare(ends->sender.get(), {"c", 1}, 1);
  ends->sender.reset();
  EXPECT_EQ(Await(std::move(waiting)).status().code(), absl::StatusCode::kCancelled);
}

// What a partition does: the sender has lost the lane, the receiver knows nothing of it.
TEST_P(KvTransferTest, PeerThatIntroducesItselfAnewStartsWithAnEmptyLane) {
  Ends ends(GetParam(), testing::TinyLayout(2), 40);
  uint64_t last_token = 0;
  for (const std::string request : {"a", "b", "c"}) {
    auto answer = ends.Meet();
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_NE(answer->peer_token, last_token);
    last_token = answer->peer_token;
    const KvTarget target = ends.Target(request, 40);
    auto done = Prepare(ends.sender.get(), target.key, 40);
    auto session = Open(ends.receiver.get(), answer->peer_token, target);
    ASSERT_TRUE(session.ok()) << session.status();
    ends.sender->Begin(target.key, answer->peer_token, *session, target.generations);
    PushAll(ends.sender.get(), target.key, 2, ShuffledBlocks(40, 1), 7, 1);
    auto result = Await(std::move(done));
    ASSERT_TRUE(result.ok()) << result.status();
    auto committed = Commit(ends.receiver.get(), answer->peer_token, *session, result->digest);
    EXPECT_TRUE(committed.ok()) << committed.status();
    ends.sender->Disconnect(answer->peer_token);
  }
  EXPECT_EQ(ends.receiver->stats().stale_frames, 0u);
  EXPECT_EQ(ends.receiver->stats().peers, 1);
}

TEST_P(KvTransferTest, HelloIsIdempotentAndRefusesMismatchesByName) {
  Ends ends(GetParam(), testing::TinyLayout(2), 8);
  auto first = ends.Meet(), second = ends.Meet();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->peer_token, second->peer_token);
  auto refused = [&](auto change) {
    KvHello hello = ends.sender->MakeHello();
    change(hello);
    absl::Status s = Hello(ends.receiver.get(), hello).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(s.message());
  };
  std::string layout = refused([](KvHello& h) { h.layout_id = "other"; });
  EXPECT_NE(layout.find("other"), layout.npos);
  EXPECT_NE(layout.find(ends.to.layout().LayoutId()), layout.npos);
  std::string version = refused([](KvHello& h) { h.wire_version = kHandoffWireVersion + 70; });
  for (const uint32_t v : {kHandoffWireVersion, kHandoffWireVersion + 70}) {
    EXPECT_NE(version.find("\"" + std::to_string(v) + "\""), version.npos) << version;
  }
  refused([](KvHello& h) { h.lanes = {"rdma"}; });
  refused([](KvHello& h) { h.lanes = {}; });
  if (GetParam() == "shm") refused([](KvHello& h) { h.host_id = "elsewhere"; });
  auto numerics = Hello(ends.receiver.get(), ends.sender->MakeHello(), "avx2");
  EXPECT_EQ(numerics.status().code(), absl::StatusCode::kFailedPrecondition);
  KvHello bad = ends.sender->MakeHello();
  bad.ucx_address[20] ^= 1;
  EXPECT_EQ(Hello(ends.receiver.get(), bad).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ends.receiver->stats().peers, 1);
}

TEST(KvTransferLaneTest, FirstOfferedLaneThatIsAllowedWins) {
  Ends ends("tcp", testing::TinyLayout(1), 8);
  KvHello hello = ends.sender->MakeHello();
  hello.lanes = {"rdma", "shm", "tcp"};
  auto answer = Hello(ends.receiver.get(), hello);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->lane, "tcp");
  EXPECT_EQ(answer->ring_bytes, 0u);
}

TEST(KvTransferLaneTest, LogSaysOnceWhyAPeerHasNoSharedMemory) {
  ::testing::internal::CaptureStderr();
  {
    Logger log("decode", LogLevel::kInfo, LogFormat::kText);
    const MonotonicClock clock;
    KvStorage kv(testing::TinyLayout(1), 8);
    KvReceiverOptions options;
    options.numerics_id = "n";
    options.ring_bytes = 64;  // not even two blocks
    options.log = &log;
    auto receiver = KvReceiver::Create(options, &kv, &clock, [](auto&&...) {});
    ASSERT_TRUE(receiver.ok()) << receiver.status();
    auto sender = KvSender::Create({}, &kv, &clock);
    ASSERT_TRUE(sender.ok()) << sender.status();
    for (int i = 0; i < 2; ++i) {
      auto answer = Hello(receiver->get(), (*sender)->MakeHello());
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_EQ(answer->lane, "tcp");
    }
  }
  const std::string text = ::testing::internal::GetCapturedStderr();
  const size_t first = text.find("no shm lane");
  ASSERT_NE(first, text.npos) << text;
  EXPECT_NE(text.find("ring_bytes is 64"), text.npos) << text;
  EXPECT_EQ(text.find("no shm lane", first + 1), text.npos) << text;
}

TEST_P(KvTransferTest, PeersAreBoundedAndIdleOnesGiveWay) {
  KvReceiverOptions options;
  options.peers_max = 2;
  options.lease = absl::Seconds(6);  // three introductions must not take longer
  Ends ends(GetParam(), testing::TinyLayout(1), 8, options);
  std::vector<std::unique_ptr<KvSender>> senders;
  auto meet = [&] {
    KvSenderOptions o;
    o.lanes = {GetParam()};
    senders.push_back(*KvSender::Create(o, &ends.from, &ends.clock));
    return Hello(ends.receiver.get(), senders.back()->MakeHello());
  };
  auto first = meet();
  ASSERT_TRUE(first.ok() && meet().ok());
  EXPECT_EQ(meet().status().code(), absl::StatusCode::kResourceExhausted);
  absl::SleepFor(options.lease + absl::Milliseconds(50));
  auto third = Hello(ends.receiver.get(), senders.back()->MakeHello());
  EXPECT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(Open(ends.receiver.get(), first->peer_token, ends.Target("r", 1)).status().code(),
            absl::StatusCode::kUnauthenticated);
}

INSTANTIATE_TEST_SUITE_P(Lanes, KvTransferTest, ::testing::Values("tcp", "shm"),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace switchyard

// Late frames of hand-offs that are over, against blocks that have a new tenant: none may change a
// byte. The receiver is the one of production; the control is the same with its checks off
// (mutate.py), where contamination must show, or the experiment would prove nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <random>

#include "kvcache/block_pool.h"
#include "kvtransfer/receive_end.h"
#include "tests/sim/mutation.h"

namespace switchyard {
namespace {

constexpr int kLayers = 2, kPool = 24, kHandOffBlocks = 8;
constexpr int kChecksOff = 1;  // the number of the mutation: frames are stored whatever they name
constexpr size_t kHistory = 256;

KvLayout SmallLayout() {
  return {.kind = KvLayout::Kind::kMla,
          .layers = kLayers,
          .kv_heads = 1,
          .k_dim = 40,
          .v_dim = 24,
          .block_tokens = 4,
          .dtype = DType::kBfloat16};
}

class SilentWire final : public LaneWire {
 public:
  void Send(unsigned, std::span<const std::byte>, std::span<const std::byte>,
            std::function<void(absl::Status)> done) override {
    done(absl::OkStatus());
  }
  void Close(bool) override {}
  std::string Describe() const override { return "silent"; }
};

struct Sent {  // one block of one hand-off, as its sender said it
  FrameHeader header;
  FrameEntry entry;
  std::vector<std::byte> bytes;
};

class StaleWrites {
 public:
  explicit StaleWrites(uint64_t seed) : rng_(seed) {}

  // Hand-offs one after the other on a small pool, until `frames` stale ones have been delivered.
  void Run(uint64_t frames) {
    while (injected < frames) HandOff();
  }
  uint64_t injected = 0, contaminated = 0, committed = 0;

 private:
  void HandOff() {
    const AttemptKey key{"r" + std::to_string(++number_), 1};
    KvTarget target{key, kHandOffBlocks * 4, *pool_.Lease(kHandOffBlocks), {}};
    for (BlockId b : target.blocks) target.generations.push_back(pool_.generation(b));
    absl::StatusOr<uint64_t> session = absl::UnknownError("");
    end_.Open(token_, target, [&](absl::StatusOr<uint64_t> s) { session = s; });
    ASSERT_TRUE(session.ok()) << session.status();
    std::vector<Sent> mine = FramesOf(target, *session);
    std::shuffle(mine.begin(), mine.end(), rng_);
    // Some hand-offs are over midway: what they had not sent comes later, and late.
    const bool whole = rng_() % 3 != 0;
    const size_t on_time = whole ? mine.size() : rng_() % mine.size();
    for (size_t i = 0; i < on_time; ++i) {
      Inject(mine, i);
      Deliver(mine[i]);
    }
    whole ? Commit(target, *session, mine) : end_.Cancel(key);
    for (const Sent& s : mine) Remember(s);
  }

  std::vector<Sent> FramesOf(const KvTarget& target, uint64_t session) {
    std::vector<Sent> frames;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t i = 0; i < target.blocks.size(); ++i) {
        Sent s{{.flags = 0,
                .peer_token = token_,
                .session = session,
                .layer = layer,
                .block_bytes = static_cast<uint32_t>(kv_.layout().BlockBytes()),
                .ring_position = 0},
               {i, target.generations[i], 0},
               std::vector<std::byte>(kv_.layout().BlockBytes())};
        for (std::byte& b : s.bytes) b = static_cast<std::byte>(rng_());
        s.entry.checksum = BlockChecksum(s.bytes);
        frames.push_back(std::move(s));
      }
    }
    return frames;
  }

  // Stale frames of every kind, each whole and with right checksums.
  void Inject(const std::vector<Sent>& mine, size_t sent) {
    for (int n = 0; n < 3; ++n) {
      Sent stale;
      if (!history_.empty() && (sent == 0 || rng_() % 3 != 0)) {
        stale = history_[rng_() % history_.size()];  // a hand-off that is over
        if (rng_() % 3 == 0) stale.header.session = mine[0].header.session;  // its old generation
      } else if (sent > 0) {
        stale = mine[rng_() % sent];  // a block that is there already, with other bytes
        stale.bytes[0] ^= std::byte{1};
        stale.entry.checksum = BlockChecksum(stale.bytes);
      } else {
        continue;
      }
      if (rng_() % 8 == 0) stale.header.peer_token ^= 1;  // another's name
      ++injected;
      std::copy(all().begin(), all().end(), before_.begin());
      Deliver(stale);
      contaminated += !std::equal(all().begin(), all().end(), before_.begin());
    }
  }

  void Deliver(const Sent& s) {
    std::vector<std::byte> payload(kFrameEntryBytes);
    payload.insert(payload.end(), s.bytes.begin(), s.bytes.end());
    const auto header = EncodeFrame(s.header, {&s.entry, 1}, payload);
    end_.OnFrame(header, payload);
    end_.Work();
  }

  void Commit(const KvTarget& target, uint64_t session, const std::vector<Sent>& mine) {
    std::vector<uint64_t> sums(mine.size());
    for (const Sent& s : mine)
      sums[s.header.layer * target.blocks.size() + s.entry.index] = s.entry.checksum;
    // The answer may come after this returns, if a block is missing: then it is a refusal.
    const auto answer = std::make_shared<absl::Status>(absl::UnknownError("no answer"));
    end_.Commit(token_, session, TransferDigest(sums), absl::ZeroDuration(),
                [answer](const absl::StatusOr<KvTarget>& t) { *answer = t.status(); });
    const absl::Status status = *answer;
    if (sim::Mutation() == 0) {
      ASSERT_TRUE(status.ok()) << status;
    }
    if (!status.ok()) return;
    ++committed;
    pool_.Adopt(target.blocks);
    for (int n = 0; n < 4; ++n) Inject(mine, mine.size());  // its reader is at work
    for (const Sent& s : mine) {
      const std::byte* block =
          kv_.Block(static_cast<int>(s.header.layer), target.blocks[s.entry.index].value());
      if (sim::Mutation() == 0) {
        ASSERT_TRUE(std::equal(s.bytes.begin(), s.bytes.end(), block));
      }
    }
    pool_.Release(target.blocks);
  }

  void Remember(const Sent& s) {
    history_.push_back(s);
    if (history_.size() > kHistory) history_.pop_front();
  }

  std::mt19937_64 rng_;
  MonotonicClock clock_;
  KvStorage kv_{SmallLayout(), kPool};
  BlockPool pool_{kPool};
  ReceiveEnd end_{
      {.numerics_id = "n"},
      &kv_,
      &clock_,
      [](const KvHello&, KvHelloAnswer* answer,
         OnLaneError) -> absl::StatusOr<std::unique_ptr<ReceiveLane>> {
        answer->lane = "tcp";
        return std::make_unique<ReceiveLane>(answer->peer_token, std::make_unique<SilentWire>(),
                                             std::span<const std::byte>());
      },
      [this] { return rng_(); },
      [this](const KvTarget& target, bool, const absl::Status&) { pool_.Release(target.blocks); }};
  std::span<const std::byte> all() const {
    return {kv_.Layer(0), kv_.layout().BlockBytesAllLayers() * kPool};
  }

  std::vector<std::byte> before_ = std::vector<std::byte>(all().size());
  uint64_t token_ = Introduce();
  int number_ = 0;
  std::deque<Sent> history_;

  uint64_t Introduce() {
    KvHello hello;
    hello.numerics_id = "n";
    hello.layout_id = kv_.layout().LayoutId();
    hello.lanes = {"tcp"};
    const auto answer = end_.Hello(hello);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? answer->peer_token : 0;
  }
};

TEST(StaleWritesTest, NoneChangesABlock) {
  const uint64_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  StaleWrites run(seed);
  run.Run(100'000);
  std::printf("%llu stale writes, %llu hand-offs committed, %llu of them changed a byte\n",
              static_cast<unsigned long long>(run.injected),
              static_cast<unsigned long long>(run.committed),
              static_cast<unsigned long long>(run.contaminated));
  EXPECT_EQ(run.contaminated, 0u);
  EXPECT_GT(run.committed, 1000u);
}

TEST(StaleWritesTest, WithoutTheChecksContaminationIsSeen) {
  sim::Mutation() = kChecksOff;
  StaleWrites run(1);
  run.Run(5'000);
  sim::Mutation() = 0;
  std::printf(
      "without the checks: %llu stale writes, %llu hand-offs committed, %llu of them changed a "
      "byte\n",
      static_cast<unsigned long long>(run.injected), static_cast<unsigned long long>(run.committed),
      static_cast<unsigned long long>(run.contaminated));
  EXPECT_GT(run.contaminated, 100u);
}

}  // namespace
}  // namespace switchyard

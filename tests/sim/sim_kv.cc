#include "tests/sim/sim_kv.h"

#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "tests/sim/sim_worker.h"

namespace switchyard::sim {
namespace {

// A ring segment: the receiver's memory, which stays while anyone has it mapped.
struct alignas(kRingAlign) Line {
  std::byte bytes[kRingAlign];
};
using Segment = std::vector<Line>;
constexpr size_t kRingLines = 12;  // small, so that it wraps and fills

std::span<std::byte> BytesOf(Segment& s) { return {s.front().bytes, s.size() * kRingAlign}; }

std::string NameOf(const KvHome& home) { return absl::StrCat(home.node->id, ".", home.life); }

// One direction between two processes.
class Wire final : public LaneWire {
 public:
  static absl::StatusOr<std::unique_ptr<Wire>> Make(const KvHome& home, const std::string& to,
                                                    std::shared_ptr<Segment> segment,
                                                    OnLaneError on_error) {
    const std::vector<std::string> parts = absl::StrSplit(to, '.');
    auto wire = std::unique_ptr<Wire>(new Wire(home, std::move(segment)));
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &wire->to_) ||
        !absl::SimpleAtoi(parts[1], &wire->to_life_)) {
      return absl::InvalidArgumentError("address is damaged");
    }
    Connection& c = *wire->connection_;
    c.ends[0] = home.node->id;
    c.ends[1] = wire->to_;
    c.keepalive = false;  // UCX notices a death, never a silence
    const std::weak_ptr<Connection> self = wire->connection_;
    c.on_break[0] = [home, self, on_error](const absl::Status& why) {
      if (home.node->life != home.life) return;
      home.thread->Post([self, on_error, why] {
        if (!self.expired()) on_error(why);
      });
    };
    World& world = *home.world;
    world.Register(wire->connection_);
    if (world.WorkerAt(wire->to_, wire->to_life_) == nullptr) {
      world.loop.After(absl::Milliseconds(3), [self] {
        const auto c = self.lock();
        if (c && c->on_break[0]) {
          std::exchange(c->on_break[0], nullptr)(absl::UnavailableError("connection refused"));
        }
      });
    }
    return wire;
  }

  void Send(unsigned am, std::span<const std::byte> header, std::span<const std::byte> payload,
            std::function<void(absl::Status)> done) override {
    World& world = *home_.world;
    Random& random = world.loop.random();
    const bool bad = world.network.bad(home_.node->id, to_);
    absl::Time at = world.network.Arrival(home_.node->id, to_);
    if (bad && random.Chance(0.1)) {
      at += absl::Milliseconds(random.Int(0, 20));  // overtaken by others
    } else {
      at = last_ = std::max(last_ + absl::Nanoseconds(1), at);
    }
    const int copies = !bad ? 1 : random.Chance(0.1) ? 0 : random.Chance(0.1) ? 2 : 1;
    for (int i = 0; i < copies; ++i)
      Deliver(at + i * absl::Milliseconds(3), am, header, payload, bad);
    if (bad && copies != 1) ++world.frames_spoilt;
    // A copy that comes when its blocks may long have another owner.
    if (bad && random.Chance(0.2)) {
      Deliver(at + random.Between(absl::Milliseconds(1), absl::Seconds(2)), am, header, payload,
              /*bad=*/false);
    }
    // Local completion: at once, or when it has arrived.
    const absl::Time complete = random.Chance(0.5) ? world.loop.Now() : at;
    world.loop.At(complete, [home = home_, done = std::move(done)] {
      if (home.node->life == home.life) home.thread->Post([done] { done(absl::OkStatus()); });
    });
  }
  void Close(bool flush) override {
    connection_->on_break[0] = nullptr;
    if (!flush) *cut_ = home_.world->loop.random().Chance(0.5);
  }
  std::string Describe() const override { return "sim"; }

 private:
  Wire(const KvHome& home, std::shared_ptr<Segment> segment)
      : home_(home), segment_(std::move(segment)) {}

  void Deliver(absl::Time at, unsigned am, std::span<const std::byte> header,
               std::span<const std::byte> payload, bool bad) {
    World& world = *home_.world;
    Random& random = world.loop.random();
    std::vector<std::byte> h(header.begin(), header.end()), p(payload.begin(), payload.end());
    if (bad && random.Chance(0.1)) {
      std::vector<std::byte>& v = p.empty() || random.Chance(0.3) ? h : p;
      v[random.Next() % v.size()] ^= std::byte(1 << random.Int(0, 7));
      ++world.frames_spoilt;
    }
    world.loop.At(at, [=, cut = cut_, &world, to = to_, life = to_life_] {
      Worker* worker = *cut ? nullptr : world.WorkerAt(to, life);
      if (worker != nullptr) worker->OnKvMessage(am, h, p);
    });
  }

  const KvHome home_;
  const std::shared_ptr<Segment> segment_;
  int to_ = 0;
  uint64_t to_life_ = 0;
  absl::Time last_ = absl::InfinitePast();
  const std::shared_ptr<bool> cut_ = std::make_shared<bool>(false);
  const std::shared_ptr<Connection> connection_ = std::make_shared<Connection>();
};

absl::StatusOr<std::shared_ptr<SendLane>> ConnectLane(const KvHome& home,
                                                      const KvHelloAnswer& answer,
                                                      const SendLane::Options& options,
                                                      SendLane::OnSent on_sent,
                                                      OnLaneError on_error) {
  std::shared_ptr<Segment> segment;
  if (answer.lane == "shm") {
    segment = std::static_pointer_cast<Segment>(home.world->segments[answer.ring_address].lock());
    if (segment == nullptr) return absl::UnavailableError("the ring segment is gone");
  }
  auto wire = Wire::Make(home, answer.ucx_address, segment, std::move(on_error));
  if (!wire.ok()) return wire.status();
  return std::make_shared<SendLane>(options, answer.lane, *std::move(wire),
                                    segment ? BytesOf(*segment) : std::span<std::byte>(),
                                    std::move(on_sent));
}

KvSenderOptions SendOptions() {
  KvSenderOptions options;
  options.frame_bytes_max = 160;  // a few blocks
  return options;
}

KvReceiverOptions ReceiveOptions(const KvHome& home) {
  KvReceiverOptions options;
  options.numerics_id = home.world->shared.model.numerics_id();
  options.incarnation = uint64_t(home.node->id) << 32 | home.life;
  return options;
}

}  // namespace

Sender::Sender(KvHome home, KvStorage* kv)
    : home_(home),
      end_(SendOptions(), kv, &home.node->clock,
           [home](const KvHelloAnswer& answer, const SendLane::Options& options,
                  SendLane::OnSent on_sent, OnLaneError on_error) {
             return ConnectLane(home, answer, options, std::move(on_sent), std::move(on_error));
           }) {
  hello_.numerics_id = home.world->shared.model.numerics_id();
  hello_.layout_id = kv->layout().LayoutId();
  hello_.peer_name = home.node->name;
  hello_.host_id = "one";
  hello_.incarnation = uint64_t(home.node->id) << 32 | home.life;
  hello_.lanes = {"shm", "tcp"};
  hello_.ucx_address = NameOf(home);
}

void Sender::Turn() {
  while (end_.Work()) {
  }
  absl::Time wake = end_.next_check();
  if (end_.busy()) wake = std::min(wake, home_.node->clock.Now() + absl::Milliseconds(100));
  home_.thread->WakeAt(home_.node->clock.ToLoop(wake));
}

void Sender::Connect(const KvHelloAnswer& answer) {
  home_.thread->Post([this, answer] { end_.AddPeer(answer); });
}
void Sender::Disconnect(uint64_t peer_token) {
  home_.thread->Post([this, peer_token] { end_.Disconnect(peer_token); });
}
void Sender::Prepare(const AttemptKey& key, int blocks_total,
                     std::function<void(absl::StatusOr<KvSendResult>)> done) {
  pushed_[key];
  home_.thread->Post([=, this] {
    end_.Prepare(key, blocks_total, [this, key, done](absl::StatusOr<KvSendResult> result) {
      pushed_.erase(key);
      done(std::move(result));
    });
  });
}
void Sender::Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
                   std::vector<uint32_t> generations) {
  home_.thread->Post([=, this] { end_.Begin(key, peer_token, session, generations); });
}
void Sender::Push(const AttemptKey& key, int layer, int first_block, std::vector<BlockId> blocks) {
  home_.thread->Post([=, this] { end_.Push(key, layer, first_block, blocks); });
  if (auto it = pushed_.find(key); it != pushed_.end()) {
    it->second.insert(blocks.begin(), blocks.end());
  }
}
void Sender::Cancel(const AttemptKey& key) {
  home_.thread->Post([this, key] { end_.Fail(key, absl::CancelledError("cancelled")); });
}

Receiver::Receiver(KvHome home, KvStorage* kv, OnDropped on_dropped)
    : home_(home),
      block_bytes_(kv->layout().BlockBytes()),
      end_(
          ReceiveOptions(home), kv, &home.node->clock,
          [this](const KvHello& hello, KvHelloAnswer* answer, OnLaneError on_error) {
            return MakeLane(hello, answer, std::move(on_error));
          },
          [home] { return home.world->loop.random().Next(); },
          [this, on_dropped](const KvTarget& target, bool peer_may_write, absl::Status why) {
            held_.erase(target.key);
            on_dropped(target, peer_may_write, std::move(why));
          }) {}

absl::StatusOr<std::unique_ptr<ReceiveLane>> Receiver::MakeLane(const KvHello& hello,
                                                                KvHelloAnswer* answer,
                                                                OnLaneError on_error) {
  Random& random = home_.world->loop.random();
  std::shared_ptr<Segment> segment;
  answer->lane = random.Chance(0.5) ? "shm" : "tcp";  // /dev/shm may be full
  if (answer->lane == "shm") {
    segment = std::make_shared<Segment>(kRingLines);
    answer->ring_address = home_.world->segments.size() + 1;
    home_.world->segments[answer->ring_address] = segment;
    answer->ring_bytes = kRingDataOffset + segment->size() * kRingAlign;
  }
  answer->ucx_address = NameOf(home_);
  auto wire = Wire::Make(home_, hello.ucx_address, segment, std::move(on_error));
  if (!wire.ok()) return wire.status();
  return std::make_unique<ReceiveLane>(answer->peer_token, *std::move(wire),
                                       segment ? BytesOf(*segment) : std::span<const std::byte>());
}

void Receiver::Turn() {
  end_.Work();
  const uint64_t stale = end_.stats().stale_frames;
  home_.world->stale_frames += stale - std::exchange(stale_frames_, stale);
  home_.thread->WakeAt(home_.node->clock.ToLoop(end_.next_check()));
}

void Receiver::Hello(const KvHello& hello,
                     std::function<void(absl::StatusOr<KvHelloAnswer>)> done) {
  home_.thread->Post([=, this] { done(end_.Hello(hello)); });
}
void Receiver::Open(uint64_t peer_token, const KvTarget& target,
                    std::function<void(absl::StatusOr<uint64_t>)> done) {
  home_.thread->Post([=, this] {
    end_.Open(peer_token, target, [=, this](absl::StatusOr<uint64_t> session) {
      if (session.ok()) {
        std::vector<HeldBlock>& held = held_[target.key];
        for (size_t i = 0; i < target.blocks.size(); ++i) {
          held.push_back({target.blocks[i], target.generations[i]});
          home_.world->blocks_shared += target.generations[i] == 0;
        }
      }
      done(session);
    });
  });
}
void Receiver::Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
                      std::function<void(absl::StatusOr<KvTarget>)> done) {
  home_.thread->Post([=, this] {
    end_.Commit(peer_token, session, digest, wait, [this, done](absl::StatusOr<KvTarget> target) {
      if (target.ok()) held_.erase(target->key);
      done(std::move(target));
    });
  });
}
void Receiver::Cancel(const AttemptKey& key) {
  home_.thread->Post([this, key] { end_.Cancel(key); });
}
void Receiver::Renew(uint64_t peer_token, std::vector<uint64_t> sessions,
                     std::function<void(std::vector<uint64_t> lost)> done) {
  home_.thread->Post([=, this] { done(end_.Renew(peer_token, sessions)); });
}

}  // namespace switchyard::sim

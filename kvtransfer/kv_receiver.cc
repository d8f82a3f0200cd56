// The decode rank's end: feeds ReceiveSessions from the lanes and the callers' messages.
#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "kvtransfer/io_loop.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/receive_session.h"
#include "kvtransfer/transport.h"

namespace switchyard {
namespace {

class Receiver final : public KvReceiver {
 public:
  Receiver(const KvReceiverOptions& options, KvStorage* kv, const Clock* clock,
           OnDropped on_dropped, TransportWorkers workers, uint64_t first_session)
      : options_(options),
        kv_(kv),
        clock_(clock),
        on_dropped_(std::move(on_dropped)),
        workers_(std::move(workers)),
        sessions_({.layers = kv->layout().layers,
                   .sessions_max = options.sessions_max,
                   .tombstones_max = 4 * options.sessions_max,
                   .lease = options.lease,
                   .tombstone = options.tombstone,
                   .first_session = first_session}) {}

  absl::Status Start() {
    RETURN_IF_ERROR(workers_.tcp->SetAmHandler(
        kFrameAm, [this](auto header, auto payload) { OnFrame(header, payload); }));
    ASSIGN_OR_RETURN(loop_,
                     IoLoop::Start(workers_.tcp.get(), clock_,
                                   {.work = [this](absl::Time now) { return Work(now); },
                                    .wake_at = [this](absl::Time now) { return WakeAt(now); },
                                    .stop = [this] { Stop(); }}));
    return absl::OkStatus();
  }

  void Hello(const KvHello& hello,
             std::function<void(absl::StatusOr<KvHelloAnswer>)> done) override {
    if (!loop_->Post([this, hello, done] { done(Introduce(hello)); })) done(Full());
  }

  void Open(uint64_t peer_token, const KvTarget& target,
            std::function<void(absl::StatusOr<uint64_t>)> done) override {
    auto open = [this, peer_token, target, done] {
      auto peer = peers_.find(peer_token);
      if (peer == peers_.end()) {
        return done(absl::UnauthenticatedError("peer_token is not known: say Hello first"));
      }
      peer->second.last_used = clock_->Now();
      Step(ReceiveSessions::Open{Ask([done](ReceiveSessions::Effect& e) {
                                   done(std::get<ReceiveSessions::Opened>(e).session);
                                 }),
                                 peer_token, target});
    };
    if (!loop_->Post(std::move(open))) done(Full());
  }

  void Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
              std::function<void(absl::StatusOr<KvTarget>)> done) override {
    auto commit = [=, this] {
      Step(ReceiveSessions::Commit{
          Ask([done](ReceiveSessions::Effect& e) {
            done(std::move(std::get<ReceiveSessions::CommitDone>(e).target));
          }),
          peer_token, session, digest, wait});
    };
    if (!loop_->Post(std::move(commit))) done(Full());
  }

  void Cancel(const AttemptKey& key) override {
    // A cancel that finds the mailbox full is made up for by the lease.
    (void)loop_->Post([this, key] { Step(ReceiveSessions::Cancel{key}); });
  }

  void Renew(uint64_t peer_token, std::vector<uint64_t> sessions,
             std::function<void(std::vector<uint64_t> lost)> done) override {
    auto renew = [this, peer_token, sessions = std::move(sessions), done] {
      if (auto peer = peers_.find(peer_token); peer != peers_.end()) {
        peer->second.last_used = clock_->Now();
      }
      Step(ReceiveSessions::Renew{Ask([done](ReceiveSessions::Effect& e) {
                                    done(std::move(std::get<ReceiveSessions::Renewed>(e).lost));
                                  }),
                                  peer_token, sessions});
    };
    // Overload loses no session by itself: the next renewal tells.
    if (!loop_->Post(std::move(renew))) done({});
  }

  KvReceiverStats stats() const override {
    MutexLock lock(stats_mu_);
    return published_;
  }

 private:
  struct Peer {
    KvHello hello;
    KvHelloAnswer answer;
    std::unique_ptr<ReceiveLane> lane;
    absl::Time last_used;
    bool lost = false, closed = false;
  };

  static absl::Status Full() {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV receiver: mailbox is full or closed, limit ", IoLoop::kMessagesMax));
  }

  uint64_t Ask(std::function<void(ReceiveSessions::Effect&)> answer) {
    asked_[++last_op_] = std::move(answer);
    return last_op_;
  }

  void Step(const ReceiveSessions::Event& event) {
    for (ReceiveSessions::Effect& effect : sessions_.Step(event, clock_->Now())) {
      if (auto* dropped = std::get_if<ReceiveSessions::Dropped>(&effect)) {
        // Only this process ever writes blocks, whatever the lane.
        on_dropped_(dropped->target, /*peer_may_write=*/false, dropped->why);
        continue;
      }
      const uint64_t op = std::visit([](const auto& e) { return OpOf(e); }, effect);
      auto it = asked_.find(op);
      SY_CHECK(it != asked_.end());
      auto answer = std::move(it->second);
      asked_.erase(it);
      answer(effect);
    }
  }
  template <typename E>
  static uint64_t OpOf(const E& e) {
    return e.op;
  }
  static uint64_t OpOf(const ReceiveSessions::Dropped&) { return 0; }

  absl::StatusOr<KvHelloAnswer> Introduce(const KvHello& hello) {
    RETURN_IF_ERROR(CheckHello(hello));
    // Nothing is ever sent by posix, but what a new endpoint over there says must be taken in.
    if (workers_.posix != nullptr) workers_.posix->Progress();
    for (auto& [token, peer] : peers_) {
      const KvHello& known = peer.hello;
      if (!peer.lost && known.ucx_address == hello.ucx_address &&
          known.incarnation == hello.incarnation && known.host_id == hello.host_id &&
          known.lanes == hello.lanes) {
        peer.last_used = clock_->Now();
        return peer.answer;
      }
    }
    RETURN_IF_ERROR(MakeRoom());
    KvHelloAnswer answer;
    answer.incarnation = options_.incarnation;
    do {
      answer.peer_token = (uint64_t{random_()} << 32) | random_();
    } while (answer.peer_token == 0 || peers_.contains(answer.peer_token));
    const uint64_t token = answer.peer_token;
    auto lane = ReceiveLane::Create(workers_, hello, options_, kv_->layout().BlockBytes(), &answer,
                                    [this, token](const absl::Status& why) { Lose(token, why); });
    RETURN_IF_ERROR(lane.status());
    if (options_.log != nullptr) {
      options_.log->Info("KV peer introduced", {{"peer", hello.peer_name},
                                                {"lane", answer.lane},
                                                {"ucx", (*lane)->DescribeLanes()},
                                                {"ring_bytes", answer.ring_bytes}});
    }
    peers_[token] = Peer{hello, answer, *std::move(lane), clock_->Now()};
    return answer;
  }

  absl::Status CheckHello(const KvHello& hello) const {
    auto differ = [](const char* field, const auto& theirs, const auto& ours) {
      return absl::FailedPreconditionError(
          absl::StrCat(field, " differs: the peer's is \"", theirs, "\", ours is \"", ours, "\""));
    };
    if (hello.wire_version != kHandoffWireVersion) {
      return differ("wire_version", hello.wire_version, kHandoffWireVersion);
    }
    if (hello.numerics_id != options_.numerics_id) {
      return differ("numerics_id", hello.numerics_id, options_.numerics_id);
    }
    const std::string layout = kv_->layout().LayoutId();
    if (hello.layout_id != layout) return differ("layout_id", hello.layout_id, layout);
    return absl::OkStatus();
  }

  // A peer that has been idle for a lease gives way; should it live, it says Hello again.
  absl::Status MakeRoom() {
    if (static_cast<int>(peers_.size()) < options_.peers_max) return absl::OkStatus();
    auto oldest = peers_.end();
    for (auto it = peers_.begin(); it != peers_.end(); ++it) {
      if (it->second.last_used + options_.lease <= clock_->Now() &&
          !sessions_.HasSessionOf(it->first) &&
          (oldest == peers_.end() || it->second.last_used < oldest->second.last_used)) {
        oldest = it;
      }
    }
    if (oldest == peers_.end()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("peers: ", peers_.size(), " of ", options_.peers_max, " are in use"));
    }
    peers_.erase(oldest);
    return absl::OkStatus();
  }

  // The peer died. Its sessions stay until their leases end: what has arrived may be all there was.
  void Lose(uint64_t token, const absl::Status& why) {
    auto it = peers_.find(token);
    if (it == peers_.end()) return;
    it->second.lost = true;
    some_lost_ = true;
    if (options_.log != nullptr) {
      options_.log->Warning("KV peer lost",
                            {{"peer", it->second.hello.peer_name}, {"why", why.ToString()}});
    }
  }

  void OnFrame(std::span<const std::byte> header, std::span<const std::byte> payload) {
    ++stats_.frames;
    absl::StatusOr<Frame> frame = ParseFrame(header, payload);
    if (!frame.ok()) {
      ++stats_.stale_frames;
      if (options_.log != nullptr) {
        options_.log->Warning("KV frame refused", {{"why", frame.status().ToString()}});
      }
      return;
    }
    auto peer = peers_.find(frame->header.peer_token);
    const size_t block_bytes = kv_->layout().BlockBytes();
    if (peer == peers_.end() || frame->header.block_bytes != block_bytes) {
      ++stats_.stale_frames;
      return;
    }
    size_t stride = block_bytes;
    std::span<const std::byte> bytes = frame->blocks;
    if (frame->header.flags & kFrameInRing) {
      stride = RingStride(block_bytes);
      auto in_ring =
          peer->second.lane->RingFrame(frame->header.ring_position, frame->entries.size() * stride);
      if (!in_ring.ok()) {
        // Its count of the ring is not ours: nothing that it says about it can be believed.
        ++stats_.stale_frames;
        return Lose(frame->header.peer_token, in_ring.status());
      }
      bytes = *in_ring;
    }
    StoreBlocks(*frame, bytes, stride);
  }

  void StoreBlocks(const Frame& frame, std::span<const std::byte> bytes, size_t stride) {
    const size_t block_bytes = kv_->layout().BlockBytes();
    const FrameHeader& h = frame.header;
    bool stale = false;
    for (size_t i = 0; i < frame.entries.size(); ++i) {
      const FrameEntry& e = frame.entries[i];
      const std::optional<BlockId> to =
          sessions_.Expects(h.peer_token, h.session, h.layer, e.index, e.generation);
      if (!to) {
        stale = true;
        continue;
      }
      std::byte* block = kv_->Block(static_cast<int>(h.layer), to->value());
      std::memcpy(block, bytes.data() + i * stride, block_bytes);
      // The block is what counts, not what lies in the ring: the peer can still write there.
      const uint64_t actual = BlockChecksum({block, block_bytes});
      ++stats_.blocks;
      stats_.bytes += block_bytes;
      if (actual != e.checksum) ++stats_.corrupt_blocks;
      Step(ReceiveSessions::Block{h.peer_token, h.session, h.layer, e.index, e.generation,
                                  e.checksum, actual});
    }
    if (stale) ++stats_.stale_frames;
  }

  bool Work(absl::Time now) {
    for (auto& [token, peer] : peers_) {
      if (!peer.closed) peer.lane->SendCredit();
    }
    Step(ReceiveSessions::Tick{});
    if (some_lost_) BuryLost();
    if (now >= next_publish_ || sessions_.sessions() == 0) Publish(now);
    return false;
  }

  void BuryLost() {
    some_lost_ = false;
    for (auto it = peers_.begin(); it != peers_.end();) {
      Peer& peer = it->second;
      if (!peer.lost) {
        ++it;
        continue;
      }
      if (!std::exchange(peer.closed, true)) peer.lane->Close();
      if (sessions_.HasSessionOf(it->first)) {
        some_lost_ = true;
        ++it;
      } else {
        peers_.erase(it++);
      }
    }
  }

  void Publish(absl::Time now) {
    next_publish_ = now + absl::Milliseconds(1);
    stats_.sessions = sessions_.sessions();
    stats_.peers = static_cast<int>(peers_.size());
    stats_.tombstones = sessions_.tombstones();
    MutexLock lock(stats_mu_);
    published_ = stats_;
  }

  absl::Time WakeAt(absl::Time now) {
    Publish(now);  // about to sleep: whoever looks meanwhile sees the latest
    return sessions_.next_check();
  }

  void Stop() {
    Step(ReceiveSessions::Shutdown{});
    Publish(clock_->Now());
    for (auto& [token, peer] : peers_) peer.lane->Close();
  }

  const KvReceiverOptions options_;
  KvStorage* const kv_;
  const Clock* const clock_;
  const OnDropped on_dropped_;
  TransportWorkers workers_;
  ReceiveSessions sessions_;
  absl::flat_hash_map<uint64_t, Peer> peers_;  // by peer_token
  bool some_lost_ = false;
  absl::flat_hash_map<uint64_t, std::function<void(ReceiveSessions::Effect&)>> asked_;  // by op
  uint64_t last_op_ = 0;
  std::random_device random_;
  KvReceiverStats stats_;
  absl::Time next_publish_ = absl::InfinitePast();
  mutable Mutex stats_mu_;
  KvReceiverStats published_ ABSL_GUARDED_BY(stats_mu_);
  std::unique_ptr<IoLoop> loop_;  // last: its thread uses all of the above
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvReceiver>> KvReceiver::Create(const KvReceiverOptions& options,
                                                               KvStorage* kv, const Clock* clock,
                                                               OnDropped on_dropped) {
  if (options.peers_max < 1 || options.sessions_max < 1) {
    return absl::InvalidArgumentError(absl::StrCat("peers_max is ", options.peers_max,
                                                   ", sessions_max is ", options.sessions_max,
                                                   ", must be at least 1"));
  }
  ASSIGN_OR_RETURN(TransportWorkers workers,
                   TransportWorkers::Create(options.lanes, options.net_devices));
  // Sessions of two runs never meet, as tokens differ; a random start also shows mix-ups in logs.
  std::random_device random;
  auto receiver = std::make_unique<Receiver>(options, kv, clock, std::move(on_dropped),
                                             std::move(workers), (uint64_t{random()} << 20) + 1);
  RETURN_IF_ERROR(receiver->Start());
  return receiver;
}

}  // namespace switchyard

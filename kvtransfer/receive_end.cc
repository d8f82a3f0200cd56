#include "kvtransfer/receive_end.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

template <typename E>
uint64_t OpOf(const E& e) {
  return e.op;
}
uint64_t OpOf(const ReceiveSessions::Dropped&) { return 0; }

}  // namespace

ReceiveEnd::ReceiveEnd(const KvReceiverOptions& options, KvStorage* kv, const Clock* clock,
                       Connect connect, std::function<uint64_t()> random,
                       KvReceiver::OnDropped on_dropped)
    : options_(options),
      kv_(kv),
      clock_(clock),
      connect_(std::move(connect)),
      random_(std::move(random)),
      on_dropped_(std::move(on_dropped)),
      // Sessions of two runs never meet, as tokens differ; a random start also shows mix-ups in
      // logs.
      sessions_({.layers = kv->layout().layers,
                 .sessions_max = options.sessions_max,
                 .tombstones_max = 4 * options.sessions_max,
                 .lease = options.lease,
                 .tombstone = options.tombstone,
                 .first_session = (random_() >> 12) + 1}) {}

void ReceiveEnd::Open(uint64_t peer_token, const KvTarget& target,
                      std::function<void(absl::StatusOr<uint64_t>)> done) {
  auto peer = peers_.find(peer_token);
  if (peer == peers_.end()) {
    return done(absl::UnauthenticatedError("peer_token is not known: say Hello first"));
  }
  peer->second.last_used = clock_->Now();
  peer->second.used = true;
  Step(ReceiveSessions::Open{Ask([done = std::move(done)](ReceiveSessions::Effect& e) {
                               done(std::get<ReceiveSessions::Opened>(e).session);
                             }),
                             peer_token, target});
}

void ReceiveEnd::Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
                        std::function<void(absl::StatusOr<KvTarget>)> done) {
  Step(ReceiveSessions::Commit{Ask([done = std::move(done)](ReceiveSessions::Effect& e) {
                                 done(std::move(std::get<ReceiveSessions::CommitDone>(e).target));
                               }),
                               peer_token, session, digest, wait});
}

void ReceiveEnd::Cancel(const AttemptKey& key) { Step(ReceiveSessions::Cancel{key}); }

std::vector<uint64_t> ReceiveEnd::Renew(uint64_t peer_token, std::vector<uint64_t> sessions) {
  if (auto peer = peers_.find(peer_token); peer != peers_.end()) {
    peer->second.last_used = clock_->Now();
  }
  std::vector<uint64_t> lost;
  Step(ReceiveSessions::Renew{Ask([&lost](ReceiveSessions::Effect& e) {
                                lost = std::move(std::get<ReceiveSessions::Renewed>(e).lost);
                              }),
                              peer_token, std::move(sessions)});
  return lost;
}

uint64_t ReceiveEnd::Ask(std::function<void(ReceiveSessions::Effect&)> answer) {
  asked_[++last_op_] = std::move(answer);
  return last_op_;
}

void ReceiveEnd::Step(const ReceiveSessions::Event& event, absl::Time now) {
  ReceiveSessions::Effects effects = sessions_.Step(event, now);
  // Who hears of blocks may read or write them at once: our stores to them come first.
  if (!effects.empty()) FenceStores();
  for (ReceiveSessions::Effect& effect : effects) {
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

absl::StatusOr<KvHelloAnswer> ReceiveEnd::Hello(const KvHello& hello) {
  RETURN_IF_ERROR(CheckHello(hello));
  uint64_t given_up = 0;
  for (auto& [token, peer] : peers_) {
    const KvHello& known = peer.hello;
    if (peer.lost || known.ucx_address != hello.ucx_address ||
        known.incarnation != hello.incarnation) {
      continue;
    }
    if (!peer.used && known.host_id == hello.host_id && known.lanes == hello.lanes) {
      peer.last_used = clock_->Now();
      return peer.answer;
    }
    given_up = token;
  }
  RETURN_IF_ERROR(MakeRoom());
  KvHelloAnswer answer;
  answer.incarnation = options_.incarnation;
  do {
    answer.peer_token = random_();
  } while (answer.peer_token == 0 || peers_.contains(answer.peer_token));
  const uint64_t token = answer.peer_token;
  auto lane =
      connect_(hello, &answer, [this, token](const absl::Status& why) { Lose(token, why); });
  RETURN_IF_ERROR(lane.status());
  // It has given up the lane that it had, whatever we know of it: it counts its ring from the start
  // again, and what is still under way of the old one must not be taken for the new one's.
  Lose(given_up, absl::UnavailableError("it introduces itself anew"));
  if (options_.log != nullptr) {
    options_.log->Info("KV peer introduced", {{"peer", hello.peer_name},
                                              {"lane", answer.lane},
                                              {"ucx", (*lane)->Describe()},
                                              {"ring_bytes", answer.ring_bytes}});
  }
  peers_[token] = Peer{hello, answer, *std::move(lane), clock_->Now()};
  return answer;
}

absl::Status ReceiveEnd::CheckHello(const KvHello& hello) const {
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
absl::Status ReceiveEnd::MakeRoom() {
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
void ReceiveEnd::Lose(uint64_t token, const absl::Status& why) {
  auto it = peers_.find(token);
  if (it == peers_.end() || it->second.lost) return;
  it->second.lost = true;
  some_lost_ = true;
  if (options_.log == nullptr) return;
  // Who goes while nothing is received has most likely ended as it should.
  options_.log->Log(sessions_.HasSessionOf(token) ? LogLevel::kWarning : LogLevel::kInfo,
                    "KV peer lost",
                    {{"peer", it->second.hello.peer_name}, {"why", why.ToString()}});
}

void ReceiveEnd::OnFrame(std::span<const std::byte> header, std::span<const std::byte> payload) {
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
  if (peer == peers_.end() || peer->second.lost || frame->header.block_bytes != block_bytes) {
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

void ReceiveEnd::StoreBlocks(const Frame& frame, std::span<const std::byte> bytes, size_t stride) {
  const size_t block_bytes = kv_->layout().BlockBytes();
  const FrameHeader& h = frame.header;
  const absl::Time now = clock_->Now();
  bool stale = false;
  for (size_t i = 0; i < frame.entries.size(); ++i) {
    const FrameEntry& e = frame.entries[i];
    const std::optional<BlockId> to =
        sessions_.Expects(h.peer_token, h.session, h.layer, e.index, e.generation);
    if (!to) {
      stale = true;
      continue;
    }
    std::byte* const block = kv_->Block(static_cast<int>(h.layer), to->value());
    // The hash is of what is stored, not of what lies in the ring: the peer can still write there.
    const std::byte* const next = &bytes[std::min(i + 1, frame.entries.size() - 1) * stride];
    const uint64_t actual = copier_.Copy(block, &bytes[i * stride], block_bytes, next);
    ++stats_.blocks;
    stats_.bytes += block_bytes;
    if (actual != e.checksum) ++stats_.corrupt_blocks;
    if (kv_->device() != nullptr) {
      kv_->device()->Checksums(static_cast<int>(h.layer))[to->value()] = e.checksum;
    }
    Step(ReceiveSessions::Block{h.peer_token, h.session, h.layer, e.index, e.generation, e.checksum,
                                actual},
         now);
  }
  if (stale) ++stats_.stale_frames;
}

void ReceiveEnd::Work() {
  for (auto& [token, peer] : peers_) {
    if (!peer.closed) peer.lane->SendCredit();
  }
  Step(ReceiveSessions::Tick{});
  if (some_lost_) BuryLost();
}

void ReceiveEnd::BuryLost() {
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

void ReceiveEnd::Shutdown() {
  Step(ReceiveSessions::Shutdown{});
  for (auto& [token, peer] : peers_) peer.lane->Close();
}

KvReceiverStats ReceiveEnd::stats() const {
  KvReceiverStats stats = stats_;
  stats.sessions = sessions_.sessions();
  stats.peers = static_cast<int>(peers_.size());
  stats.tombstones = sessions_.tombstones();
  return stats;
}

}  // namespace switchyard

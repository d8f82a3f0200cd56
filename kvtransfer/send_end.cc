#include "kvtransfer/send_end.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace switchyard {
namespace {

constexpr size_t kPeersMax = 1024;

}  // namespace

SendEnd::SendEnd(const KvSenderOptions& options, KvStorage* kv, const Clock* clock, Connect connect)
    : options_(options),
      kv_(kv),
      clock_(clock),
      connect_(std::move(connect)),
      sessions_({.layers = kv->layout().layers,
                 .block_bytes = kv->layout().BlockBytes(),
                 .stall = options.stall}) {}

void SendEnd::Disconnect(uint64_t peer_token) {
  Step(SendSessions::PeerGone{peer_token, "the peer was disconnected"});
  peers_.erase(peer_token);
}

void SendEnd::Prepare(const AttemptKey& key, int blocks_total, Done done) {
  done_[++last_op_] = std::move(done);
  Step(SendSessions::Prepare{last_op_, key, blocks_total});
}

void SendEnd::Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
                    const std::vector<uint32_t>& generations) {
  auto peer = peers_.find(peer_token);
  if (peer == peers_.end() || !peer->second.error.ok()) {
    return Fail(key, peer == peers_.end() ? absl::UnavailableError("the peer is not connected")
                                          : peer->second.error);
  }
  Step(SendSessions::Begin{key, peer_token, session, generations});
}

void SendEnd::Push(const AttemptKey& key, int layer, int first_block, std::vector<BlockId> blocks) {
  for (BlockId b : blocks) SY_CHECK(b.value() >= 0 && b.value() < kv_->blocks());
  Step(SendSessions::Push{key, layer, first_block, std::move(blocks)});
}

void SendEnd::Fail(const AttemptKey& key, const absl::Status& why) {
  Step(SendSessions::Fail{key, why});
}

void SendEnd::Step(const SendSessions::Event& event) {
  for (SendSessions::Effect& effect : sessions_.Step(event, clock_->Now())) {
    if (auto* stalled = std::get_if<SendSessions::PeerStalled>(&effect)) {
      Lose(stalled->peer_token, absl::UnavailableError(stalled->why));
      continue;
    }
    auto& ended = std::get<SendSessions::Done>(effect);
    auto it = done_.find(ended.op);
    SY_CHECK(it != done_.end());
    auto done = std::move(it->second);
    done_.erase(it);
    if (ended.result.ok()) {
      auto peer = peers_.find(ended.peer_token);
      if (peer != peers_.end() && peer->second.lane != nullptr) {
        ended.result->lane = peer->second.lane->name();
      }
    }
    done(std::move(ended.result));
  }
}

void SendEnd::AddPeer(const KvHelloAnswer& answer) {
  const uint64_t token = answer.peer_token;
  if (peers_.contains(token) || peers_.size() >= kPeersMax) return;
  Peer& peer = peers_[token];
  auto lane = connect_(
      answer,
      {.block_bytes = kv_->layout().BlockBytes(),
       .frame_bytes_max = options_.frame_bytes_max,
       .in_flight_bytes_max = options_.in_flight_bytes_max},
      [this, token](uint64_t transfer, size_t blocks, absl::Status status) {
        if (!status.ok()) return Lose(token, std::move(status));
        Step(SendSessions::Sent{transfer, blocks});
      },
      [this, token](absl::Status why) { Lose(token, std::move(why)); });
  if (lane.ok()) {
    peer.lane = *std::move(lane);
  } else {
    peer.error = absl::UnavailableError(std::string(lane.status().message()));
  }
  if (options_.log == nullptr) return;
  if (peer.lane != nullptr) {
    options_.log->Info("KV peer connected",
                       {{"lane", answer.lane}, {"ucx", peer.lane->Describe()}});
  } else {
    options_.log->Error("KV peer not connected",
                        {{"lane", answer.lane}, {"why", peer.error.ToString()}});
  }
}

// May be called inside a lane: the endpoint is closed, and the transfers end, in Work().
void SendEnd::Lose(uint64_t token, const absl::Status& why) {
  auto it = peers_.find(token);
  if (it == peers_.end() || !it->second.error.ok()) return;
  it->second.error = absl::UnavailableError(std::string(why.message()));
  some_lost_ = true;
  if (options_.log == nullptr) return;
  // Who goes while nothing is sent has most likely ended as it should.
  const auto& lane = it->second.lane;
  const bool amid = (lane != nullptr && lane->in_flight()) || sessions_.HasWork(token);
  options_.log->Log(amid ? LogLevel::kWarning : LogLevel::kInfo, "KV peer lost",
                    {{"why", why.ToString()}});
}

void SendEnd::OnCredit(std::span<const std::byte> message) {
  absl::StatusOr<Credit> credit = ParseCredit(message);
  if (!credit.ok()) return;  // the next one, or the stall deadline, makes up for it
  auto peer = peers_.find(credit->peer_token);
  if (peer == peers_.end() || !peer->second.error.ok()) return;
  if (absl::Status s = peer->second.lane->OnCredit(*credit); !s.ok()) {
    Lose(credit->peer_token, s);
  }
}

bool SendEnd::Work() {
  bool busy = false;
  for (auto& [token, peer] : peers_) {
    if (peer.error.ok()) busy |= SendSome(token, peer.lane.get());
  }
  Step(SendSessions::Tick{});
  if (std::exchange(some_lost_, false)) {
    for (auto& [token, peer] : peers_) {
      if (peer.error.ok() || std::exchange(peer.closed, true)) continue;
      if (peer.lane != nullptr) peer.lane->Close(/*flush=*/false);
      Step(SendSessions::PeerGone{token, std::string(peer.error.message())});
      peer.lane.reset();  // its ring is mapped here
    }
  }
  return busy;
}

// A few frames per turn, so that no peer waits long for another, and credits are heard.
bool SendEnd::SendSome(uint64_t token, SendLane* lane) {
  constexpr int kFramesPerTurn = 4;
  for (int i = 0; i < kFramesPerTurn; ++i) {
    if (!lane->HasRoom()) return i > 0;
    std::optional<SendFrame> frame = sessions_.NextFrame(token, lane->frame_blocks_max());
    if (!frame) return i > 0;
    std::shared_ptr<SendLane::Staged> staged = lane->Stage(&*frame, *kv_);
    Step(SendSessions::Staged{&*frame});
    lane->Post(std::move(staged));
  }
  return true;
}

bool SendEnd::busy() const {
  for (const auto& [token, peer] : peers_) {
    if (peer.error.ok() && (peer.lane->in_flight() || sessions_.HasWork(token))) return true;
  }
  return false;
}

void SendEnd::Shutdown() {
  Step(SendSessions::Shutdown{});
  for (auto& [token, peer] : peers_) {
    // What has been reported as sent may still be in a socket's buffer: flush. Not if something
    // is stuck: nobody waits for it any more.
    if (peer.error.ok()) peer.lane->Close(/*flush=*/!peer.lane->in_flight());
  }
}

}  // namespace switchyard

// The prefill rank's end: feeds SendSessions from the callers' messages and the lanes.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "kvtransfer/io_loop.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/send_session.h"
#include "kvtransfer/transport.h"

namespace switchyard {
namespace {

constexpr size_t kPeersMax = 1024;

class Sender final : public KvSender {
 public:
  Sender(const KvSenderOptions& options, KvStorage* kv, const Clock* clock,
         TransportWorkers workers)
      : options_(options),
        kv_(kv),
        clock_(clock),
        workers_(std::move(workers)),
        sessions_({.layers = kv->layout().layers,
                   .block_bytes = kv->layout().BlockBytes(),
                   .stall = options.stall}) {
    hello_.layout_id = kv->layout().LayoutId();
    hello_.host_id = HostId();
    hello_.lanes = options.lanes;
    hello_.ucx_address = workers_.tcp->address();
  }

  absl::Status Start() {
    RETURN_IF_ERROR(
        workers_.tcp->SetAmHandler(kCreditAm, [this](auto header, auto) { OnCredit(header); }));
    ASSIGN_OR_RETURN(loop_,
                     IoLoop::Start(workers_.tcp.get(), clock_,
                                   {.work = [this](absl::Time) { return Work(); },
                                    .wake_at = [this](absl::Time now) { return WakeAt(now); },
                                    .stop = [this] { Stop(); }}));
    return absl::OkStatus();
  }

  KvHello MakeHello() const override { return hello_; }

  void Connect(const KvHelloAnswer& answer) override {
    // Lost in a full mailbox, it shows as an unknown peer at the first Begin.
    (void)loop_->Post([this, answer] { AddPeer(answer); });
  }

  void Disconnect(uint64_t peer_token) override {
    (void)loop_->Post([this, peer_token] {
      Step(SendSessions::PeerGone{peer_token, "the peer was disconnected"});
      peers_.erase(peer_token);
    });
  }

  void Prepare(const AttemptKey& key, int blocks_total,
               std::function<void(absl::StatusOr<KvSendResult>)> done) override {
    auto prepare = [this, key, blocks_total, done] {
      done_[++last_op_] = done;
      Step(SendSessions::Prepare{last_op_, key, blocks_total});
    };
    if (!loop_->Post(std::move(prepare))) done(Full());
  }

  void Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
             std::vector<uint32_t> generations) override {
    PostFor(key, [=, this] {
      auto peer = peers_.find(peer_token);
      if (peer == peers_.end() || !peer->second.error.ok()) {
        return Step(SendSessions::Fail{
            key, peer == peers_.end() ? absl::UnavailableError("the peer is not connected")
                                      : peer->second.error});
      }
      Step(SendSessions::Begin{key, peer_token, session, generations});
    });
  }

  void Push(const AttemptKey& key, int layer, int first_block,
            std::vector<BlockId> blocks) override {
    PostFor(key, [this, key, layer, first_block, blocks = std::move(blocks)] {
      for (BlockId b : blocks) SY_CHECK(b.value() >= 0 && b.value() < kv_->blocks());
      Step(SendSessions::Push{key, layer, first_block, blocks});
    });
  }

  void Cancel(const AttemptKey& key) override {
    PostFor(key, [this, key] {
      Step(SendSessions::Fail{key, absl::CancelledError("the transfer was cancelled")});
    });
  }

 private:
  struct Peer {
    std::shared_ptr<SendLane> lane;  // null: could not connect
    absl::Status error;              // not OK: lost
    bool closed = false;
  };

  static absl::Status Full() {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV sender: mailbox is full or closed, limit ", IoLoop::kMessagesMax));
  }

  // A message of a transfer that cannot be posted ends the transfer: it would never complete.
  void PostFor(const AttemptKey& key, IoLoop::Message message) {
    if (loop_->Post(std::move(message))) return;
    MutexLock lock(unposted_mu_);
    unposted_.insert(key);
  }

  void Step(const SendSessions::Event& event) {
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
        if (peer != peers_.end()) ended.result->lane = peer->second.lane->name();
      }
      done(std::move(ended.result));
    }
  }

  void AddPeer(const KvHelloAnswer& answer) {
    const uint64_t token = answer.peer_token;
    if (peers_.contains(token) || peers_.size() >= kPeersMax) return;
    Peer& peer = peers_[token];
    auto lane = SendLane::Connect(
        workers_, answer,
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
                         {{"lane", answer.lane}, {"ucx", peer.lane->DescribeLanes()}});
    } else {
      options_.log->Error("KV peer not connected",
                          {{"lane", answer.lane}, {"why", peer.error.ToString()}});
    }
  }

  // May be called inside UCX: the endpoint is closed, and the transfers end, in Work().
  void Lose(uint64_t token, absl::Status why) {
    auto it = peers_.find(token);
    if (it == peers_.end() || !it->second.error.ok()) return;
    it->second.error = absl::UnavailableError(std::string(why.message()));
    some_lost_ = true;
    if (options_.log != nullptr) {
      options_.log->Warning("KV peer lost", {{"why", why.ToString()}});
    }
  }

  void OnCredit(std::span<const std::byte> header) {
    absl::StatusOr<Credit> credit = ParseCredit(header);
    if (!credit.ok()) return;  // the next one, or the stall deadline, makes up for it
    auto peer = peers_.find(credit->peer_token);
    if (peer == peers_.end() || !peer->second.error.ok()) return;
    if (absl::Status s = peer->second.lane->OnCredit(*credit); !s.ok()) {
      Lose(credit->peer_token, s);
    }
  }

  bool Work() {
    FailUnposted();
    // Nothing is ever sent by posix, but closing its endpoints takes progress.
    if (workers_.posix != nullptr && workers_.posix->closing() > 0) workers_.posix->Progress();
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
      }
    }
    return busy;
  }

  // A few frames per turn, so that no peer waits long for another, and credits are heard.
  bool SendSome(uint64_t token, SendLane* lane) {
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

  void FailUnposted() {
    std::set<AttemptKey> keys;
    {
      MutexLock lock(unposted_mu_);
      keys.swap(unposted_);
    }
    for (const AttemptKey& key : keys) Step(SendSessions::Fail{key, Full()});
  }

  absl::Time WakeAt(absl::Time now) {
    // UCX wakes us for credits, completions and errors; the bound is for what it may forget.
    for (const auto& [token, peer] : peers_) {
      if (peer.error.ok() && (peer.lane->in_flight() || sessions_.HasWork(token))) {
        return std::min(sessions_.next_check(), now + absl::Milliseconds(100));
      }
    }
    return sessions_.next_check();
  }

  void Stop() {
    Step(SendSessions::Shutdown{});
    for (auto& [token, peer] : peers_) {
      // What has been reported as sent may still be in a socket's buffer: flush. Not if something
      // is stuck: nobody waits for it any more.
      if (peer.error.ok()) peer.lane->Close(/*flush=*/!peer.lane->in_flight());
    }
  }

  const KvSenderOptions options_;
  KvStorage* const kv_;
  const Clock* const clock_;
  TransportWorkers workers_;
  SendSessions sessions_;
  KvHello hello_;
  absl::flat_hash_map<uint64_t, Peer> peers_;  // by peer_token
  bool some_lost_ = false;
  absl::flat_hash_map<uint64_t, std::function<void(absl::StatusOr<KvSendResult>)>> done_;  // by op
  uint64_t last_op_ = 0;
  Mutex unposted_mu_;
  std::set<AttemptKey> unposted_ ABSL_GUARDED_BY(unposted_mu_);
  std::unique_ptr<IoLoop> loop_;  // last: its thread uses all of the above
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvSender>> KvSender::Create(const KvSenderOptions& options,
                                                           KvStorage* kv, const Clock* clock) {
  if (options.stall <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("stall is ", absl::FormatDuration(options.stall), ", must be above 0"));
  }
  ASSIGN_OR_RETURN(TransportWorkers workers,
                   TransportWorkers::Create(options.lanes, options.net_devices));
  auto sender = std::make_unique<Sender>(options, kv, clock, std::move(workers));
  RETURN_IF_ERROR(sender->Start());
  return sender;
}

}  // namespace switchyard

// kvtransfer/receive_end.h: the decode rank's end of the KV transfer without its I/O: which peers
// have been introduced, what their frames bring, and the sessions (receive_session.h). Owned by one
// thread; callbacks are called within its methods.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/lane.h"
#include "kvtransfer/receive_session.h"

namespace switchyard {

class ReceiveEnd {
 public:
  // Opens a lane for the peer that says `hello`, and fills in the answer but for its peer_token and
  // incarnation, which are set. `on_error` may be called until the lane is destroyed.
  using Connect = std::function<absl::StatusOr<std::unique_ptr<ReceiveLane>>(
      const KvHello& hello, KvHelloAnswer* answer, OnLaneError on_error)>;

  // `random`: 64 bits each, for tokens that nobody guesses or repeats. `kv` and `clock` must
  // outlive it.
  ReceiveEnd(const KvReceiverOptions& options, KvStorage* kv, const Clock* clock, Connect connect,
             std::function<uint64_t()> random, KvReceiver::OnDropped on_dropped);

  // As KvReceiver's; `done` is called at once, but for a Commit that waits.
  absl::StatusOr<KvHelloAnswer> Hello(const KvHello& hello);
  void Open(uint64_t peer_token, const KvTarget& target,
            std::function<void(absl::StatusOr<uint64_t>)> done);
  void Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
              std::function<void(absl::StatusOr<KvTarget>)> done);
  void Cancel(const AttemptKey& key);
  std::vector<uint64_t> Renew(uint64_t peer_token, std::vector<uint64_t> sessions);

  // A frame that came by a lane, from anyone: nothing in it is believed.
  void OnFrame(std::span<const std::byte> header, std::span<const std::byte> payload);
  // After frames, and at next_check() at the latest: credits, leases, lost peers.
  void Work();
  absl::Time next_check() const { return sessions_.next_check(); }
  // Drops all sessions and closes the lanes. Nothing else may be called after.
  void Shutdown();
  KvReceiverStats stats() const;

 private:
  struct Peer {
    KvHello hello;
    KvHelloAnswer answer;
    std::unique_ptr<ReceiveLane> lane;
    absl::Time last_used;
    bool used = false, lost = false, closed = false;
  };

  uint64_t Ask(std::function<void(ReceiveSessions::Effect&)> answer);
  void Step(const ReceiveSessions::Event& event) { Step(event, clock_->Now()); }
  void Step(const ReceiveSessions::Event& event, absl::Time now);
  absl::Status CheckHello(const KvHello& hello) const;
  absl::Status MakeRoom();
  void Lose(uint64_t token, const absl::Status& why);
  void StoreBlocks(const Frame& frame, std::span<const std::byte> bytes, size_t stride);
  void BuryLost();

  const KvReceiverOptions options_;
  KvStorage* const kv_;
  const Clock* const clock_;
  const Connect connect_;
  const std::function<uint64_t()> random_;
  const KvReceiver::OnDropped on_dropped_;
  ReceiveSessions sessions_;
  std::map<uint64_t, Peer> peers_;  // by peer_token
  bool some_lost_ = false;
  absl::flat_hash_map<uint64_t, std::function<void(ReceiveSessions::Effect&)>> asked_;  // by op
  uint64_t last_op_ = 0;
  BlockCopier copier_;
  KvReceiverStats stats_;
};

}  // namespace switchyard

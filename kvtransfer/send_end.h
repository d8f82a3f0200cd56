// kvtransfer/send_end.h: the prefill rank's end of the KV transfer without its I/O: the peers that
// it knows, their lanes, and the transfers (send_session.h). Owned by one thread; callbacks are
// called within its methods.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/lane.h"
#include "kvtransfer/send_session.h"

namespace switchyard {

class SendEnd {
 public:
  // Opens the lane that a receiver's answer describes. `on_error` may be called until the lane is
  // destroyed, also inside the lane's own methods.
  using Connect = std::function<absl::StatusOr<std::shared_ptr<SendLane>>(
      const KvHelloAnswer& answer, const SendLane::Options& options, SendLane::OnSent on_sent,
      OnLaneError on_error)>;
  using Done = std::function<void(absl::StatusOr<KvSendResult>)>;

  // `kv` and `clock` must outlive it.
  SendEnd(const KvSenderOptions& options, KvStorage* kv, const Clock* clock, Connect connect);

  // As KvSender's.
  void AddPeer(const KvHelloAnswer& answer);
  void Disconnect(uint64_t peer_token);
  void Prepare(const AttemptKey& key, int blocks_total, Done done);
  void Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
             const std::vector<uint32_t>& generations);
  void Push(const AttemptKey& key, int layer, int first_block, std::vector<BlockId> blocks);
  void Fail(const AttemptKey& key, const absl::Status& why);

  // A credit message, from anyone.
  void OnCredit(std::span<const std::byte> message);
  // Sends what can go, notices stalls and lost peers. True: there is more to do at once.
  bool Work();
  // Nothing happens by itself before this; InfiniteFuture: wait for messages and credits.
  absl::Time next_check() const { return sessions_.next_check(); }
  // Something is on its way, or could be: its end comes as a callback of a lane.
  bool busy() const;
  // Ends all transfers and closes the lanes. Nothing else may be called after.
  void Shutdown();

 private:
  struct Peer {
    std::shared_ptr<SendLane> lane;  // null: could not connect, or is lost and closed
    absl::Status error;              // not OK: lost
    bool closed = false;
  };

  void Step(const SendSessions::Event& event);
  void Lose(uint64_t token, const absl::Status& why);
  bool SendSome(uint64_t token, SendLane* lane);

  const KvSenderOptions options_;
  KvStorage* const kv_;
  const Clock* const clock_;
  const Connect connect_;
  SendSessions sessions_;
  std::map<uint64_t, Peer> peers_;  // by peer_token
  bool some_lost_ = false;
  absl::flat_hash_map<uint64_t, Done> done_;  // by op
  uint64_t last_op_ = 0;
};

}  // namespace switchyard

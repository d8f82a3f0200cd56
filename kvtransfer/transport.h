// kvtransfer/transport.h: the lanes of lane.h by UCX: frames, doorbells and credits in a TCP
// context, ring segments in a posix one (mapped by ucp_rkey_ptr), because the posix lane's own
// wake-ups get lost. All of it belongs to the I/O thread of its end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/ucx.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/lane.h"

namespace switchyard {

// Equal for two processes that can map each other's memory: one boot of one kernel, one pid
// namespace (UCX opens /proc/<pid>/fd) and one user. Empty if that can't be told: equal to none.
std::string HostId();

// The TCP worker, and the posix one where this end has the shm lane.
struct TransportWorkers {
  std::unique_ptr<UcxContext> tcp_context, posix_context;
  std::unique_ptr<UcxWorker> tcp, posix;
  // kUnavailable if UCX lacks one of `lanes` here; kInvalidArgument for an unknown or empty list.
  static absl::StatusOr<TransportWorkers> Create(const std::vector<std::string>& lanes,
                                                 const std::string& net_devices);
};

// The way to the receiver that gave `answer`. kUnavailable: the ring can't be mapped;
// kInvalidArgument: the answer makes no sense.
absl::StatusOr<std::shared_ptr<SendLane>> ConnectSendLane(const TransportWorkers& workers,
                                                          const KvHelloAnswer& answer,
                                                          const SendLane::Options& options,
                                                          SendLane::OnSent on_sent,
                                                          OnLaneError on_error);

// Picks the first offered lane that is allowed and possible, makes the ring if it is shm, and opens
// the way back. Fills in the answer's lane, addresses and ring; its peer_token must be set.
// kFailedPrecondition names both lists if no lane fits.
absl::StatusOr<std::unique_ptr<ReceiveLane>> ConnectReceiveLane(
    const TransportWorkers& workers, const KvHello& hello, const KvReceiverOptions& options,
    size_t block_bytes, KvHelloAnswer* answer, OnLaneError on_error);

}  // namespace switchyard

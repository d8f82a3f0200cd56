// kvtransfer/transport.h: the lanes of lane.h by UCX: frames, doorbells and credits in a TCP
// context, ring segments in a posix one (mapped by ucp_rkey_ptr), because the posix lane's own
// wake-ups get lost. All of it belongs to the I/O thread of its end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/lanes.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/lane.h"

namespace switchyard {

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

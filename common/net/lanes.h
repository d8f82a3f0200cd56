// common/net/lanes.h: what the two lanes between processes need on each side: which processes share
// memory, and the UCX workers of each lane.
//   tcp: active messages carry the bytes.
//   shm: bytes are stored into the peer's memory (ucx.h, UcxMapping); active messages over TCP ring
//        the bell, because stores wake nobody and the posix lane's own wake-ups get lost.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/ucx.h"

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

}  // namespace switchyard

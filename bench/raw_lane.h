// bench/raw_lane.h: what a lane can do at best, measured with nothing of ours on it: two processes
// exchange bytes through two rings in shared memory, or over one loopback TCP connection. Both send
// and receive at once, as the ranks of a dispatch do.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

struct RawLane {
  double alpha_seconds = 0;     // one way of a message of 64 bytes, half of a round trip
  double beta_bytes_per_s = 0;  // each way, while the other way is as busy
};

// lane: "shm" or "tcp". Forks; to be called before the process has threads. Takes about a second.
absl::StatusOr<RawLane> MeasureRawLane(const std::string& lane);

}  // namespace switchyard

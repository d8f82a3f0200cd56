// common/cuda/communicator.h: blocks of bytes between the devices of several processes, on streams.
// nccl_communicator.cc implements it by NCCL (only under --config=cuda), host_communicator.cc by
// the host's memory between threads of one process, for tests.
//
// Nothing here waits. What takes others to come is begun, and Ready() says when it has been taken
// up; whoever owns the communicator bounds that wait, looks meanwhile whether the others live, and
// destroys the communicator if they do not: that also ends what its device waits for. Other ranks
// need not notice: they must hear of it another way (moe/ep_group.h).
//
// Threads: one at a time.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cuda/device.h"

struct ncclComm;

namespace switchyard::cuda {

// What a rank says of itself before they join.
struct CommunicatorFacts {
  std::array<char, 16> device = {};  // no other device has it: two ranks of one cannot join
  int library = 0;                   // version: must be the same
};
absl::StatusOr<CommunicatorFacts> ReadCommunicatorFacts(int device_index);

// Names a communicator to be. One rank makes it and tells the others; its process must live until
// all have joined.
using CommunicatorId = std::array<char, 128>;
absl::StatusOr<CommunicatorId> MakeCommunicatorId();

class Communicator {
 public:
  struct Block {
    int rank = 0;  // to or from which: never this one
    std::byte* data = nullptr;
    size_t bytes = 0;  // at least 1, and the same at both ends
  };

  Communicator() = default;
  // Begins to join as `rank` of `ranks`, 2 at least, with the calling thread's device. Not Ready()
  // before all have come. Moving bytes takes at most `ctas` multiprocessors of a device, the same
  // on all ranks; 0: as many as the library likes.
  static absl::StatusOr<Communicator> Join(const CommunicatorId& id, int rank, int ranks, int ctas);
  Communicator(Communicator&& other) noexcept : comm_(std::exchange(other.comm_, nullptr)) {}
  Communicator& operator=(Communicator&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  // Aborts what is under way: streams go on, the bytes of their blocks are undefined.
  ~Communicator();
  explicit operator bool() const { return comm_ != nullptr; }

  // All blocks of one exchange: at most one to and one from each rank. Each pair of ranks calls in
  // the same order, one that has no block with anybody need not call. Runs on `stream`, to which
  // nothing may be given until Ready().
  absl::Status Exchange(std::span<const Block> to, std::span<const Block> from,
                        const OwnedStream& stream);
  // Whether Join or the last Exchange has been taken up; only then the next may begin. Not OK once
  // anything has failed, also on the device; it stays so.
  absl::StatusOr<bool> Ready();

 private:
  ncclComm* comm_ = nullptr;
};

}  // namespace switchyard::cuda

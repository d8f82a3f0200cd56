// model/cuda/direct_lane.h: the rows of a group from device to device, for one epoch at a time: by
// a library (communicator.h), or into each other's memory (peer_lane.h). What goes where, and how
// much, ranks know from the plans (moe/ep_route.h), which go through the host: nothing about rows
// is ever asked of a device. Every wait is the group's: bounded, and over as soon as a rank is
// lost. Owned by the engine thread.
#pragma once

#include <string>
#include <vector>

#include "common/cuda/communicator.h"
#include "common/cuda/device.h"
#include "model/cuda/lane_choice.h"
#include "model/cuda/peer_lane.h"
#include "moe/ep_dispatcher.h"
#include "moe/ep_route.h"

namespace switchyard::cuda {

// Of the memory that each other rank may write without being asked, twice for each of them: what a
// decode step brings from one rank, 128 tokens of 7,168 numbers, is less. At least a row.
inline constexpr size_t kPeerSlotBytes = size_t{4} << 20;

class DirectLane {
 public:
  // To be called in each step before all else; does something in the first of each epoch, when all
  // ranks decide whether rows go by this lane (direct()), and join. The dispatcher and its group
  // must live until the next Begin, or End. `slot_bytes`: PeerWindow's, the same on all ranks.
  // Errors: kUnavailable if a rank is lost or does not join: the epoch is over;
  // kFailedPrecondition if DeviceLane::kDirect or kPeer is asked for and cannot be.
  absl::Status Begin(EpDispatcher& dispatcher, int device_index,
                     size_t slot_bytes = kPeerSlotBytes);
  bool direct() const { return direct_; }

  // Block r of `from` goes to rank r, block r of `to` comes from it; blocks are rows of `row_bytes`
  // each. All is given to `stream` when it returns. Collective. kUnavailable: as Begin.
  absl::Status Exchange(const std::byte* from, const BlockFirsts& from_first, std::byte* to,
                        const BlockFirsts& to_first, size_t row_bytes, const OwnedStream& stream);
  // Waits until what `event` recorded is done, which other ranks may have a part in. kUnavailable:
  // as Begin; kInternal if the device has failed.
  absl::Status Await(const Event& event);
  // Nothing goes by this lane until the next epoch. What streams still wait for ends.
  void End();

 private:
  LaneOffer Offer();
  absl::Status Join(const LaneChoice& choice);
  // Opens the windows of all: why not, in words, if one rank could not; empty: all have.
  absl::StatusOr<std::string> OpenPeers(size_t slot_bytes);
  absl::Status WaitFor(FunctionRef<absl::StatusOr<bool>()> done, const char* what,
                       absl::Duration wait_max);
  absl::Status Fail(const absl::Status& why);

  EpDispatcher* dispatcher_ = nullptr;  // of the epoch
  uint64_t epoch_ = 0;
  int device_index_ = 0;
  bool direct_ = false;
  LaneHistory history_;
  std::vector<int> number_;    // [N] each rank's in the communicator
  Communicator communicator_;  // none where this rank is alone
  std::vector<Communicator::Block> sends_, receives_;
  bool by_peers_ = false;
  PeerLane peers_;
};

}  // namespace switchyard::cuda

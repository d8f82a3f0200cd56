// model/cuda/peer_lane.h: blocks of rows into the memory of the other ranks' devices, for one epoch
// at a time: no library, and the host has no part in it between launch and result
// (kernels/cuda/peer.h). Devices of one machine, or one device.
//
// A rank's window is memory of its device that all others have opened:
//
//   this rank's own words │ flags [N][2] │ slots [N][2]      source, parity
//
// An exchange with a rank is cut into pieces of a slot; a pair of ranks counts its pieces alike,
// and piece i goes to the slot and the flag of parity i % 2, with a word of (epoch, i, bytes). Both
// ends send piece i, also an empty one, and then wait for the other's. So nobody asks whether a
// slot is free: who sends piece i + 2 has received piece i + 1, which the other sent after it had
// taken piece i from its slot.
//
// The window stays when an epoch ends: a rank that was cut off in the middle of its rows writes
// what nobody reads, as words of other epochs are other words. Owned by the engine thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/cuda/peer_memory.h"
#include "kernels/cuda/peer.h"
#include "moe/ep_route.h"

namespace switchyard::cuda {

// Where things are in a window. Equal on all ranks.
struct PeerWindow {
  int ranks = 0;          // N
  size_t slot_bytes = 0;  // a multiple of 256

  size_t ArrivedAt() const { return 0; }
  size_t BrokenAt() const { return 1024; }
  size_t FlagAt(int source, int parity) const { return 4096 + Index(source, parity) * 128; }
  size_t SlotAt(int source, int parity) const {
    return (FlagAt(ranks, 0) + 4095) / 4096 * 4096 + Index(source, parity) * slot_bytes;
  }
  size_t bytes() const { return (SlotAt(ranks, 0) + kPeerUnit - 1) / kPeerUnit * kPeerUnit; }
  bool operator==(const PeerWindow&) const = default;

 private:
  static size_t Index(int source, int parity) {
    return static_cast<size_t>(source) * 2 + static_cast<size_t>(parity);
  }
};

class PeerLane {
 public:
  PeerLane() = default;
  PeerLane(const PeerLane&) = delete;
  PeerLane& operator=(const PeerLane&) = delete;
  ~PeerLane() { Close(); }

  // This rank's window, for an epoch that begins. Errors: the device's.
  absl::StatusOr<PeerHandle> Prepare(const PeerWindow& window);
  // Opens those of the others: windows [N], none of absent ranks and of this one. kUnavailable
  // names one that cannot be reached from here.
  absl::Status Open(int rank, uint64_t epoch, std::span<const std::optional<PeerHandle>> windows);
  // As DirectLane::Exchange, without this rank's own block. Waits end after `wait_max`; `ctas`: so
  // many multiprocessors at most, 0: as many as fill a link.
  struct Limits {
    absl::Duration wait_max;
    int ctas = 0;
  };
  absl::Status Exchange(const std::byte* from, const BlockFirsts& from_first, std::byte* to,
                        const BlockFirsts& to_first, size_t row_bytes, const Limits& limits,
                        const OwnedStream& stream);
  // kUnavailable names a rank whose rows have not come in time.
  absl::Status status() const;
  // Ends what still waits, and closes the others' windows.
  void Close();

 private:
  struct HostWords {
    uint32_t stop = 0, error = 0;
  };
  // What this rank gives rank r, and gets from it.
  struct Pair {
    std::span<std::byte> out, in;
  };
  PeerWords Words() const;
  // One piece with each rank that has any left.
  absl::Status ExchangePieces(const Limits& limits, size_t piece_bytes, const OwnedStream& stream);

  PeerWindow shape_;
  int rank_ = 0;
  uint64_t epoch_ = 0;
  DeviceBuffer window_;
  PinnedBuffer words_;             // HostWords
  std::vector<PeerMemory> peers_;  // [N] open ones
  std::vector<uint32_t> next_;     // [N] piece of the pair
  std::vector<Pair> left_;         // [N] of one exchange
  Event last_;                     // what was launched last
};

}  // namespace switchyard::cuda

// kernels/cuda/peer.h: bytes into the memory of other devices, or of other processes of this one,
// and the flags that say that they are there; and the wait for those that others write here.
//
// A flag is a word of 64 bits beside a slot. The sender stores the slot's bytes, then the flag with
// release order to the whole system; the receiver loads it with acquire order until it is the word
// that it expects, then copies the slot. Both ends count words alike, so that none is ever taken
// for another (model/cuda/peer_lane.h says when a slot may be written again).
//
// Every wait ends: when the word is there, when the host says so (`stop`), or when the limit is
// over. After that the bytes of all that follow are undefined, `error` names the rank, and later
// waits end at once. Source: PTX ISA 8, "Memory Consistency Model".
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

inline constexpr int kPeersMax = 32;  // other ranks of one call

// With one other rank: `bytes` between `data`, of this device, and `slot`, of the receiver's.
// Pointers and bytes are multiples of 16. 0 bytes: only the flag.
struct PeerBlock {
  std::byte* slot = nullptr;
  uint64_t* flag = nullptr;
  std::byte* data = nullptr;
  uint64_t bytes = 0;
  uint64_t word = 0;
  int32_t rank = 0;
};
struct PeerBlocks {
  int count = 0;
  PeerBlock at[kPeersMax];
};
// What a device keeps between calls, all on one stream. Cleared before the first.
struct PeerWords {
  uint32_t* arrived = nullptr;     // [kPeersMax] device memory, 0 between calls
  uint32_t* broken = nullptr;      // device memory: a wait has ended without its word
  const uint32_t* stop = nullptr;  // memory of the host: not 0 ends all waits
  uint32_t* error = nullptr;       // the same: 1 + the rank whose word has not come in time
};

// `ctas` blocks of 256 threads, as many for 1 byte as for all: so many multiprocessors at most.
absl::Status SendToPeers(Stream stream, const PeerBlocks& blocks, const PeerWords& words, int ctas);
absl::Status ReceiveFromPeers(Stream stream, const PeerBlocks& blocks, const PeerWords& words,
                              uint64_t wait_ns_max, int ctas);

}  // namespace switchyard::cuda

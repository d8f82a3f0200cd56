// kvtransfer/wire.h: the bytes of a KV frame and of a ring credit (docs/protocols.md has them byte
// by byte). Both are active messages: a fixed header, then a payload. Little-endian.
//
// A frame carries blocks of one layer of one session:
//   payload = count entries, then, unless kFrameInRing, count · block_bytes bytes of the blocks.
// In a ring frame the bytes lie in the peer's ring segment, at ring_position, each block padded to
// kRingAlign.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

struct XXH3_state_s;  // xxhash.h

namespace switchyard {

inline constexpr unsigned kFrameAm = 1, kCreditAm = 2;  // active message ids
inline constexpr size_t kRingAlign = 64;                // a cache line, for non-temporal stores
inline constexpr size_t kFrameHeaderBytes = 56, kFrameEntryBytes = 16, kCreditBytes = 32;
inline constexpr uint32_t kFrameBlocksMax = 65536;  // 1 MiB of entries
inline constexpr uint16_t kFrameInRing = 1;

// The ring segment starts with {u64 magic, u64 peer_token}, written before its key is handed out:
// the sender looks whose segment it has mapped. Data begin at kRingDataOffset.
inline constexpr uint64_t kRingMagic = 0x31474e49524b5953;  // "SYKRING1"
inline constexpr size_t kRingDataOffset = 4096;             // a page: data are page-aligned

// One block as it stands in a frame.
struct FrameEntry {
  uint32_t index = 0;       // of the prompt's blocks
  uint32_t generation = 0;  // that the receiver gave this block at Reserve
  uint64_t checksum = 0;    // xxh3 of the block's bytes
  friend bool operator==(const FrameEntry&, const FrameEntry&) = default;
};

struct FrameHeader {
  uint16_t flags = 0;
  uint64_t peer_token = 0, session = 0;
  uint32_t layer = 0, block_bytes = 0;
  uint64_t ring_position = 0;  // counts bytes since the ring began; 0 without kFrameInRing
};

struct Frame {
  FrameHeader header;
  std::vector<FrameEntry> entries;
  std::span<const std::byte> blocks;  // into the payload; empty for a ring frame
};

// Everything up to `ring_position` has been copied out: the sender may overwrite it.
struct Credit {
  uint64_t peer_token = 0, ring_position = 0;
};

inline size_t RingStride(size_t block_bytes) {
  return (block_bytes + kRingAlign - 1) / kRingAlign * kRingAlign;
}

// Writes the entries to the front of `payload` (which must have room) and returns the header, which
// covers itself and them with a checksum.
std::array<std::byte, kFrameHeaderBytes> EncodeFrame(const FrameHeader& header,
                                                     std::span<const FrameEntry> entries,
                                                     std::span<std::byte> payload);
// Checks magic, version, sizes (nothing beyond the spans is read) and the checksum of header and
// entries. The blocks are not checked: that is done after the copy. Errors: kInvalidArgument;
// kDataLoss if the checksum does not match. Views live as long as `payload`.
absl::StatusOr<Frame> ParseFrame(std::span<const std::byte> header,
                                 std::span<const std::byte> payload);

std::array<std::byte, kCreditBytes> EncodeCredit(const Credit& credit);
absl::StatusOr<Credit> ParseCredit(std::span<const std::byte> bytes);

uint64_t BlockChecksum(std::span<const std::byte> block);
// BlockChecksum of a block that comes in pieces. One thread's.
class BlockHasher {
 public:
  BlockHasher();
  ~BlockHasher();
  BlockHasher(const BlockHasher&) = delete;
  BlockHasher& operator=(const BlockHasher&) = delete;
  void Begin();
  void Add(std::span<const std::byte> piece);
  uint64_t End() const;

 private:
  XXH3_state_s* const state_;
};
// Commit's digest: xxh3 of all block checksums, [L][B], little-endian.
uint64_t TransferDigest(std::span<const uint64_t> checksums);

}  // namespace switchyard

#include "kvtransfer/wire.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kvtransfer/kv_transfer.h"
#include "xxhash.h"

#ifdef __x86_64__
// The library's default XXH3 is SSE2; this one picks AVX2 or AVX-512, three times as fast.
#define XXH_DISPATCH_DISABLE_REPLACE
#include "xxh_x86dispatch.h"
#endif

namespace switchyard {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");
// Entries are copied to and from the wire as they lie in memory.
static_assert(sizeof(FrameEntry) == kFrameEntryBytes && offsetof(FrameEntry, generation) == 4 &&
              offsetof(FrameEntry, checksum) == 8);

constexpr uint32_t kFrameMagic = 0x464b5953;   // "SYKF"
constexpr uint32_t kCreditMagic = 0x434b5953;  // "SYKC"

// Offsets in the frame header.
constexpr size_t kMagicAt = 0, kVersionAt = 4, kFlagsAt = 6, kPeerAt = 8, kSessionAt = 16,
                 kLayerAt = 24, kCountAt = 28, kRingAt = 32, kBlockBytesAt = 40, kReservedAt = 44,
                 kChecksumAt = 48;
static_assert(kChecksumAt + 8 == kFrameHeaderBytes);

template <typename T>
void Put(std::span<std::byte> out, size_t at, T value) {
  SY_CHECK(at + sizeof value <= out.size());
  std::memcpy(out.data() + at, &value, sizeof value);
}

template <typename T>
T Get(std::span<const std::byte> in, size_t at) {
  T value;
  SY_CHECK(at + sizeof value <= in.size());
  std::memcpy(&value, in.data() + at, sizeof value);
  return value;
}

absl::Status WrongField(const char* message, const char* field, uint64_t value, uint64_t expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(message, ": ", field, " is ", value, ", must be ", expected));
}

// The header without its checksum, then the entries.
uint64_t HeaderChecksum(std::span<const std::byte> header, std::span<const std::byte> entries) {
  return XXH3_64bits_withSeed(entries.data(), entries.size(),
                              XXH3_64bits(header.data(), kChecksumAt));
}

}  // namespace

std::array<std::byte, kFrameHeaderBytes> EncodeFrame(const FrameHeader& header,
                                                     std::span<const FrameEntry> entries,
                                                     std::span<std::byte> payload) {
  SY_CHECK(!entries.empty() && entries.size() <= kFrameBlocksMax);
  SY_CHECK(payload.size() >= entries.size_bytes());
  std::memcpy(payload.data(), entries.data(), entries.size_bytes());
  std::array<std::byte, kFrameHeaderBytes> out{};
  Put(out, kMagicAt, kFrameMagic);
  Put(out, kVersionAt, static_cast<uint16_t>(kHandoffWireVersion));
  Put(out, kFlagsAt, header.flags);
  Put(out, kPeerAt, header.peer_token);
  Put(out, kSessionAt, header.session);
  Put(out, kLayerAt, header.layer);
  Put(out, kCountAt, static_cast<uint32_t>(entries.size()));
  Put(out, kRingAt, header.ring_position);
  Put(out, kBlockBytesAt, header.block_bytes);
  Put(out, kReservedAt, uint32_t{0});
  Put(out, kChecksumAt, HeaderChecksum(out, payload.first(entries.size_bytes())));
  return out;
}

absl::StatusOr<Frame> ParseFrame(std::span<const std::byte> header,
                                 std::span<const std::byte> payload) {
  if (header.size() != kFrameHeaderBytes) {
    return WrongField("frame", "header size", header.size(), kFrameHeaderBytes);
  }
  if (auto magic = Get<uint32_t>(header, kMagicAt); magic != kFrameMagic) {
    return WrongField("frame", "magic", magic, kFrameMagic);
  }
  if (auto version = Get<uint16_t>(header, kVersionAt); version != kHandoffWireVersion) {
    return WrongField("frame", "version", version, kHandoffWireVersion);
  }
  Frame frame;
  frame.header = {.flags = Get<uint16_t>(header, kFlagsAt),
                  .peer_token = Get<uint64_t>(header, kPeerAt),
                  .session = Get<uint64_t>(header, kSessionAt),
                  .layer = Get<uint32_t>(header, kLayerAt),
                  .block_bytes = Get<uint32_t>(header, kBlockBytesAt),
                  .ring_position = Get<uint64_t>(header, kRingAt)};
  const auto count = Get<uint32_t>(header, kCountAt);
  if (frame.header.flags > kFrameInRing) return WrongField("frame", "flags", frame.header.flags, 1);
  if (auto reserved = Get<uint32_t>(header, kReservedAt); reserved != 0) {
    return WrongField("frame", "reserved", reserved, 0);
  }
  if (count == 0 || count > kFrameBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("frame: count is ", count, ", must be 1 to ", kFrameBlocksMax));
  }
  // Cannot overflow: both factors are 32 bits wide and count is below 2^17.
  const uint64_t entry_bytes = uint64_t{count} * kFrameEntryBytes;
  const bool in_ring = frame.header.flags & kFrameInRing;
  const uint64_t block_bytes = in_ring ? 0 : uint64_t{count} * frame.header.block_bytes;
  if (payload.size() != entry_bytes + block_bytes) {
    return WrongField("frame", "payload size", payload.size(), entry_bytes + block_bytes);
  }
  if (Get<uint64_t>(header, kChecksumAt) != HeaderChecksum(header, payload.first(entry_bytes))) {
    return absl::DataLossError("frame: checksum of header and entries does not match");
  }
  frame.entries.resize(count);
  std::memcpy(frame.entries.data(), payload.data(), entry_bytes);
  frame.blocks = payload.subspan(entry_bytes);
  return frame;
}

std::array<std::byte, kCreditBytes> EncodeCredit(const Credit& credit) {
  std::array<std::byte, kCreditBytes> out{};
  Put(out, 0, kCreditMagic);
  Put(out, 4, static_cast<uint32_t>(kHandoffWireVersion));
  Put(out, 8, credit.peer_token);
  Put(out, 16, credit.ring_position);
  Put(out, 24, static_cast<uint64_t>(XXH3_64bits(out.data(), 24)));
  return out;
}

absl::StatusOr<Credit> ParseCredit(std::span<const std::byte> bytes) {
  if (bytes.size() != kCreditBytes) {
    return WrongField("credit", "size", bytes.size(), kCreditBytes);
  }
  if (auto magic = Get<uint32_t>(bytes, 0); magic != kCreditMagic) {
    return WrongField("credit", "magic", magic, kCreditMagic);
  }
  if (auto version = Get<uint32_t>(bytes, 4); version != kHandoffWireVersion) {
    return WrongField("credit", "version", version, kHandoffWireVersion);
  }
  if (Get<uint64_t>(bytes, 24) != XXH3_64bits(bytes.data(), 24)) {
    return absl::DataLossError("credit: checksum does not match");
  }
  return Credit{.peer_token = Get<uint64_t>(bytes, 8), .ring_position = Get<uint64_t>(bytes, 16)};
}

uint64_t BlockChecksum(std::span<const std::byte> block) {
#ifdef __x86_64__
  return XXH3_64bits_dispatch(block.data(), block.size());
#else
  return XXH3_64bits(block.data(), block.size());
#endif
}

BlockHasher::BlockHasher() : state_(XXH3_createState()) { SY_CHECK(state_ != nullptr); }
BlockHasher::~BlockHasher() { XXH3_freeState(state_); }
void BlockHasher::Begin() { XXH3_64bits_reset(state_); }
void BlockHasher::Add(std::span<const std::byte> piece) {
#ifdef __x86_64__
  XXH3_64bits_update_dispatch(state_, piece.data(), piece.size());
#else
  XXH3_64bits_update(state_, piece.data(), piece.size());
#endif
}
uint64_t BlockHasher::End() const { return XXH3_64bits_digest(state_); }

uint64_t TransferDigest(std::span<const uint64_t> checksums) {
  return XXH3_64bits(checksums.data(), checksums.size_bytes());
}

}  // namespace switchyard

#include "kvtransfer/lane.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {

// A frame between Stage and the end of its send: what the wire reads.
struct SendLane::Staged {
  std::array<std::byte, kFrameHeaderBytes> header;
  std::vector<std::byte> payload;  // entries, then blocks (tcp)
  size_t payload_bytes = 0;
  uint64_t transfer = 0;
  size_t blocks = 0;
};

namespace {

// UCX's TCP moves 64 KiB in one piece; what is larger it puts together by one more copy.
constexpr size_t kTcpFrameBytesMax = 60 << 10;

// Copies line by line. kPast: past the cache. kFetch: between the stores, as many lines of `next`
// are fetched into it, so that neither memory's reads nor its writes wait for each other.
template <bool kPast, bool kFetch>
void CopyLines(std::byte* dst, const std::byte* src, size_t bytes, const std::byte* next) {
  size_t at = 0;
#ifdef __SSE2__
  // 16 bytes at a time fill a write-combining buffer as well as 64 do.
  const bool aligned = reinterpret_cast<uintptr_t>(dst) % 16 == 0;
  for (; aligned && at + 64 <= bytes; at += 64) {
    if constexpr (kFetch) __builtin_prefetch(next + at);
    const auto* from = reinterpret_cast<const __m128i*>(src + at);
    auto* to = reinterpret_cast<__m128i*>(dst + at);
    const __m128i line[] = {_mm_loadu_si128(from), _mm_loadu_si128(from + 1),
                            _mm_loadu_si128(from + 2), _mm_loadu_si128(from + 3)};
    for (int i = 0; i < 4; ++i)
      kPast ? _mm_stream_si128(to + i, line[i]) : _mm_store_si128(to + i, line[i]);
  }
#endif
  std::memcpy(dst + at, src + at, bytes - at);
}

}  // namespace

void CopyNonTemporal(std::byte* dst, const std::byte* src, size_t bytes) {
  CopyLines</*kPast=*/true, /*kFetch=*/false>(dst, src, bytes, nullptr);
}

void FenceStores() {
#ifdef __SSE2__
  _mm_sfence();
#else
  __atomic_thread_fence(__ATOMIC_RELEASE);
#endif
}

uint64_t BlockCopier::Copy(std::byte* dst, const std::byte* src, size_t bytes,
                           const std::byte* next) {
  const bool whole = bytes <= kPieceBytes;
  if (!whole) hasher_.Begin();
  for (size_t at = 0; at < bytes; at += kPieceBytes) {
    const std::span<const std::byte> piece(piece_.data(), std::min(kPieceBytes, bytes - at));
    CopyLines</*kPast=*/false, /*kFetch=*/false>(piece_.data(), src + at, piece.size(), nullptr);
    const std::byte* after = at + kPieceBytes < bytes ? src + at + kPieceBytes : next;
    CopyLines</*kPast=*/true, /*kFetch=*/true>(dst + at, piece.data(), piece.size(), after);
    if (!whole) hasher_.Add(piece);
  }
  return whole ? BlockChecksum({piece_.data(), bytes}) : hasher_.End();
}

SendLane::SendLane(const Options& options, std::string name, std::unique_ptr<LaneWire> wire,
                   std::span<std::byte> ring, OnSent on_sent)
    : options_(options),
      name_(std::move(name)),
      on_sent_(std::move(on_sent)),
      ring_bytes_(ring.first(ring.size() / kRingAlign * kRingAlign)),
      wire_(std::move(wire)) {
  size_t per_block = options_.block_bytes + kFrameEntryBytes;
  size_t frame_bytes = std::min(options_.frame_bytes_max, options_.in_flight_bytes_max);
  if (!ring.empty()) {
    ring_.emplace(ring_bytes_.size());
    // A quarter of the ring at most, so that both ends work at once.
    frame_bytes = std::min<size_t>(frame_bytes, ring_bytes_.size() / 4);
    per_block = RingStride(options_.block_bytes);
  } else {
    frame_bytes = std::min(frame_bytes, kTcpFrameBytesMax);
  }
  frame_blocks_max_ = std::clamp<size_t>(frame_bytes / per_block, 1, kFrameBlocksMax);
}

bool SendLane::HasRoom() const {
  if (ring_ && !ring_->HasRoom(frame_blocks_max_ * RingStride(options_.block_bytes))) return false;
  const size_t frame = frame_blocks_max_ * (kFrameEntryBytes + (ring_ ? 0 : options_.block_bytes));
  return in_flight_bytes_ == 0 || in_flight_bytes_ + frame <= options_.in_flight_bytes_max;
}

std::shared_ptr<SendLane::Staged> SendLane::Stage(SendFrame* frame, const KvStorage& kv) {
  std::shared_ptr<Staged> staged;
  if (spare_.empty()) {
    staged = std::make_shared<Staged>();
    staged->payload.resize(frame_blocks_max_ *
                           (kFrameEntryBytes + (ring_ ? 0 : options_.block_bytes)));
  } else {
    staged = std::move(spare_.back());
    spare_.pop_back();
  }
  const size_t n = frame->entries.size(), bytes = options_.block_bytes;
  const size_t stride = ring_ ? RingStride(bytes) : bytes;
  SY_CHECK(n > 0 && n <= frame_blocks_max_);
  FrameHeader header{.peer_token = frame->peer_token,
                     .session = frame->session,
                     .layer = static_cast<uint32_t>(frame->layer),
                     .block_bytes = static_cast<uint32_t>(bytes)};
  staged->payload_bytes = n * kFrameEntryBytes;
  std::byte* to = staged->payload.data() + staged->payload_bytes;
  if (ring_) {
    header.flags = kFrameInRing;
    std::optional<uint64_t> position = ring_->Take(n * stride);
    SY_CHECK(position);
    header.ring_position = *position;
    to = ring_bytes_.data() + *position % ring_bytes_.size();
  } else {
    staged->payload_bytes += n * bytes;
  }
  // Where a device has computed, it knows the sums of what it had: a copy that differs shows.
  const uint64_t* known = kv.device() != nullptr ? kv.device()->Checksums(frame->layer) : nullptr;
  for (size_t i = 0; i < n; ++i, to += stride) {
    const std::byte* block = kv.Block(frame->layer, frame->blocks[i].value());
    if (known != nullptr) {
      CopyNonTemporal(to, block, bytes);
      frame->entries[i].checksum = known[frame->blocks[i].value()];
    } else if (ring_) {
      const BlockId next = frame->blocks[std::min(i + 1, n - 1)];
      frame->entries[i].checksum =
          copier_.Copy(to, block, bytes, kv.Block(frame->layer, next.value()));
    } else {
      std::memcpy(to, block, bytes);  // first: it brings the block into the cache
      frame->entries[i].checksum = BlockChecksum({block, bytes});
    }
  }
  if (ring_) FenceStores();
  staged->header = EncodeFrame(header, frame->entries, staged->payload);
  staged->transfer = frame->transfer;
  staged->blocks = n;
  return staged;
}

void SendLane::Post(std::shared_ptr<Staged> staged) {
  in_flight_bytes_ += staged->payload_bytes;
  std::span<const std::byte> payload(staged->payload.data(), staged->payload_bytes);
  std::span<const std::byte> header = staged->header;
  wire_->Send(kFrameAm, header, payload,
              [weak = weak_from_this(), staged = std::move(staged)](absl::Status status) {
                std::shared_ptr<SendLane> lane = weak.lock();
                if (lane == nullptr) return;
                lane->in_flight_bytes_ -= staged->payload_bytes;
                lane->spare_.push_back(staged);
                lane->on_sent_(staged->transfer, staged->blocks, std::move(status));
              });
}

absl::Status SendLane::OnCredit(const Credit& credit) {
  if (!ring_) return absl::InvalidArgumentError("credit: this lane has no ring");
  return ring_->Credit(credit.ring_position);
}

ReceiveLane::ReceiveLane(uint64_t peer_token, std::unique_ptr<LaneWire> wire,
                         std::span<const std::byte> ring)
    : peer_token_(peer_token), ring_bytes_(ring), wire_(std::move(wire)) {
  if (!ring.empty()) ring_.emplace(ring.size());
}

absl::StatusOr<std::span<const std::byte>> ReceiveLane::RingFrame(uint64_t position,
                                                                  uint64_t bytes) {
  if (!ring_) return absl::InvalidArgumentError("frame: the peer has no ring");
  ASSIGN_OR_RETURN(const uint64_t offset, ring_->Accept(position, bytes));
  return ring_bytes_.subspan(offset, bytes);
}

void ReceiveLane::SendCredit() {
  if (!owes_credit() || *credit_in_flight_) return;
  credited_ = ring_->consumed();
  *credit_in_flight_ = true;
  const auto message = EncodeCredit({peer_token_, credited_});
  // A failure is the wire's: its error callback tells the owner.
  wire_->Send(kCreditAm, message, {},
              [flag = credit_in_flight_](const absl::Status&) { *flag = false; });
}

}  // namespace switchyard

#include "model/cuda/peer_lane.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard::cuda {
namespace {
// Enough to fill a link of 400 GB/s with loads that take 1 µs: 400 KB under way, of which a block
// of 256 threads has 16 KB.
constexpr int kCtas = 24;

// Ends that have planned other sizes do not find each other's words: that is a rank that hangs.
uint64_t Word(uint64_t piece, size_t bytes) { return piece + bytes * 0x9e3779b97f4a7c15; }
}  // namespace

PeerWords PeerLane::Words() const {
  HostWords* const host = words_.as<HostWords>();
  return {.arrived = reinterpret_cast<uint32_t*>(window_.data() + shape_.ArrivedAt()),
          .broken = reinterpret_cast<uint32_t*>(window_.data() + shape_.BrokenAt()),
          .stop = &host->stop,
          .error = &host->error};
}

absl::StatusOr<PeerHandle> PeerLane::Prepare(const PeerWindow& window) {
  Close();
  SY_CHECK_MSG(window.slot_bytes % 256 == 0, window.slot_bytes);
  if (!(shape_ == window)) {
    window_ = DeviceBuffer();
    ASSIGN_OR_RETURN(window_, DeviceBuffer::Create(window.bytes()));
    ASSIGN_OR_RETURN(words_, PinnedBuffer::Create(sizeof(HostWords)));
    ASSIGN_OR_RETURN(last_, MakeEvent());
  }
  ASSIGN_OR_RETURN(const OwnedStream stream, MakeStream());
  // Flags too only the first time: then they hold words of no epoch; later those of old ones.
  const size_t bytes = shape_ == window ? window.FlagAt(0, 0) : window.SlotAt(0, 0);
  RETURN_IF_ERROR(ClearAsync(window_.data(), bytes, stream));
  RETURN_IF_ERROR(Synchronize(stream));
  shape_ = window;
  new (words_.data()) HostWords();
  return ExportMemory(window_);
}

absl::Status PeerLane::Open(int rank, uint64_t epoch,
                            std::span<const std::optional<PeerHandle>> windows) {
  SY_CHECK(static_cast<int>(windows.size()) == shape_.ranks && shape_.ranks - 1 <= kPeersMax);
  rank_ = rank;
  epoch_ = epoch;
  peers_.clear();
  peers_.resize(windows.size());
  next_.assign(windows.size(), 1);
  for (size_t r = 0; r < windows.size(); ++r) {
    if (!windows[r]) continue;
    absl::StatusOr<PeerMemory> opened = PeerMemory::Open(*windows[r]);
    if (!opened.ok()) {
      return absl::UnavailableError(
          absl::StrCat("memory of rank ", r, ": ", std::string(opened.status().message())));
    }
    peers_[r] = *std::move(opened);
  }
  return absl::OkStatus();
}

absl::Status PeerLane::Exchange(const std::byte* from, const BlockFirsts& from_first, std::byte* to,
                                const BlockFirsts& to_first, size_t row_bytes, const Limits& limits,
                                const OwnedStream& stream) {
  const size_t piece_bytes = shape_.slot_bytes / row_bytes * row_bytes;
  SY_CHECK_MSG(piece_bytes > 0 && row_bytes % 16 == 0, row_bytes, " bytes in a row");
  const auto block = [&](const std::byte* rows, const BlockFirsts& first, size_t r) {
    return std::span(const_cast<std::byte*>(rows) + static_cast<size_t>(first[r]) * row_bytes,
                     static_cast<size_t>(first[r + 1] - first[r]) * row_bytes);
  };
  left_.assign(peers_.size(), {});
  size_t bytes_max = 0;  // with one rank, in one direction
  for (size_t r = 0; r < peers_.size(); ++r) {
    if (peers_[r].data() == nullptr) continue;
    left_[r] = {block(from, from_first, r), block(to, to_first, r)};
    bytes_max = std::max({bytes_max, left_[r].out.size(), left_[r].in.size()});
  }
  absl::Status done;
  for (size_t bytes = 0; bytes < bytes_max && done.ok(); bytes += piece_bytes) {
    done = ExchangePieces(limits, piece_bytes, stream);
  }
  done.Update(Record(last_, stream));
  return done;
}

absl::Status PeerLane::ExchangePieces(const Limits& limits, size_t piece_bytes,
                                      const OwnedStream& stream) {
  PeerBlocks sends, receives;
  for (size_t r = 0; r < peers_.size(); ++r) {
    Pair& left = left_[r];
    if (left.out.empty() && left.in.empty()) continue;  // at both ends
    const int peer = static_cast<int>(r), parity = static_cast<int>(next_[r] % 2);
    const uint64_t piece = epoch_ << 32 | next_[r]++;
    const auto add = [&](PeerBlocks* blocks, std::byte* window, int source,
                         std::span<std::byte>* bytes) {
      const size_t size = std::min(piece_bytes, bytes->size());
      blocks->at[blocks->count++] = {
          .slot = window + shape_.SlotAt(source, parity),
          .flag = reinterpret_cast<uint64_t*>(window + shape_.FlagAt(source, parity)),
          .data = bytes->data(),
          .bytes = size,
          .word = Word(piece, size),
          .rank = peer};
      *bytes = bytes->subspan(size);
    };
    add(&sends, peers_[r].data(), rank_, &left.out);
    add(&receives, window_.data(), peer, &left.in);
  }
  const int ctas = limits.ctas > 0 ? limits.ctas : kCtas;
  RETURN_IF_ERROR(SendToPeers(stream.get(), sends, Words(), ctas));
  const auto wait_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(limits.wait_max));
  return ReceiveFromPeers(stream.get(), receives, Words(), wait_ns, ctas);
}

absl::Status PeerLane::status() const {
  if (peers_.empty()) return absl::OkStatus();  // what the words say is of another epoch
  const uint32_t error =
      std::atomic_ref(words_.as<HostWords>()->error).load(std::memory_order_acquire);
  if (error == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the rows of rank ", error - 1, " have not come"));
}

void PeerLane::Close() {
  if (words_.size() > 0) {
    std::atomic_ref(words_.as<HostWords>()->stop).store(1, std::memory_order_release);
    static_cast<void>(Synchronize(last_));  // the error, if there is one, is known
  }
  peers_.clear();
}

}  // namespace switchyard::cuda

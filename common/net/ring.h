// common/net/ring.h: the positions of a ring of bytes, as its two ends count them. No memory and no
// I/O. A position counts bytes since the ring began and never wraps (2^64 bytes are 500 years at
// 1 GB/s); position mod size is the offset. A frame is contiguous: the writer skips the end of the
// ring where it does not fit.
//
//        consumed                  written
//   ────────┼─────── in flight ───────┼──────── free ────────   written - consumed <= size
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace switchyard {

class RingWriter {
 public:
  explicit RingWriter(uint64_t size) : size_(size) {}
  // Whether Take(bytes) would find room. With an empty ring it does for size / 2 at least, so a
  // writer of frames up to that size never waits without something in flight.
  bool HasRoom(uint64_t bytes) const { return Place(bytes) + bytes - consumed_ <= size_; }
  // The position of `bytes` contiguous bytes, or nothing while the ring is too full.
  std::optional<uint64_t> Take(uint64_t bytes) {
    if (!HasRoom(bytes)) return std::nullopt;
    const uint64_t at = Place(bytes);
    written_ = at + bytes;
    return at;
  }
  // What the reader says it has copied out. A late, smaller one changes nothing; more than was
  // written is kInvalidArgument.
  absl::Status Credit(uint64_t consumed) {
    if (consumed > written_) {
      return absl::InvalidArgumentError(
          absl::StrCat("credit: position is ", consumed, ", written is ", written_));
    }
    if (consumed > consumed_) consumed_ = consumed;
    return absl::OkStatus();
  }
  // Where the last Take ended; the next one begins here or skips to the ring's start.
  uint64_t written() const { return written_; }
  uint64_t in_flight() const { return written_ - consumed_; }

 private:
  uint64_t Place(uint64_t bytes) const {
    const uint64_t to_end = size_ - written_ % size_;
    return bytes <= to_end ? written_ : written_ + to_end;
  }

  const uint64_t size_;
  uint64_t written_ = 0, consumed_ = 0;
};

class RingReader {
 public:
  explicit RingReader(uint64_t size) : size_(size) {}
  // Checks a frame's claim and returns its offset. Frames come in the writer's order, so a position
  // behind the last one is a lie or a repeat; a gap is a skipped end or a damaged frame.
  absl::StatusOr<uint64_t> Accept(uint64_t position, uint64_t bytes) {
    const uint64_t offset = position % size_;
    if (position < consumed_ || bytes > size_ || position - consumed_ > size_ - bytes ||
        offset > size_ - bytes) {
      return absl::InvalidArgumentError(absl::StrCat("frame: ring position is ", position, " + ",
                                                     bytes, ", must lie within ", size_,
                                                     " bytes from ", consumed_));
    }
    consumed_ = position + bytes;
    return offset;
  }
  // What may be given back as credit, once the accepted frames have been copied.
  uint64_t consumed() const { return consumed_; }

 private:
  const uint64_t size_;
  uint64_t consumed_ = 0;
};

}  // namespace switchyard

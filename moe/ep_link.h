// moe/ep_link.h: the two byte rings between this rank and one peer, and the frames in them.
//
// Each rank owns the ring that it reads. On the shm lane the peer maps it and writes frames
// straight into it, and both count in it; on the tcp lane the peer writes them into a staging ring
// of the same size and active messages copy them over. Either way a frame is read where it lies.
//
//   ring:  {magic, token} · counters · … at 4,096: data [ring_bytes]
//
// Stores wake nobody. Who is about to sleep says so in its rings; who writes a frame for it, or
// frees what it waits for, then rings the bell: an active message over TCP.
// Owned by the engine thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/net/lanes.h"
#include "common/net/ring.h"
#include "moe/ep_wire.h"

namespace switchyard {

inline constexpr size_t kEpRingBytesMin = 64 << 10;
inline constexpr size_t kEpRingBytesMax = size_t{1} << 30;

class EpLink {
 public:
  // Message kinds of the TCP worker.
  static constexpr unsigned kFrameAm = 1, kCreditAm = 2, kBellAm = 3;
  // Of each active message: which ring is meant, and where in it.
  struct AmHeader {
    uint64_t token = 0;
    uint64_t position = 0;  // frame: of its first byte; credit: everything before it has been read
  };

  // Makes the ring that `peer` will write. ring_bytes: a power of two in the limits above.
  // kResourceExhausted if there is no memory for it.
  static absl::StatusOr<std::unique_ptr<EpLink>> Create(const TransportWorkers& workers, int peer,
                                                        size_t ring_bytes, uint64_t token);
  // What the peer must know of the ring.
  void FillHello(const TransportWorkers& workers, EpHello* hello) const;
  // Opens the way to the peer, whose hello CheckEpHello has taken. kInvalidArgument: an address
  // makes no sense; kUnavailable: its ring cannot be mapped. `on_error` once, if the peer dies.
  absl::Status Connect(const TransportWorkers& workers, const EpHello& hello, bool shm,
                       UcxEndpoint::OnError on_error);

  int peer() const { return peer_; }
  bool shm() const { return shm_; }
  uint64_t token() const { return token_; }
  std::string DescribeLanes() const { return endpoint_->DescribeLanes(); }
  // The largest payload of a frame: a quarter of the ring, less the header. A ring that the peer
  // empties always finds room for it.
  size_t payload_max() const { return out_bytes_ / 4 - sizeof(EpFrameHeader); }

  // Space for a frame with that payload, aligned to 64; null while the ring is full. Commit() must
  // follow before the next Begin.
  std::byte* Begin(size_t payload_bytes);
  // Sends the frame that Begin made room for. header.bytes is what Begin was asked for.
  void Commit(const EpFrameHeader& header);

  // The oldest frame that has not been popped; null if none has come. Its payload holds
  // header->bytes bytes, valid until Pop. A frame that cannot be fails the link: see status().
  const EpFrameHeader* Peek();
  const std::byte* payload() const { return payload_; }
  void Pop();

  // Says to the peer what this rank sleeps for, so that it rings the bell; 0: awake.
  static constexpr uint32_t kForFrames = 1, kForRoom = 2;
  void SetSleeping(uint32_t what);
  void RingBell();
  // What the TCP worker got for this ring.
  void OnFrame(uint64_t position, std::span<const std::byte> frame);
  void OnCredit(uint64_t position);
  void OnBell(uint64_t) { rung_ = true; }
  // Whether the peer has ever rung, as it does first of all: then its way to this rank is open.
  bool rung() const { return rung_; }

  // Not OK once the peer is lost or has broken the rules; it stays so. What came whole before the
  // peer was lost can still be read.
  const absl::Status& status() const { return status_; }
  void Fail(absl::Status why);
  // The peer has broken the rules: nothing that it wrote is read any more.
  void Break(absl::Status why);
  // Lets what was sent go out before the connection ends.
  void Flush();

 private:
  // In the ring's own memory (shm), or one at each end (tcp).
  struct Counters {
    uint64_t magic, token;                       // of the reader, who owns the ring
    alignas(64) std::atomic<uint64_t> written;   // by the writer
    alignas(64) std::atomic<uint64_t> consumed;  // by the reader
    alignas(64) std::atomic<uint32_t> sleeping;  // what the reader sleeps for
  };
  static constexpr uint64_t kMagic = 0x31474e5250455953;  // "SYEPRNG1"
  static constexpr size_t kDataOffset = 4096;

  EpLink(int peer, size_t ring_bytes, uint64_t token)
      : peer_(peer), token_(token), in_bytes_(ring_bytes) {}
  absl::Status MapRing(const TransportWorkers& workers, const EpHello& hello);
  void WakePeer(uint32_t what);

  const int peer_;
  const uint64_t token_;
  const size_t in_bytes_;
  bool shm_ = false, broken_ = false, rung_ = false;
  absl::Status status_;
  uint64_t peer_token_ = 0;
  std::unique_ptr<UcxEndpoint> endpoint_, ring_endpoint_;

  // What this rank reads.
  std::unique_ptr<UcxMemory> segment_;      // with the shm lane
  std::unique_ptr<std::byte[]> in_memory_;  // without
  Counters* in_ = nullptr;
  std::byte* in_data_ = nullptr;
  uint64_t read_ = 0, credited_ = 0;
  bool peeked_ = false;
  EpFrameHeader head_;  // a copy: the peer can still write the original
  const std::byte* payload_ = nullptr;

  // What the peer reads. UCX may read the staging ring after the link is gone.
  std::unique_ptr<UcxMapping> mapping_;
  std::shared_ptr<std::byte[]> staging_;
  Counters* out_ = nullptr;  // shm only
  std::byte* out_data_ = nullptr;
  size_t out_bytes_ = 0;
  std::optional<RingWriter> writer_;
  uint64_t begun_ = 0;  // position of the frame between Begin and Commit
};

}  // namespace switchyard

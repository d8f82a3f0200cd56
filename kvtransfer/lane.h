// kvtransfer/lane.h: the two lanes between a sender and a receiver, as each end sees its peer.
//   tcp: frames are active messages that carry the blocks.
//   shm: the sender stores the blocks into its own ring segment in the receiver's memory, and a
//        frame without blocks rings the bell over TCP, because stores wake nobody. The receiver
//        gives the space back by credit messages.
// What carries the messages is a LaneWire: UCX (transport.h), or a simulator. All of it belongs to
// the I/O thread of its end.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/ring.h"
#include "kvcache/layout.h"
#include "kvtransfer/send_session.h"
#include "kvtransfer/wire.h"

namespace switchyard {

// Copies past the cache, for what is not read again soon: no line of dst is fetched first, and none
// stays. dst should be aligned to 16. Call FenceStores() before telling anyone.
void CopyNonTemporal(std::byte* dst, const std::byte* src, size_t bytes);
void FenceStores();

// CopyNonTemporal of a block that also gives its BlockChecksum, in one pass over memory: piece by
// piece, while a piece is in the nearest cache. What is hashed is what is stored: a private copy of
// `src`, which another process may be writing. `next`: the block that is copied next, or any other:
// its beginning is fetched meanwhile. One thread's.
class BlockCopier {
 public:
  uint64_t Copy(std::byte* dst, const std::byte* src, size_t bytes, const std::byte* next);

 private:
  static constexpr size_t kPieceBytes = 4096;
  alignas(64) std::array<std::byte, kPieceBytes> piece_;
  BlockHasher hasher_;
};

// A connection to one peer, which says itself when it has died.
class LaneWire {
 public:
  virtual ~LaneWire() = default;
  // Sends an active message. `header` is copied; `payload` must stay until done(), which is called
  // once: OK means only that the payload may be reused.
  virtual void Send(unsigned am, std::span<const std::byte> header,
                    std::span<const std::byte> payload, std::function<void(absl::Status)> done) = 0;
  // flush: what was sent goes out first.
  virtual void Close(bool flush) = 0;
  virtual std::string Describe() const = 0;
};
using OnLaneError = std::function<void(absl::Status)>;  // the peer has died; once

// ---- the sender's view of one receiver
class SendLane : public std::enable_shared_from_this<SendLane> {
 public:
  struct Options {
    size_t block_bytes = 0;
    size_t frame_bytes_max = 1 << 20, in_flight_bytes_max = 64 << 20;
  };
  using OnSent = std::function<void(uint64_t transfer, size_t blocks, absl::Status)>;

  // `ring`: the data of our segment, mapped, valid as long as `wire`; empty: the blocks travel in
  // the frames.
  SendLane(const Options& options, std::string name, std::unique_ptr<LaneWire> wire,
           std::span<std::byte> ring, OnSent on_sent);
  const std::string& name() const { return name_; }
  std::string Describe() const { return wire_->Describe(); }
  size_t frame_blocks_max() const { return frame_blocks_max_; }
  // A frame of frame_blocks_max() can go now.
  bool HasRoom() const;
  bool in_flight() const { return in_flight_bytes_ > 0; }

  // Copies and hashes the blocks (a device has hashed its own) and fills in the checksums:
  // afterwards the blocks are not read any more. HasRoom() must hold.
  struct Staged;
  std::shared_ptr<Staged> Stage(SendFrame* frame, const KvStorage& kv);
  // Puts it on its way. `on_sent` comes once (perhaps at once), unless the lane is gone by then.
  void Post(std::shared_ptr<Staged> staged);
  // kInvalidArgument: the credit cannot be; the peer is not to be believed.
  absl::Status OnCredit(const Credit& credit);
  void Close(bool flush) { wire_->Close(flush); }

 private:
  const Options options_;
  const std::string name_;
  const OnSent on_sent_;
  size_t frame_blocks_max_ = 0;
  size_t in_flight_bytes_ = 0;  // payloads that the wire holds
  std::vector<std::shared_ptr<Staged>> spare_;
  const std::span<std::byte> ring_bytes_;
  std::optional<RingWriter> ring_;
  BlockCopier copier_;
  const std::unique_ptr<LaneWire> wire_;
};

// ---- the receiver's view of one sender
class ReceiveLane {
 public:
  // `ring`: the data of the peer's segment, valid as long as `wire`; empty: it has none.
  ReceiveLane(uint64_t peer_token, std::unique_ptr<LaneWire> wire, std::span<const std::byte> ring);
  std::string Describe() const { return wire_->Describe(); }
  // The bytes of a ring frame. kInvalidArgument if they do not lie in the ring: the peer is broken.
  absl::StatusOr<std::span<const std::byte>> RingFrame(uint64_t position, uint64_t bytes);
  // Tells the sender what has been copied out, unless it knows or the last message is still going.
  void SendCredit();
  bool owes_credit() const { return ring_ && ring_->consumed() != credited_; }
  void Close() { wire_->Close(/*flush=*/false); }

 private:
  const uint64_t peer_token_;
  const std::span<const std::byte> ring_bytes_;
  std::optional<RingReader> ring_;
  uint64_t credited_ = 0;
  std::shared_ptr<bool> credit_in_flight_ = std::make_shared<bool>(false);
  const std::unique_ptr<LaneWire> wire_;
};

}  // namespace switchyard

// kvtransfer/transport.h: the two lanes between a sender and a receiver, as each end sees its peer.
//   tcp: frames are active messages that carry the blocks.
//   shm: the sender stores the blocks into its own ring segment in the receiver's memory (mapped by
//        ucp_rkey_ptr in a posix context), and a frame without blocks rings the bell over TCP,
//        because stores wake nobody and the posix lane's own wake-ups get lost. The receiver gives
//        the space back by credit messages.
// All of it belongs to the I/O thread of its end.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/net/ucx.h"
#include "kvcache/layout.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/ring.h"
#include "kvtransfer/send_session.h"
#include "kvtransfer/wire.h"

namespace switchyard {

// Equal for two processes that can map each other's memory: one boot of one kernel, one pid
// namespace (UCX opens /proc/<pid>/fd) and one user. Empty if that can't be told: equal to none.
std::string HostId();

// Copies past the cache: the reader is another core, and the writer has no more use for the lines.
// dst is aligned to 64. Call FenceStores() before telling anyone.
void CopyNonTemporal(std::byte* dst, const std::byte* src, size_t bytes);
void FenceStores();

// The TCP worker, and the posix one where this end has the shm lane.
struct TransportWorkers {
  std::unique_ptr<UcxContext> tcp_context, posix_context;
  std::unique_ptr<UcxWorker> tcp, posix;
  // kUnavailable if UCX lacks one of `lanes` here; kInvalidArgument for an unknown or empty list.
  static absl::StatusOr<TransportWorkers> Create(const std::vector<std::string>& lanes,
                                                 const std::string& net_devices);
};

// ---- the sender's view of one receiver
class SendLane : public std::enable_shared_from_this<SendLane> {
 public:
  struct Options {
    size_t block_bytes = 0;
    size_t frame_bytes_max = 1 << 20, in_flight_bytes_max = 64 << 20;
  };
  using OnSent = std::function<void(uint64_t transfer, size_t blocks, absl::Status)>;

  // `on_error` once, if the peer dies. kUnavailable: the ring can't be mapped;
  // kInvalidArgument: the answer makes no sense.
  static absl::StatusOr<std::shared_ptr<SendLane>> Connect(const TransportWorkers& workers,
                                                           const KvHelloAnswer& answer,
                                                           const Options& options, OnSent on_sent,
                                                           UcxEndpoint::OnError on_error);
  const std::string& name() const { return name_; }
  std::string DescribeLanes() const { return endpoint_->DescribeLanes(); }
  size_t frame_blocks_max() const { return frame_blocks_max_; }
  // A frame of frame_blocks_max() can go now.
  bool HasRoom() const;
  bool in_flight() const { return in_flight_bytes_ > 0; }

  // Copies and hashes the blocks and fills in the checksums: afterwards the blocks are not read any
  // more. HasRoom() must hold.
  struct Staged;
  std::shared_ptr<Staged> Stage(SendFrame* frame, const KvStorage& kv);
  // Puts it on its way. `on_sent` comes once (perhaps at once), unless the lane is gone by then.
  void Post(std::shared_ptr<Staged> staged);
  absl::Status OnCredit(const Credit& credit);
  void Close(bool flush) { endpoint_->Close(flush); }

 private:
  SendLane(const Options& options, OnSent on_sent)
      : options_(options), on_sent_(std::move(on_sent)) {}
  absl::Status MapRing(UcxWorker* posix, const KvHelloAnswer& answer);

  const Options options_;
  const OnSent on_sent_;
  std::string name_;
  size_t frame_blocks_max_ = 0;
  size_t in_flight_bytes_ = 0;  // payloads that UCX holds
  std::vector<std::shared_ptr<Staged>> spare_;
  std::unique_ptr<UcxEndpoint> endpoint_, ring_endpoint_;
  std::unique_ptr<UcxMapping> mapping_;
  std::span<std::byte> ring_bytes_;
  std::optional<RingWriter> ring_;
};

// ---- the receiver's view of one sender
class ReceiveLane {
 public:
  // Picks the first offered lane that is allowed and possible, makes the ring if it is shm, and
  // opens the way back. Fills in the answer's lane, addresses and ring. kFailedPrecondition names
  // both lists if no lane fits. `on_error` once, if the peer dies.
  static absl::StatusOr<std::unique_ptr<ReceiveLane>> Create(
      const TransportWorkers& workers, const KvHello& hello, const KvReceiverOptions& options,
      size_t block_bytes, KvHelloAnswer* answer, UcxEndpoint::OnError on_error);
  std::string DescribeLanes() const { return endpoint_->DescribeLanes(); }
  // The bytes of a ring frame. kInvalidArgument if they do not lie in the ring: the peer is broken.
  absl::StatusOr<std::span<const std::byte>> RingFrame(uint64_t position, uint64_t bytes);
  // Tells the sender what has been copied out, unless it knows or the last message is still going.
  void SendCredit();
  bool owes_credit() const { return ring_ && ring_->consumed() != credited_; }
  void Close() { endpoint_->Close(/*flush=*/false); }

 private:
  ReceiveLane() = default;
  absl::Status MakeRing(const TransportWorkers& workers, size_t ring_bytes, size_t block_bytes,
                        KvHelloAnswer* answer);

  uint64_t peer_token_ = 0;
  std::unique_ptr<UcxEndpoint> endpoint_;
  std::unique_ptr<UcxMemory> segment_;
  std::optional<RingReader> ring_;
  uint64_t credited_ = 0;
  std::shared_ptr<bool> credit_in_flight_ = std::make_shared<bool>(false);
};

}  // namespace switchyard

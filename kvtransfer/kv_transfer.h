// kvtransfer/kv_transfer.h: moves KV blocks from a prefill rank's cache into a decode rank's, by
// UCX. The two ends as the processes see them; what they do without I/O is send_end.h and
// receive_end.h, the bytes on the wire are wire.h, the lanes are lane.h, by UCX transport.h.
//
// Each end has one I/O thread that owns its UCX workers and sleeps in poll(). All methods are
// thread-safe, post a message to it and never block; callbacks run on it and must not block.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/telemetry/log.h"
#include "kvcache/layout.h"

namespace switchyard {

inline constexpr uint32_t kHandoffWireVersion = 2;

// What Hello offers and answers (handoff.proto), without gRPC.
struct KvHello {
  std::string numerics_id, layout_id, peer_name, host_id;
  uint64_t incarnation = 0;
  uint32_t wire_version = kHandoffWireVersion;
  std::vector<std::string> lanes;  // offered, best first
  std::string ucx_address;
};
struct KvHelloAnswer {
  uint32_t wire_version = kHandoffWireVersion;
  uint64_t peer_token = 0, incarnation = 0;
  std::string lane, ucx_address, ring_ucx_address, ring_rkey;
  uint64_t ring_address = 0, ring_bytes = 0;
};

// ---- the decode rank's end
// -----------------------------------------------------------------------

struct KvReceiverOptions {
  std::string numerics_id;
  std::vector<std::string> lanes = {"shm", "tcp"};  // allowed
  size_t ring_bytes = 8 << 20;                      // per peer, shm
  int peers_max = 64;
  int sessions_max = 4096;
  // Of a reservation, unless renewed: what a prefill rank out of everybody's reach leaves is gone
  // within 5 s.
  absl::Duration lease = absl::Seconds(4);
  absl::Duration tombstone = absl::Seconds(60);  // how long a cancelled attempt is remembered
  uint64_t incarnation = 0;
  std::string net_devices = "lo";  // interfaces of the TCP lane and of the doorbells
  Logger* log = nullptr;           // must outlive the receiver
};

// A reservation as the receiver holds it: the block ids stay its owner's (the engine's pool).
// Leading blocks of generation 0 hold their tokens already: they are neither sent nor written, and
// their checksums are 0 in the digest.
struct KvTarget {
  AttemptKey key;
  int tokens = 0;
  std::vector<BlockId> blocks;
  std::vector<uint32_t> generations;
};

struct KvReceiverStats {
  uint64_t bytes = 0, frames = 0, blocks = 0, stale_frames = 0, corrupt_blocks = 0;
  int sessions = 0, peers = 0, tombstones = 0;
};

class KvReceiver {
 public:
  // A reservation that ended without commit (lease, cancel, corruption): its blocks go back to the
  // pool, to quarantine if `peer_may_write` says that a writer could still reach them (never so for
  // ring lanes: only this process writes blocks).
  using OnDropped =
      std::function<void(const KvTarget& target, bool peer_may_write, absl::Status why)>;

  // `kv` must outlive the receiver. Errors: kUnavailable if UCX has no such lane here.
  static absl::StatusOr<std::unique_ptr<KvReceiver>> Create(const KvReceiverOptions& options,
                                                            KvStorage* kv, const Clock* clock,
                                                            OnDropped on_dropped);
  virtual ~KvReceiver() = default;

  // done(answer) or kFailedPrecondition naming both values, or kResourceExhausted (peers_max).
  virtual void Hello(const KvHello& hello,
                     std::function<void(absl::StatusOr<KvHelloAnswer>)> done) = 0;
  // Opens a session for blocks that the caller has leased. done(session), or an error (kAborted
  // tombstone, kAlreadyExists, kUnauthenticated unknown peer, kResourceExhausted); then the blocks
  // are the caller's again and OnDropped is not called.
  virtual void Open(uint64_t peer_token, const KvTarget& target,
                    std::function<void(absl::StatusOr<uint64_t>)> done) = 0;
  // Waits until all blocks are there and match, `wait` at most, then hands the target back: from
  // then on the blocks are the caller's. Errors: kDataLoss, kDeadlineExceeded, kAborted, kNotFound;
  // then OnDropped has been called. kAlreadyExists for a repeat: the first call has the target.
  virtual void Commit(uint64_t peer_token, uint64_t session, uint64_t digest, absl::Duration wait,
                      std::function<void(absl::StatusOr<KvTarget>)> done) = 0;
  // Drops the attempt's session if there is one and leaves a tombstone.
  virtual void Cancel(const AttemptKey& key) = 0;
  virtual void Renew(uint64_t peer_token, std::vector<uint64_t> sessions,
                     std::function<void(std::vector<uint64_t> lost)> done) = 0;
  virtual KvReceiverStats stats() const = 0;  // a snapshot
};

// ---- the prefill rank's end
// ----------------------------------------------------------------------

struct KvSenderOptions {
  std::vector<std::string> lanes = {"shm", "tcp"};  // offered, best first
  size_t frame_bytes_max = 512 << 10;    // small blocks of one layer are coalesced up to this
  size_t in_flight_bytes_max = 4 << 20;  // copies on their way to one peer (tcp): stay in the cache
  // No progress for this long although there is work: the transfer fails with kDeadlineExceeded,
  // and its peer is given up: all others to it fail with kUnavailable until a new Hello.
  absl::Duration stall = absl::Seconds(4);
  std::string net_devices = "lo";  // as the receiver's
  Logger* log = nullptr;           // must outlive the sender
};

struct KvSendResult {
  uint64_t digest = 0;  // for Commit
  uint64_t bytes = 0;
  std::string lane;
};

class KvSender {
 public:
  // `kv` must outlive the sender.
  static absl::StatusOr<std::unique_ptr<KvSender>> Create(const KvSenderOptions& options,
                                                          KvStorage* kv, const Clock* clock);
  virtual ~KvSender() = default;

  // This end's address, host, layout and lanes, for HelloRequest; the caller adds the rest.
  virtual KvHello MakeHello() const = 0;
  // Connects to a peer by its answer. The same peer_token again replaces nothing. Errors come with
  // the first transfer.
  virtual void Connect(const KvHelloAnswer& answer) = 0;
  // Forgets a peer that is gone: its transfers fail with kUnavailable.
  virtual void Disconnect(uint64_t peer_token) = 0;

  // A transfer may be fed before the reservation is known: pushes queue until Begin. Blocks stay
  // owned by the caller until `done` is called; it is called exactly once, after the last local use
  // of them. `blocks_total`: of the whole prompt.
  virtual void Prepare(const AttemptKey& key, int blocks_total,
                       std::function<void(absl::StatusOr<KvSendResult>)> done) = 0;
  // Blocks of generation 0 (KvTarget) are not sent.
  virtual void Begin(const AttemptKey& key, uint64_t peer_token, uint64_t session,
                     std::vector<uint32_t> generations) = 0;
  // Blocks first_block, first_block + 1, … of `layer` are final and may go. Each (layer, block)
  // once, in any order. The transfer is complete when all that the peer wants has gone.
  virtual void Push(const AttemptKey& key, int layer, int first_block,
                    std::vector<BlockId> blocks) = 0;
  // Ends it early: done(kCancelled) follows once nothing is in flight from these blocks.
  virtual void Cancel(const AttemptKey& key) = 0;
};

}  // namespace switchyard

// kvtransfer/send_session.h: the prefill rank's transfers as one state machine without I/O: what
// has been pushed, what goes next, what has gone. Owned by the sender's I/O thread.
//
//            Prepare            Begin              the last frame is gone
//   (none) ─────────► Waiting ────────► Sending ──────────────────────────► Done(digest)
//                        └── Cancel, PeerGone, stall, wrong use ──────────► Done(error)
// Push is taken in Waiting and Sending. Blocks are read only while a frame is being staged (copied
// and hashed), between NextFrame and Staged in one turn of the I/O thread: Done is therefore never
// before the last use of a block, whatever is still in flight.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/wire.h"

namespace switchyard {

// Blocks of one layer of one transfer that may go together.
struct SendFrame {
  uint64_t transfer = 0, peer_token = 0, session = 0;
  int layer = 0;
  std::vector<FrameEntry> entries;  // the stager fills in the checksums
  std::vector<BlockId> blocks;      // ours, beside the entries
};

class SendSessions {
 public:
  struct Options {
    int layers = 0;
    size_t block_bytes = 0;
    int transfers_max = 4096;
    int blocks_max = 1 << 20;  // of one prompt
    absl::Duration stall = absl::Seconds(10);
  };

  // ---- events
  struct Prepare {
    uint64_t op = 0;
    AttemptKey key;
    int blocks_total = 0;
  };
  struct Begin {
    AttemptKey key;
    uint64_t peer_token = 0, session = 0;
    std::vector<uint32_t> generations;  // 0: the peer has this block, and all before it
  };
  struct Push {
    AttemptKey key;
    int layer = 0, first_block = 0;
    std::vector<BlockId> blocks;
  };
  struct Staged {  // a frame of NextFrame, with its checksums, is on its way
    const SendFrame* frame = nullptr;
  };
  struct Sent {  // … and has left: locally complete. An error is its peer's: PeerGone follows.
    uint64_t transfer = 0;
    size_t blocks = 0;
  };
  struct Fail {  // ends one transfer
    AttemptKey key;
    absl::Status why;
  };
  struct PeerGone {  // its transfers fail with kUnavailable
    uint64_t peer_token = 0;
    std::string why;
  };
  struct Tick {};
  struct Shutdown {};
  using Event = std::variant<Prepare, Begin, Push, Staged, Sent, Fail, PeerGone, Tick, Shutdown>;

  // ---- effects
  struct Done {
    uint64_t op = 0;
    absl::StatusOr<KvSendResult> result;  // without the lane
    uint64_t peer_token = 0;
  };
  // A transfer stood still although it had work: its peer is not to be trusted any more.
  struct PeerStalled {
    uint64_t peer_token = 0;
    std::string why;
  };
  using Effect = std::variant<Done, PeerStalled>;
  using Effects = std::vector<Effect>;

  explicit SendSessions(const Options& options) : options_(options) {}

  // Events of unknown transfers change nothing: they are late. Errors of Done: kAlreadyExists and
  // kResourceExhausted at Prepare; kInvalidArgument for counts, blocks or layers that do not fit;
  // kUnavailable; kDeadlineExceeded for a stall; kCancelled.
  Effects Step(const Event& event, absl::Time now);

  // The next frame for a peer, of `blocks_max` blocks at most, in turn among its transfers; nothing
  // if there is none. It must be Staged before the next call.
  std::optional<SendFrame> NextFrame(uint64_t peer_token, size_t blocks_max);
  bool HasWork(uint64_t peer_token) const;
  absl::Time next_check() const { return next_check_; }
  int transfers() const { return static_cast<int>(transfers_.size()); }

 private:
  struct Chunk {
    int layer, first;
    std::vector<BlockId> blocks;
    size_t taken = 0;
  };
  struct Transfer {
    uint64_t op = 0;
    AttemptKey key;
    int blocks_total = 0;
    bool begun = false;
    uint64_t peer_token = 0, session = 0;
    std::vector<uint32_t> generations;
    int prefix = 0;                   // leading blocks that the peer has: they are not sent
    std::vector<bool> pushed;         // [L][B]
    std::vector<uint64_t> checksums;  // [L][B]
    std::deque<Chunk> chunks;         // pushed, not staged
    size_t staged = 0, sent = 0;      // blocks
    absl::Time progress;              // when something last moved, or work appeared
  };

  void On(const Prepare& e, absl::Time now, Effects* out);
  void On(const Begin& e, absl::Time now, Effects* out);
  void On(const Push& e, absl::Time now, Effects* out);
  void On(const Staged& e, absl::Time now, Effects* out);
  void On(const Sent& e, absl::Time now, Effects* out);
  void On(const Fail& e, absl::Time now, Effects* out);
  void On(const PeerGone& e, absl::Time now, Effects* out);
  void On(const Tick& e, absl::Time now, Effects* out);
  void On(const Shutdown& e, absl::Time now, Effects* out);
  Transfer* Find(const AttemptKey& key);
  static bool Busy(const Transfer& t);
  static void DropPrefix(Transfer* t);
  size_t ToSend(const Transfer& t) const;  // blocks of all layers
  void Queue(uint64_t id, Transfer* t, absl::Time now);
  void End(uint64_t id, absl::StatusOr<KvSendResult> result, Effects* out);
  void FinishIfComplete(uint64_t id, Effects* out);

  const Options options_;
  uint64_t next_transfer_ = 1;
  std::map<uint64_t, Transfer> transfers_;
  absl::flat_hash_map<AttemptKey, uint64_t> by_key_;
  // By peer: transfers with chunks, in turn. Ids of ended transfers are skipped.
  absl::flat_hash_map<uint64_t, std::deque<uint64_t>> ready_;
  absl::Time next_check_ = absl::InfiniteFuture();
};

}  // namespace switchyard

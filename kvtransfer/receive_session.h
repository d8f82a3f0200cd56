// kvtransfer/receive_session.h: the decode rank's hand-offs as one state machine without I/O: which
// session expects which block, what it has, and how it ends. Owned by the receiver's I/O thread.
//
//            Open                 Block                 Commit (some missing)
//   (none) ───────► Reserved ───────────► Receiving ─────────────────► CommitPending
//                      │                      │ Commit (all there)          │ the last block
//                      │                      └─────────► Committed ◄───────┘
//                      └── Cancel, lease over, wait over, checksum or digest wrong ──► Dropped
// Committed and Dropped leave a tombstone for a while, so that late messages are refused. Memory is
// bounded: a block is leased to one session at a time, so all sessions together hold at most
// 8 bytes per block and layer of the pool; sessions and tombstones are counted.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvtransfer/kv_transfer.h"

namespace switchyard {

class ReceiveSessions {
 public:
  struct Options {
    int layers = 0;
    int sessions_max = 4096;
    int tombstones_max = 16384;  // the oldest goes first
    absl::Duration lease = absl::Seconds(10);
    absl::Duration tombstone = absl::Seconds(60);
    absl::Duration commit_wait_max = absl::Seconds(60);
    uint64_t first_session = 1;  // sessions of two runs should differ
  };

  // ---- events. `op` comes back in the effect that answers it.
  struct Open {
    uint64_t op = 0, peer_token = 0;
    KvTarget target;
  };
  // A block was copied into place: what the sender said and what its bytes say.
  struct Block {
    uint64_t peer_token = 0, session = 0;
    uint32_t layer = 0, index = 0, generation = 0;
    uint64_t declared = 0, actual = 0;  // checksums
  };
  struct Commit {
    uint64_t op = 0, peer_token = 0, session = 0, digest = 0;
    absl::Duration wait;  // for all that is missing; for each further block a lease at most
  };
  struct Cancel {
    AttemptKey key;
  };
  struct Renew {
    uint64_t op = 0, peer_token = 0;
    std::vector<uint64_t> sessions;
  };
  struct Tick {};      // leases and waits
  struct Shutdown {};  // drops everything
  using Event = std::variant<Open, Block, Commit, Cancel, Renew, Tick, Shutdown>;

  // ---- effects
  struct Opened {
    uint64_t op = 0;
    absl::StatusOr<uint64_t> session;
  };
  struct CommitDone {
    uint64_t op = 0;
    absl::StatusOr<KvTarget> target;
  };
  struct Dropped {
    KvTarget target;
    absl::Status why;
  };
  struct Renewed {
    uint64_t op = 0;
    std::vector<uint64_t> lost;  // neither open nor committed
  };
  using Effect = std::variant<Opened, CommitDone, Dropped, Renewed>;
  using Effects = std::vector<Effect>;

  explicit ReceiveSessions(const Options& options) : options_(options) {}

  // Errors of Opened: kAborted tombstone; kAlreadyExists; kResourceExhausted; kInvalidArgument.
  // Of CommitDone: kDataLoss, kDeadlineExceeded, kAborted (Dropped came before it); kNotFound;
  // kAlreadyExists for a repeat (the first one has, or will get, the target).
  Effects Step(const Event& event, absl::Time now);

  // Where a block of a frame is to be stored, or nothing: the frame is stale, doubled or not for
  // us, and must not be copied.
  std::optional<BlockId> Expects(uint64_t peer_token, uint64_t session, uint32_t layer,
                                 uint32_t index, uint32_t generation) const;
  bool HasSessionOf(uint64_t peer_token) const;
  // Nothing times out before this.
  absl::Time next_check() const { return next_check_; }
  int sessions() const { return static_cast<int>(sessions_.size()); }
  int tombstones() const { return static_cast<int>(tombstones_.size()); }

 private:
  struct PendingCommit {
    uint64_t op, digest;
    absl::Time deadline;
  };
  struct Session {
    uint64_t peer_token = 0;
    KvTarget target;
    std::vector<uint64_t> checksums;  // [L][B]
    std::vector<bool> arrived;        // [L][B]
    size_t missing = 0;
    absl::Time expires;  // the lease's end, or that of a commit's wait
    std::optional<PendingCommit> commit;
  };
  struct Tombstone {
    uint64_t session, peer_token;
    absl::Status why;  // kAlreadyExists: it was committed
    absl::Time expires;
  };

  void On(const Open& e, absl::Time now, Effects* out);
  void On(const Block& e, absl::Time now, Effects* out);
  void On(const Commit& e, absl::Time now, Effects* out);
  void On(const Cancel& e, absl::Time now, Effects* out);
  void On(const Renew& e, absl::Time now, Effects* out);
  void On(const Tick& e, absl::Time now, Effects* out);
  void On(const Shutdown& e, absl::Time now, Effects* out);
  Session* Find(uint64_t peer_token, uint64_t session);
  // How a session of the peer ended; null: unknown, or long ago.
  const absl::Status* EndOf(uint64_t peer_token, uint64_t session) const;
  size_t At(const Session& s, uint32_t layer, uint32_t index) const;
  void Finish(uint64_t id, absl::Time now, Effects* out);  // all blocks are there: commit
  void Drop(uint64_t id, const absl::Status& why, absl::Time now, Effects* out);
  void Bury(const AttemptKey& key, Tombstone tombstone);
  void CheckBy(absl::Time t) { next_check_ = std::min(next_check_, t); }

  const Options options_;
  uint64_t next_session_ = options_.first_session;
  std::map<uint64_t, Session> sessions_;  // in order: what ends together does so in the same order
  absl::flat_hash_map<AttemptKey, uint64_t> by_key_;
  absl::flat_hash_map<AttemptKey, Tombstone> tombstones_;
  absl::flat_hash_map<uint64_t, AttemptKey> ended_;  // by session, of tombstones that had one
  std::deque<AttemptKey> burials_;                   // oldest first
  absl::Time next_check_ = absl::InfiniteFuture();
};

}  // namespace switchyard

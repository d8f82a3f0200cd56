// engine/scheduler.h: which rows the next step computes, and who owns which KV block. Pure: no
// thread, clock or model. Iteration-level batching (Orca, Yu et al. 2022) over a paged cache
// (PagedAttention, Kwon et al. 2023) with chunked prefill (Sarathi-Serve, Agrawal et al. 2024).
//
// One order rules all: (priority, arrival), smaller first.
//   - A step takes decode rows first, then prompt chunks, then admits from the queue, each in
//   order.
//   - Admission takes the blocks of all tokens at once: a prompt under way never runs out of
//   blocks.
//     Nobody in the queue overtakes the first request that does not fit.
//   - A decode row that needs a block when none is free preempts the last in order behind it: its
//     blocks are freed and it waits, tokens kept, to be recomputed. With nobody behind it, it skips
//     the step. So the first in order always proceeds, unless blocks are out of reach of preemption
//     (held, leased, quarantined, or of prefill_only sequences, which somebody may be sending).
//   - prefill_only sequences take only their prompt's blocks and are never preempted.
#pragma once

#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "engine/sequence.h"
#include "kvcache/block_pool.h"

namespace switchyard {

struct SchedulerOptions {
  int block_tokens = 16;
  int max_num_batched_tokens = 512;
  int prefill_chunk = 256;
  int max_num_seqs = 64;  // running at once; never more than max_num_batched_tokens
  int max_waiting = 1024;
  int max_model_len = 2048;
  int max_logit_rows = 512;  // rows with logits in one step; at least the sequences running at once
};

class Scheduler {
 public:
  // Rows [computed, computed + rows) of a sequence, in the next step.
  struct Chunk {
    Sequence* sequence = nullptr;
    int rows = 0;
    // The last row's logits give the next token.
    bool samples() const { return rows == sequence->remaining(); }
  };

  // `pool` must outlive the scheduler. CHECKs that the options are positive.
  Scheduler(const SchedulerOptions& options, BlockPool* pool);

  // Queues a valid request. kInvalidArgument if its blocks could never fit the pool;
  // kResourceExhausted if the queue is full; kAlreadyExists.
  absl::Status Add(EngineRequest request);
  // Queues a request whose first given tokens lie in leased `blocks`, and whose next token is
  // `first`. Errors as Add; then the blocks are untouched.
  absl::Status Adopt(EngineRequest request, std::span<const BlockId> blocks, TokenId first);
  // Forgets a request in any state and frees its blocks. False if there is none.
  bool Abort(const AttemptKey& key);
  // Forgets a held one. False if it is not held.
  bool Release(const AttemptKey& key);

  // The next step. Valid until the next call of any other method than Commit, Append and Finish.
  // May be empty though requests wait: then HasWork is false until blocks or requests arrive.
  std::span<const Chunk> Schedule();
  // The chunk's KV has been written. Without it, Schedule gives the same rows again.
  void Commit(const Chunk& chunk);
  // A token was sampled for `sequence`, which has no rows left to compute.
  void Append(Sequence& sequence, TokenId token);
  // No more tokens: frees the sequence, or holds it if it is prefill_only. It may be gone after.
  void Finish(Sequence& sequence);

  // Blocks that a hand-off may lease: what is free, less what the first in the queue waits for.
  int Leasable() const;
  // Blocks outside of the scheduler's reach became free.
  void OnBlocksFreed() { stalled_ = false; }

  bool HasWork() const { return !stalled_ && running() + waiting() > 0; }
  bool Contains(const AttemptKey& key) const { return sequences_.contains(key); }
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size() + adopted_.size()); }
  int held() const { return static_cast<int>(held_.size()); }
  uint64_t preemptions() const { return preemptions_; }
  // CHECKs, by walking everything, that sequences and pool agree.
  void CheckInvariants() const;

 private:
  struct InOrder {
    bool operator()(const Sequence* a, const Sequence* b) const;
  };
  using Queue = std::set<Sequence*, InOrder>;
  struct Budget {
    int rows, logits;
  };

  int BlocksFor(int tokens) const;
  absl::Status CheckNew(const EngineRequest& request, int given) const;
  Queue* QueueOf(Sequence::State state);
  void Move(Sequence& sequence, Sequence::State to);
  Sequence& Insert(EngineRequest request, Sequence::State state);
  void Erase(Sequence& sequence);
  void FreeBlocks(Sequence& sequence);
  void Preempt(Sequence& sequence);
  // The last in order that holds blocks, stands behind `sequence` and may be preempted; or null.
  Sequence* VictimBehind(const Sequence& sequence) const;
  // Makes the block table long enough for `tokens`; false if it cannot be.
  bool GrowFor(Sequence& sequence, int tokens);
  // Rows of its next chunk; 0 if the budget is spent.
  int ChunkRows(const Sequence& sequence, const Budget& budget) const;
  void Plan(Sequence& sequence, int rows, Budget* budget);
  void PlanRunning(Budget* budget);
  void Admit(Budget* budget);

  const SchedulerOptions options_;
  BlockPool* const pool_;
  std::unordered_map<AttemptKey, std::unique_ptr<Sequence>, absl::Hash<AttemptKey>> sequences_;
  Queue waiting_, adopted_, running_, held_;
  bool stalled_ = false;  // the last plan was empty and nothing has changed since
  uint64_t arrivals_ = 0, preemptions_ = 0;
  std::vector<Chunk> plan_;
  std::vector<Sequence*> order_;  // scratch: a snapshot of a queue that changes under the loop
};

}  // namespace switchyard

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
//   - A newcomer of higher priority than some that run does not wait for them: it is admitted
//     before the step is planned, and so are KV blocks leased for its hand-off. Where slots or
//     blocks are missing, the newest of the lowest priority give way, if that is enough; none more
//     often than kGiveWayMax times, so that what is urgent delays the rest but never keeps it from
//     its end.
//   - A decode row that needs a block when none is free preempts the last in order behind it: its
//     blocks are freed and it waits, tokens kept, to be recomputed. With nobody behind it, it skips
//     the step. So the first in order always proceeds, unless blocks are out of reach of preemption
//     (held, leased, quarantined, or of prefill_only sequences, which somebody may be sending).
//   - Blocks that hold a prompt's first tokens already are shared (kvcache/prefix_index.h): what is
//     computed begins behind them. At least the last token is computed, for its logits; a request
//     that wants scores of its prompt computes all of it.
//   - prefill_only sequences take only their prompt's blocks and are never preempted.
#pragma once

#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "common/compute_pool.h"
#include "engine/sequence.h"
#include "kvcache/block_pool.h"
#include "kvcache/prefix_index.h"

namespace switchyard {

inline constexpr int kGiveWayMax = 3;

struct SchedulerOptions {
  int block_tokens = 16;
  int max_num_batched_tokens = 512;
  int prefill_chunk = 256;
  int max_num_seqs = 64;  // running at once; never more than max_num_batched_tokens
  int max_waiting = 1024;
  int max_model_len = 2048;
  int max_logit_rows = 512;  // rows with logits in one step; at least the sequences running at once
  bool prefix_caching = true;
  uint64_t prefix_seed = 0;  // PrefixIndex
  // A token has other KV in a prompt than where it was generated (ModelOptions::expands_prompts).
  bool by_class = false;
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
  // Queues a request whose first given tokens lie in `blocks`, the first `lent` of which LendPrefix
  // gave and the rest of which is leased, and whose next token is `first`. Errors as Add; then the
  // blocks are untouched.
  absl::Status Adopt(EngineRequest request, std::span<const BlockId> blocks, int lent,
                     TokenId first);
  // Blocks of the cache that hold the beginning of `tokens`, the first `prompt` of which are a
  // prompt's and the others generated, for Adopt or ReturnPrefix.
  std::vector<BlockId> LendPrefix(std::span<const TokenId> tokens, size_t prompt,
                                  std::string_view salt);
  void ReturnPrefix(std::span<const BlockId> blocks);
  // Forgets a request in any state and frees its blocks. False if there is none.
  bool Abort(const AttemptKey& key);
  // Forgets a held one. False if it is not held.
  bool Release(const AttemptKey& key);

  // The next step. Valid until the next call of any other method than Commit, Append and Finish.
  // May be empty though requests wait: then HasWork is false until blocks or requests arrive.
  std::span<const Chunk> Schedule();
  // The chunk's KV has been written, and its full blocks may be shared from now on. Without it,
  // Schedule gives the same rows again.
  void Commit(const Chunk& chunk);
  // A token was sampled for `sequence`, which has no rows left to compute.
  void Append(Sequence& sequence, TokenId token);
  // No more tokens: frees the sequence, or holds it if it is prefill_only. It may be gone after.
  void Finish(Sequence& sequence);

  // Ends all that wait or run, since the KV that was computed is lost: `ended` hears of each. What
  // the cache held is forgotten. Those that are prefill_only and ran keep their blocks until Abort.
  void EndAll(FunctionRef<void(const Sequence&)> ended);

  // Blocks that the hand-off of a request of this priority may lease: what is available, less what
  // the first in the queue waits for, unless that one is less urgent.
  int Leasable(int priority) const;
  // Preempts running requests of lower priority, if that makes so many blocks leasable.
  void MakeLeasable(int blocks, int priority);
  // Blocks outside of the scheduler's reach became free.
  void OnBlocksFreed() { stalled_ = false; }

  bool HasWork() const { return !stalled_ && running() + waiting() > 0; }
  bool Contains(const AttemptKey& key) const { return sequences_.contains(key); }
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size() + adopted_.size()); }
  int held() const { return static_cast<int>(held_.size()); }
  uint64_t preemptions() const { return preemptions_; }
  // Tokens of admitted requests that were looked for in the cache, and those found.
  uint64_t prefix_queries() const { return prefix_queries_; }
  uint64_t prefix_hits() const { return prefix_hits_; }
  // CHECKs, by walking everything, that sequences and pool agree.
  void CheckInvariants() const;

 private:
  struct InOrder {
    bool operator()(const Sequence* a, const Sequence* b) const;
  };
  using Queue = std::set<Sequence*, InOrder>;
  struct Budget {
    int rows, logits;
    int expanded = 0;  // tokens that the chunks planned so far expand
  };

  int BlocksFor(int tokens) const;
  bool Expands(const Sequence& s) const;  // its next chunk its whole context
  absl::Status CheckNew(const EngineRequest& request, int given) const;
  Queue* QueueOf(Sequence::State state);
  void Move(Sequence& sequence, Sequence::State to);
  Sequence& Insert(EngineRequest request, Sequence::State state);
  void Erase(Sequence& sequence);
  void FreeBlocks(Sequence& sequence);
  // Of no tokens: another one after each loss of the KV, so that nothing of before is found.
  PrefixHash RootOf(std::string_view salt) const;
  // Of block `index` of `tokens`, all of which are known, and those before it, whose is `before`.
  PrefixHash HashOf(PrefixHash before, std::span<const TokenId> tokens, size_t prompt,
                    size_t index) const;
  // The hashes of its first `blocks` blocks, all of whose tokens are known.
  std::span<const PrefixHash> HashesOf(Sequence& sequence, int blocks);
  // What of a waiting sequence is in the cache.
  PrefixIndex::Hit FindPrefix(Sequence& sequence);
  // A prompt that is no less urgent and being computed will leave this block of `sequence`: samples
  // of one prompt that come together wait for the first of them instead of computing the same.
  bool SoonShared(const Sequence& sequence, int block) const;
  void TakePrefix(Sequence& sequence, int blocks);
  // Full blocks of [from, computed) become shareable.
  void SharePrefix(Sequence& sequence, int from);
  void Preempt(Sequence& sequence);
  // Who may give way to a newcomer of this priority, the last in order first.
  std::vector<Sequence*> LessUrgent(int priority) const;
  // Preempts as many of these as it takes until `slots` and `blocks` are free; for each that ran
  // `growth` blocks less are wanted. False, and nothing happens, if all of them would not do.
  bool GiveWay(int priority, int slots, int blocks, int growth);
  int FreeSlots() const { return options_.max_num_seqs - running(); }
  // Running sequences that will want another block.
  int Growing() const;
  // Adopted ones, and urgent ones from the queue: before the step is planned.
  void AdmitAdopted();
  void AdmitUrgent();
  // If nobody can go on since some have slots and an adopted one, ahead of them, has the blocks:
  // the last in order gives back its own. False if that is not it.
  bool Untangle();
  // Blocks to take for a waiting sequence with that much in the cache.
  int Wanted(const Sequence& sequence, const PrefixIndex::Hit& hit) const {
    return BlocksFor(sequence.length()) - hit.blocks + hit.cached;
  }
  void Start(Sequence& sequence, const PrefixIndex::Hit& hit);
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
  PrefixIndex prefixes_;
  int32_t kv_lost_ = 0;  // how often
  int lent_ = 0;         // references that LendPrefix gave and nobody returned or adopted
  uint64_t arrivals_ = 0, preemptions_ = 0, prefix_queries_ = 0, prefix_hits_ = 0;
  std::vector<Chunk> plan_;
  std::vector<Sequence*> order_;  // scratch: a snapshot of a queue that changes under the loop
};

}  // namespace switchyard

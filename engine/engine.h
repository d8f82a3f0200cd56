// engine/engine.h: continuous batching on one rank: scheduler, block pool and model under one
// owner. Not thread-safe: one thread calls everything (engine_thread.h runs one). Knows nothing of
// prefill or decode ranks: it can stop a request after its first token (prefill_only), and start
// one whose KV came from elsewhere (Reserve, Adopt).
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/request.h"
#include "engine/step_group.h"
#include "kvcache/block_pool.h"
#include "kvcache/layout.h"
#include "model/model.h"

namespace switchyard {

struct EngineOptions {
  int max_model_len = 0;             // 0: the model's, or what the KV blocks hold if that is less
  int max_num_batched_tokens = 512;  // step budget: rows of one step
  int prefill_chunk = 256;           // prompt rows of one request in one step at most
  int block_size = 16;               // tokens per KV block
  int kv_blocks = 0;                 // 0: enough for max_num_seqs · max_model_len, at most 1 GiB
  int max_num_seqs = 64;             // running at once
  int max_waiting = 1024;            // queued at once; more are refused with kResourceExhausted
  bool prefix_caching = true;        // share the KV of prompts that begin alike
  uint64_t prefix_seed = 0;          // PrefixIndex's: random in a process that others send to
};

// Blocks for KV that a peer will write. Index i holds tokens [i·bt, (i+1)·bt). Leading blocks of
// generation 0 hold their tokens already and are shared with others; the rest is leased.
struct KvReservation {
  std::vector<BlockId> blocks;
  std::vector<uint32_t> generations;

  size_t shared() const {
    return static_cast<size_t>(std::count(generations.begin(), generations.end(), 0u));
  }
};

// Rows of one sequence whose KV of one layer is now final; told during Step to whoever sends KV
// away. Valid during the call only.
struct KvProgress {
  const AttemptKey& key;
  int layer = 0;
  int first_token = 0, tokens = 0;  // written in this step; at first also what the cache had
  int prompt_tokens = 0;            // prompt_ids + generated_ids: the whole that will be written
  std::span<const BlockId> blocks;  // block table
};

struct EngineStats {
  int running = 0, waiting = 0, held = 0;  // held: prefill_only, finished, not yet released
  uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, preemptions = 0;
  uint64_t prefix_queries = 0, prefix_hits = 0;  // tokens
  BlockPool::Counts blocks;
};

class Engine {
 public:
  // `model` must outlive the engine, and so must `group`: the ranks that it steps together with, or
  // null. Errors: kInvalidArgument names the option, its value and the limit.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(Model* model, const EngineOptions& options,
                                                        StepGroup* group = nullptr);
  virtual ~Engine() = default;

  // Queues a request. Errors (the request is not taken): kInvalidArgument for lengths, ids outside
  // the vocabulary or parameters out of range; kResourceExhausted if the queue is full;
  // kAlreadyExists.
  virtual absl::Status Add(EngineRequest request) = 0;
  // Ends an attempt and frees what it holds, held blocks too. Unknown keys are ignored (it may have
  // just finished). No output follows.
  virtual void Abort(const AttemptKey& key) = 0;

  // Takes blocks for `tokens` tokens. If they are known (`ids` of that size, `prompt_tokens` of the
  // prompt and then generated ones, with the request's salt), those that are in the cache are
  // shared. Running requests of lower priority are preempted for it. kResourceExhausted if there
  // are not enough: blocks that the first waiting request of this priority or a higher one needs
  // count as taken. kInvalidArgument outside [1, max_model_len).
  virtual absl::StatusOr<KvReservation> Reserve(int tokens, std::span<const TokenId> ids,
                                                size_t prompt_tokens, std::string_view cache_salt,
                                                int priority) = 0;
  absl::StatusOr<KvReservation> Reserve(int tokens) { return Reserve(tokens, {}, 0, {}, 0); }
  // Gives the blocks back; leased ones to `free`, or to quarantine while a peer may still write
  // them.
  virtual void ReleaseReservation(const KvReservation& reservation, bool quarantine) = 0;
  virtual void Unquarantine(const KvReservation& reservation) = 0;
  // Starts decoding a request whose prompt KV lies in `reservation` (all of prompt_ids +
  // generated_ids) and whose next token `first` was sampled by the peer: index
  // generated_ids.size(). No output is made for `first` itself. Errors as Add, and
  // kInvalidArgument if `first` ends the request; then the reservation is still the caller's.
  // prompt_logprobs is ignored: the peer has the logits.
  virtual absl::Status Adopt(EngineRequest request, const KvReservation& reservation,
                             TokenId first) = 0;
  // Frees the blocks of a finished prefill_only request (kError included). Unknown keys are
  // ignored.
  virtual void Release(const AttemptKey& key) = 0;

  // True if Step would have something to compute, for this rank or for its group. False while all
  // that waits needs blocks that only Abort, Release, ReleaseReservation or Unquarantine can free.
  virtual bool HasWork() const = 0;
  // Schedules and computes one step; returns its outputs. A failure that concerns one request is an
  // output with kError; a failure of the rank itself is the status, and the step may be run again.
  virtual absl::StatusOr<std::vector<EngineOutput>> Step() = 0;

  // Called during Step for prefill_only requests, layer by layer. May be empty.
  virtual void SetKvProgress(std::function<void(const KvProgress&)> callback) = 0;

  virtual KvStorage& kv() = 0;
  virtual const BlockPool& pool() const = 0;
  virtual EngineStats stats() const = 0;
  // Layers computed so far. Thread-safe, unlike the rest: a stuck engine cannot be asked.
  virtual uint64_t progress() const = 0;
  virtual const EngineOptions& options() const = 0;
  virtual const Model& model() const = 0;
};

}  // namespace switchyard

// kvcache/block_pool.h: which block is whose. Pure bookkeeping: owned by the engine thread, no I/O.
//
//          Allocate                    Release (count 0)
//   free ────────────► owned (count 1…) ────────────► free, or cached if Keep was called
//     │  Lease                 ▲ Adopt                          │ AddReference ► owned
//     └────────► leased ───────┘                                │ Allocate, Lease: when nothing is
//                  │ Release                                    ▼ free, the one unused for longest
//                  ├────────► free    Quarantine ► quarantined ─► free
// Invariant: free + cached + owned + leased + quarantined = total. A block that somebody uses is
// never taken away.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace switchyard {

class BlockPool {
 public:
  struct Counts {
    int free = 0, cached = 0, owned = 0, leased = 0, quarantined = 0, total = 0;
    int available() const { return free + cached; }  // for Allocate and Lease
    friend bool operator==(const Counts&, const Counts&) = default;
  };

  explicit BlockPool(int blocks);

  // n blocks with count 1, or kResourceExhausted and no change. n may be 0.
  absl::StatusOr<std::vector<BlockId>> Allocate(int n);
  // n blocks for a hand-off that a peer will fill: nobody reads them before Adopt.
  absl::StatusOr<std::vector<BlockId>> Lease(int n);
  // leased -> owned with count 1.
  void Adopt(std::span<const BlockId> blocks);
  // One more user of an owned block, or the first one of a cached block.
  void AddReference(BlockId block);
  // One user less; the last one frees an owned block. A leased block becomes free.
  void Release(std::span<const BlockId> blocks);
  // What an owned block holds is worth keeping when nobody uses it any more.
  void Keep(BlockId block);
  // Called when a kept block is taken for something else. At most one; empty at first.
  void OnEvict(std::function<void(BlockId)> evicted) { evicted_ = std::move(evicted); }
  // leased -> quarantined: a writer may still hold the address. Unquarantine once it cannot.
  void Quarantine(std::span<const BlockId> blocks);
  void Unquarantine(std::span<const BlockId> blocks);

  // Changes each time the block leaves `free`; starts at 1. A hand-off frame carries it as a fence.
  uint32_t generation(BlockId block) const;
  int reference_count(BlockId block) const;
  bool leased(BlockId block) const;
  const Counts& counts() const { return counts_; }
  // CHECKs the invariant by walking every block.
  void CheckInvariants() const;

 private:
  enum class State : uint8_t { kFree, kCached, kOwned, kLeased, kQuarantined };
  struct Block {
    State state = State::kFree;
    bool keep = false;
    int32_t older = -1, newer = -1;  // of the cached ones; −1: none
    int32_t references = 0;
    uint32_t generation = 0;
  };
  const Block& at(BlockId b) const;
  Block& at(BlockId b);
  absl::StatusOr<std::vector<BlockId>> Take(int n, State state);
  void ToFree(BlockId b, int* from);
  void ToCached(BlockId b);
  void Unlink(BlockId b);
  void EvictOldest();

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;          // a stack: the most recently used first, warm in cache
  int32_t oldest_ = -1, newest_ = -1;  // of the cached blocks, by the time of their last use
  std::function<void(BlockId)> evicted_;
  Counts counts_;
};

}  // namespace switchyard

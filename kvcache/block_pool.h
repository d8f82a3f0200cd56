// kvcache/block_pool.h: which block is whose. Pure bookkeeping: owned by the engine thread, no I/O.
//
//          Allocate                    Release (count 0)
//   free ────────────► owned (count 1…) ────────────► free
//     │  Lease                 ▲ Adopt
//     └────────► leased ───────┘
//                  │ Release                         Unquarantine
//                  ├────────► free     Quarantine ► quarantined ─► free
// Invariant: free + owned + leased + quarantined = total. (A `cached` state joins them with the
// prefix cache.)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace switchyard {

class BlockPool {
 public:
  struct Counts {
    int free = 0, owned = 0, leased = 0, quarantined = 0, total = 0;
    friend bool operator==(const Counts&, const Counts&) = default;
  };

  explicit BlockPool(int blocks);

  // n blocks with count 1, or kResourceExhausted and no change. n may be 0.
  absl::StatusOr<std::vector<BlockId>> Allocate(int n);
  // n blocks for a hand-off that a peer will fill: nobody reads them before Adopt.
  absl::StatusOr<std::vector<BlockId>> Lease(int n);
  // leased -> owned with count 1.
  void Adopt(std::span<const BlockId> blocks);
  // One more user of an owned block.
  void AddReference(BlockId block);
  // One user less; the last one frees an owned block. A leased block becomes free.
  void Release(std::span<const BlockId> blocks);
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
  enum class State : uint8_t { kFree, kOwned, kLeased, kQuarantined };
  struct Block {
    State state = State::kFree;
    int32_t references = 0;
    uint32_t generation = 0;
  };
  const Block& at(BlockId b) const;
  Block& at(BlockId b);
  absl::StatusOr<std::vector<BlockId>> Take(int n, State state);
  void ToFree(BlockId b, int* from);

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;  // a stack: the most recently used first, warm in cache
  Counts counts_;
};

}  // namespace switchyard

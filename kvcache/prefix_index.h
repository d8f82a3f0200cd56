// kvcache/prefix_index.h: which full KV blocks hold which tokens, so that a request whose prompt
// begins with tokens that were computed before need not compute them again. Owned by the engine
// thread; no I/O.
//
// A block is found by the hash of all tokens from the sequence's begin to the block's end (a chain,
// as vLLM's automatic prefix caching): its keys and values depend on all of them, and on nothing
// else (docs/numerics.md). Only full blocks are shared, and nobody writes a full block again: a
// sequence that goes on writes blocks of its own.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/ids.h"
#include "kvcache/block_pool.h"

namespace switchyard {

// Of tokens [0, n·block_tokens), and of what else KV depends on.
struct PrefixHash {
  uint64_t low = 0, high = 0;
  friend bool operator==(const PrefixHash&, const PrefixHash&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const PrefixHash& p) {
    return H::combine(std::move(h), p.low, p.high);
  }
};

class PrefixIndex {
 public:
  // `pool` must outlive the index, which is told when the pool takes a block away. `seed`: random
  // per process, so that nobody can choose tokens whose hashes meet.
  PrefixIndex(BlockPool* pool, uint64_t seed);
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // Of no tokens. Requests of different `salt` share nothing.
  PrefixHash Root(std::string_view salt) const;
  // Of the tokens of `prefix` and those of the next block.
  static PrefixHash Next(const PrefixHash& prefix, std::span<const TokenId> block);

  struct Hit {
    int blocks = 0;  // how many leading hashes have a block here
    int cached = 0;  // of these, blocks that no sequence uses: Take makes them count as owned
  };
  Hit Find(std::span<const PrefixHash> hashes) const;
  // The blocks of the hashes, with one more reference each, which the caller must Release. All
  // hashes have been found.
  std::vector<BlockId> Take(std::span<const PrefixHash> hashes);
  // `block`, owned by the caller and full of final KV, holds the tokens of `hash`. If another block
  // does already, that one stays.
  void Insert(const PrefixHash& hash, BlockId block);

  size_t size() const { return blocks_.size(); }

 private:
  void Forget(BlockId block);

  BlockPool* const pool_;
  const uint64_t seed_;
  absl::flat_hash_map<PrefixHash, BlockId> blocks_;
  std::vector<std::optional<PrefixHash>> hashes_;  // by block
};

}  // namespace switchyard

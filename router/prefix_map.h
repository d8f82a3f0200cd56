// router/prefix_map.h: which workers probably have the KV of a prompt's beginning: those that were
// given a prompt that begins alike. A hint only, for the choice of workers: what a worker has
// dropped since, or has from elsewhere, is not known here. Bounded; pure; the core's thread.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cluster/worker_id.h"
#include "common/ids.h"

namespace switchyard {

class PrefixMap {
 public:
  // [i] stands for the first (i + 1) · block_tokens tokens.
  using Chain = std::vector<uint64_t>;

  // `blocks_max`: entries; those unused for longest go first.
  explicit PrefixMap(size_t blocks_max) : blocks_max_(blocks_max) {}

  // Of the full blocks of `tokens`, the first kChainMax at most.
  static Chain ChainOf(std::string_view salt, std::span<const TokenId> tokens, int block_tokens);

  // `worker` computes, or gets, these blocks.
  void Add(const Chain& chain, WorkerId worker);
  // How many leading blocks each worker has; workers without any are left out.
  std::map<WorkerId, int> Find(const Chain& chain) const;

  size_t size() const { return entries_.size(); }

 private:
  static constexpr size_t kChainMax = 2048, kWorkersMax = 4;
  struct Entry {
    std::vector<WorkerId> workers;  // the latest first
    std::list<uint64_t>::iterator place;
  };

  const size_t blocks_max_;
  absl::flat_hash_map<uint64_t, Entry> entries_;
  std::list<uint64_t> by_use_;  // the latest first
};

}  // namespace switchyard

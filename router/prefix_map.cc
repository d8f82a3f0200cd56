#include "router/prefix_map.h"

#include <algorithm>

#include "absl/hash/hash.h"

namespace switchyard {

PrefixMap::Chain PrefixMap::ChainOf(std::string_view salt, std::span<const TokenId> tokens,
                                    int block_tokens) {
  const auto bt = static_cast<size_t>(block_tokens);
  Chain chain;
  uint64_t hash = absl::HashOf(salt);
  while (chain.size() < kChainMax && tokens.size() >= (chain.size() + 1) * bt) {
    const std::span<const TokenId> block = tokens.subspan(chain.size() * bt, bt);
    hash = absl::HashOf(hash, absl::MakeConstSpan(block.data(), block.size()));
    chain.push_back(hash);
  }
  return chain;
}

void PrefixMap::Add(const Chain& chain, WorkerId worker) {
  // From the last to the first: the beginning, which more prompts share, stays for longest.
  for (auto hash = chain.rbegin(); hash != chain.rend(); ++hash) {
    auto [it, is_new] = entries_.try_emplace(*hash);
    Entry& entry = it->second;
    if (is_new) {
      entry.place = by_use_.insert(by_use_.begin(), *hash);
    } else {
      by_use_.splice(by_use_.begin(), by_use_, entry.place);
    }
    std::erase(entry.workers, worker);
    entry.workers.insert(entry.workers.begin(), worker);
    if (entry.workers.size() > kWorkersMax) entry.workers.pop_back();
  }
  while (entries_.size() > blocks_max_) {
    entries_.erase(by_use_.back());
    by_use_.pop_back();
  }
}

std::map<WorkerId, int> PrefixMap::Find(const Chain& chain) const {
  std::map<WorkerId, int> blocks;
  for (size_t i = 0; i < chain.size(); ++i) {
    const auto it = entries_.find(chain[i]);
    if (it == entries_.end()) break;
    bool any = false;
    for (const WorkerId worker : it->second.workers) {
      int& count = blocks[worker];
      if (count != static_cast<int>(i)) continue;  // it lacks one before
      ++count;
      any = true;
    }
    if (!any) break;
  }
  std::erase_if(blocks, [](const auto& b) { return b.second == 0; });
  return blocks;
}

}  // namespace switchyard

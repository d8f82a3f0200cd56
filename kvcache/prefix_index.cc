#include "kvcache/prefix_index.h"

#include <xxhash.h>

#include "common/check.h"

namespace switchyard {
namespace {

PrefixHash From(XXH128_hash_t h) { return {.low = h.low64, .high = h.high64}; }

}  // namespace

PrefixIndex::PrefixIndex(BlockPool* pool, uint64_t seed)
    : pool_(pool), seed_(seed), hashes_(static_cast<size_t>(pool->counts().total)) {
  pool_->OnEvict([this](BlockId block) { Forget(block); });
}

PrefixHash PrefixIndex::Root(std::string_view salt) const {
  return From(XXH3_128bits_withSeed(salt.data(), salt.size(), seed_));
}

PrefixHash PrefixIndex::Next(const PrefixHash& prefix, std::span<const TokenId> block) {
  const PrefixHash link[2] = {
      prefix, From(XXH3_128bits_withSeed(block.data(), block.size_bytes(), prefix.low))};
  return From(XXH3_128bits_withSeed(link, sizeof(link), prefix.high));
}

PrefixIndex::Hit PrefixIndex::Find(std::span<const PrefixHash> hashes) const {
  Hit hit;
  for (const PrefixHash& hash : hashes) {
    const auto it = blocks_.find(hash);
    if (it == blocks_.end()) break;
    ++hit.blocks;
    hit.cached += pool_->reference_count(it->second) == 0;
  }
  return hit;
}

std::vector<BlockId> PrefixIndex::Take(std::span<const PrefixHash> hashes) {
  std::vector<BlockId> out;
  out.reserve(hashes.size());
  for (const PrefixHash& hash : hashes) {
    out.push_back(blocks_.at(hash));
    pool_->AddReference(out.back());
  }
  return out;
}

void PrefixIndex::Insert(const PrefixHash& hash, BlockId block) {
  std::optional<PrefixHash>& known = hashes_.at(static_cast<size_t>(block.value()));
  SY_CHECK_MSG(!known.has_value() || *known == hash, "block ", block.value());
  if (!blocks_.emplace(hash, block).second) return;
  known = hash;
  pool_->Keep(block);
}

void PrefixIndex::Forget(BlockId block) {
  std::optional<PrefixHash>& hash = hashes_.at(static_cast<size_t>(block.value()));
  SY_CHECK_MSG(hash.has_value(), "block ", block.value());
  blocks_.erase(*hash);
  hash.reset();
}

}  // namespace switchyard

#include "kvcache/block_pool.h"

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace switchyard {

BlockPool::BlockPool(int blocks) {
  SY_CHECK(blocks >= 0);
  blocks_.resize(static_cast<size_t>(blocks));
  free_.reserve(blocks_.size());
  for (int i = blocks; i-- > 0;) free_.push_back(BlockId(i));
  counts_.free = counts_.total = blocks;
}

const BlockPool::Block& BlockPool::at(BlockId b) const {
  SY_CHECK_MSG(b.value() >= 0 && static_cast<size_t>(b.value()) < blocks_.size(), "block ",
               b.value(), " of ", blocks_.size());
  return blocks_[static_cast<size_t>(b.value())];
}

BlockPool::Block& BlockPool::at(BlockId b) {
  return const_cast<Block&>(static_cast<const BlockPool*>(this)->at(b));
}

absl::StatusOr<std::vector<BlockId>> BlockPool::Take(int n, State state) {
  SY_CHECK_MSG(n >= 0, n);
  if (n > counts_.available()) {
    return absl::ResourceExhaustedError(absl::StrCat(n, " KV blocks wanted, ", counts_.available(),
                                                     " of ", counts_.total, " are free"));
  }
  while (counts_.free < n) EvictOldest();
  std::vector<BlockId> taken(free_.rbegin(), free_.rbegin() + n);
  free_.resize(free_.size() - static_cast<size_t>(n));
  for (BlockId b : taken) {
    Block& block = at(b);
    SY_CHECK(block.state == State::kFree);
    block.state = state;
    block.references = state == State::kOwned ? 1 : 0;
    if (++block.generation == 0) block.generation = 1;  // 0 is never a valid fence
  }
  counts_.free -= n;
  (state == State::kOwned ? counts_.owned : counts_.leased) += n;
  return taken;
}

absl::StatusOr<std::vector<BlockId>> BlockPool::Allocate(int n) { return Take(n, State::kOwned); }

absl::StatusOr<std::vector<BlockId>> BlockPool::Lease(int n) { return Take(n, State::kLeased); }

void BlockPool::Adopt(std::span<const BlockId> blocks) {
  for (BlockId b : blocks) {
    Block& block = at(b);
    SY_CHECK_MSG(block.state == State::kLeased, "block ", b.value());
    block.state = State::kOwned;
    block.references = 1;
    --counts_.leased;
    ++counts_.owned;
  }
}

void BlockPool::AddReference(BlockId b) {
  Block& block = at(b);
  if (block.state == State::kCached) {
    Unlink(b);
    block.state = State::kOwned;
    --counts_.cached;
    ++counts_.owned;
  }
  SY_CHECK_MSG(block.state == State::kOwned, "block ", b.value());
  ++block.references;
}

void BlockPool::Keep(BlockId b) {
  Block& block = at(b);
  SY_CHECK_MSG(block.state == State::kOwned, "block ", b.value());
  block.keep = true;
}

void BlockPool::ToCached(BlockId b) {
  Block& block = at(b);
  block.state = State::kCached;
  block.older = newest_;
  block.newer = -1;
  (newest_ < 0 ? oldest_ : blocks_[static_cast<size_t>(newest_)].newer) = b.value();
  newest_ = b.value();
  --counts_.owned;
  ++counts_.cached;
}

void BlockPool::Unlink(BlockId b) {
  const Block& block = at(b);
  (block.older < 0 ? oldest_ : blocks_[static_cast<size_t>(block.older)].newer) = block.newer;
  (block.newer < 0 ? newest_ : blocks_[static_cast<size_t>(block.newer)].older) = block.older;
}

void BlockPool::EvictOldest() {
  const BlockId b(oldest_);
  SY_CHECK(at(b).state == State::kCached);
  Unlink(b);
  at(b).keep = false;
  ToFree(b, &counts_.cached);
  if (evicted_) evicted_(b);
}

void BlockPool::ToFree(BlockId b, int* from) {
  Block& block = at(b);
  block.state = State::kFree;
  block.references = 0;
  --*from;
  ++counts_.free;
  free_.push_back(b);
}

void BlockPool::Release(std::span<const BlockId> blocks) {
  for (BlockId b : blocks) {
    Block& block = at(b);
    if (block.state == State::kLeased) {
      ToFree(b, &counts_.leased);
      continue;
    }
    SY_CHECK_MSG(block.state == State::kOwned, "block ", b.value());
    if (--block.references > 0) continue;
    if (block.keep) {
      ToCached(b);
    } else {
      ToFree(b, &counts_.owned);
    }
  }
}

void BlockPool::Quarantine(std::span<const BlockId> blocks) {
  for (BlockId b : blocks) {
    Block& block = at(b);
    SY_CHECK_MSG(block.state == State::kLeased, "block ", b.value());
    block.state = State::kQuarantined;
    --counts_.leased;
    ++counts_.quarantined;
  }
}

void BlockPool::Unquarantine(std::span<const BlockId> blocks) {
  for (BlockId b : blocks) {
    SY_CHECK_MSG(at(b).state == State::kQuarantined, "block ", b.value());
    ToFree(b, &counts_.quarantined);
  }
}

uint32_t BlockPool::generation(BlockId b) const { return at(b).generation; }

int BlockPool::reference_count(BlockId b) const { return at(b).references; }

bool BlockPool::leased(BlockId b) const { return at(b).state == State::kLeased; }

void BlockPool::CheckInvariants() const {
  Counts walked;
  walked.total = static_cast<int>(blocks_.size());
  for (const Block& b : blocks_) {
    SY_CHECK((b.state == State::kOwned) == (b.references > 0));
    SY_CHECK(b.references >= 0);
    switch (b.state) {
      case State::kFree:
        ++walked.free;
        break;
      case State::kCached:
        SY_CHECK(b.keep);
        ++walked.cached;
        break;
      case State::kOwned:
        ++walked.owned;
        break;
      case State::kLeased:
        ++walked.leased;
        break;
      case State::kQuarantined:
        ++walked.quarantined;
        break;
    }
  }
  SY_CHECK(walked == counts_);
  int cached = 0;
  for (int32_t i = oldest_; i >= 0; i = blocks_[static_cast<size_t>(i)].newer) {
    SY_CHECK_MSG(at(BlockId(i)).state == State::kCached, "block ", i);
    ++cached;
  }
  SY_CHECK(cached == counts_.cached);
  SY_CHECK(free_.size() == static_cast<size_t>(counts_.free));
  for (BlockId b : free_) SY_CHECK_MSG(at(b).state == State::kFree, "block ", b.value());
}

}  // namespace switchyard

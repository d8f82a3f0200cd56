// text/merge_table.h: the merges of a BPE model, by pair of tokens. Open addressing: a lookup, of
// which encoding makes two for each merge, reads one line of memory as a rule.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/ids.h"

namespace switchyard {

struct MergeRule {
  static constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
  uint32_t rank = kNoRank;  // the lowest is merged first; kNoRank: the pair is never merged
  TokenId merged = -1;
};

class MergeTable {
 public:
  // Holds `pairs` at most. A power of two of places, half of which stay empty: probes are short.
  explicit MergeTable(size_t pairs = 0)
      : places_(std::bit_ceil(2 * pairs + 2)), shift_(std::countl_zero(places_.size()) + 1) {}

  void Set(TokenId left, TokenId right, MergeRule rule) {
    Place& place = places_[Find(Key(left, right))];
    place = {Key(left, right), rule};
  }
  MergeRule Get(TokenId left, TokenId right) const { return places_[Find(Key(left, right))].rule; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative
  struct Place {
    uint64_t key = kEmpty;
    MergeRule rule;
  };
  static uint64_t Key(TokenId left, TokenId right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }
  // Of the key, or of the empty place where it would be.
  size_t Find(uint64_t key) const {
    const uint64_t mixed = (key ^ key >> 29) * 0x9E3779B97F4A7C15u;
    size_t i = static_cast<size_t>(mixed >> shift_);
    while (places_[i].key != key && places_[i].key != kEmpty) i = (i + 1) & (places_.size() - 1);
    return i;
  }

  std::vector<Place> places_;
  int shift_;
};

}  // namespace switchyard

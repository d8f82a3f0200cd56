#include "moe/ep_overlap.h"

#include <algorithm>
#include <bit>

namespace switchyard {
namespace {

// Of each way before one is chosen, and of the slower one at each later look: enough to move the
// median of what is kept.
constexpr uint32_t kTries = 3;
// Steps between two looks: at first, and at most, doubled by each look that changes nothing.
constexpr uint32_t kProbeFirst = 64, kProbeLast = 1024;

}  // namespace

uint64_t OverlapPolicy::Class::Way::Median() const {
  std::array<uint64_t, 5> sorted = costs;
  const size_t n = std::min<size_t>(count, sorted.size());
  std::sort(sorted.begin(), sorted.begin() + n);
  return sorted[n / 2];
}

bool OverlapPolicy::Class::Next() {
  if (ways[1].count < kTries) return ways[0].count > ways[1].count;
  const uint64_t whole = ways[0].Median(), two = ways[1].Median();
  // The simpler way unless the other gains 3 %; once chosen, the other stays until it loses.
  const bool better = split ? two < whole : two * 100 < whole * 97;
  if (better != split || probe_every == 0) {
    split = better;
    to_probe = probe_every = kProbeFirst;
  }
  if (to_probe == 0) to_probe = probe_every = std::min(2 * probe_every, kProbeLast);
  return --to_probe < kTries ? !split : split;
}

bool OverlapPolicy::Split(std::span<const StepHeader> headers) {
  uint32_t rows = 0, micros = 0;
  for (const StepHeader& h : headers) {
    rows = std::max(rows, h.rows);
    micros = std::max(micros, h.micros);
  }
  if (open_ != nullptr) open_->ways[open_split_].Add(uint64_t{micros} * 256 / open_rows_);
  open_ = nullptr;
  if (mode_ != EpOverlap::kAuto) return mode_ == EpOverlap::kOn && rows > 0;
  if (rows < kRowsMin) return false;
  open_ = &classes_[std::bit_width(rows) - 1];
  open_rows_ = rows;
  open_split_ = open_->Next();
  return open_split_;
}

}  // namespace switchyard

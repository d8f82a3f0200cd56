// bench/histogram.h: durations in constant memory. Buckets are log-linear (Gil Tene's HDR idea):
// each power of two of nanoseconds has 128 of equal width, so that a value is known to ±0.4 %.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace switchyard {

// Not thread-safe. 58 KiB.
class LatencyHistogram {
 public:
  // Negative values count as 0.
  void Add(absl::Duration value);

  uint64_t count() const { return count_; }
  double mean_ms() const { return count_ == 0 ? 0 : sum_ms_ / static_cast<double>(count_); }
  double std_ms() const;  // of the population
  // Linear interpolation between closest ranks, as numpy's default; each of the two is known to
  // ±0.4 %. Empty: 0. `percent` in [0, 100].
  double PercentileMs(double percent) const;
  // Non-empty buckets, ascending: middle in ms, count.
  std::vector<std::pair<double, uint64_t>> Buckets() const;

 private:
  static constexpr int kBits = 7;  // of a bucket's index within its power of two
  static constexpr int kBuckets = (64 - kBits + 1) << kBits;
  static int IndexOf(uint64_t ns);
  static double MiddleNs(int index);
  double AtRank(uint64_t rank) const;  // from 0, ns

  std::array<uint64_t, kBuckets> buckets_ = {};
  uint64_t count_ = 0, min_ns_ = UINT64_MAX, max_ns_ = 0;
  double sum_ms_ = 0, squares_ms_ = 0;
};

}  // namespace switchyard

#include "bench/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace switchyard {

int LatencyHistogram::IndexOf(uint64_t ns) {
  // Below 2^kBits a bucket is one value.
  const int shift = std::max(0, static_cast<int>(std::bit_width(ns)) - kBits - 1);
  return (shift << kBits) + static_cast<int>(ns >> shift);
}

double LatencyHistogram::MiddleNs(int index) {
  const int shift = std::max(0, (index >> kBits) - 1);
  const double low = std::ldexp(static_cast<double>(index - (shift << kBits)), shift);
  return low + (std::ldexp(1.0, shift) - 1) / 2;
}

void LatencyHistogram::Add(absl::Duration value) {
  const auto ns = static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Nanoseconds(value)));
  ++buckets_[IndexOf(ns)];
  ++count_;
  min_ns_ = std::min(min_ns_, ns);
  max_ns_ = std::max(max_ns_, ns);
  const double ms = static_cast<double>(ns) / 1e6;
  sum_ms_ += ms;
  squares_ms_ += ms * ms;
}

double LatencyHistogram::std_ms() const {
  if (count_ == 0) return 0;
  const double mean = mean_ms();
  return std::sqrt(std::max(0.0, squares_ms_ / static_cast<double>(count_) - mean * mean));
}

double LatencyHistogram::AtRank(uint64_t rank) const {
  uint64_t seen = 0;
  for (int i = 0; i < kBuckets; ++i) {
    seen += buckets_[i];
    if (seen > rank) {
      return std::clamp(MiddleNs(i), static_cast<double>(min_ns_), static_cast<double>(max_ns_));
    }
  }
  return static_cast<double>(max_ns_);
}

double LatencyHistogram::PercentileMs(double percent) const {
  if (count_ == 0) return 0;
  const double at = std::clamp(percent, 0.0, 100.0) / 100 * static_cast<double>(count_ - 1);
  const auto low = static_cast<uint64_t>(at);
  const double part = at - static_cast<double>(low);
  const double below = AtRank(low);
  const double above = part > 0 ? AtRank(std::min(low + 1, count_ - 1)) : below;
  return (below + (above - below) * part) / 1e6;
}

std::vector<std::pair<double, uint64_t>> LatencyHistogram::Buckets() const {
  std::vector<std::pair<double, uint64_t>> out;
  for (int i = 0; i < kBuckets; ++i) {
    if (buckets_[i] > 0) out.emplace_back(MiddleNs(i) / 1e6, buckets_[i]);
  }
  return out;
}

}  // namespace switchyard

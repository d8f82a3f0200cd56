#include "router/backlog.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace switchyard {
namespace {
constexpr double kMemorySeconds = 2;
// An outage says little about the rate after it.
constexpr double kGapSecondsMax = 1;
// Another load may have another rate.
constexpr absl::Duration kForgetAfter = absl::Seconds(10);
}  // namespace

void Backlog::Add(int priority, int64_t cost, absl::Time now) {
  if (count_ == 0 && now - since_ > kForgetAfter) cost_ = seconds_ = 0;
  if (count_++ == 0) since_ = now;
  waiting_[priority] += cost;
}

void Backlog::Remove(int priority, int64_t cost) {
  const auto it = waiting_.find(priority);
  SY_CHECK(count_ > 0 && it != waiting_.end() && it->second >= cost);
  --count_;
  if ((it->second -= cost) == 0) waiting_.erase(it);
}

void Backlog::Served(int priority, int64_t cost, absl::Time now) {
  const bool queued = count_ >= kShortQueue;
  Remove(priority, cost);
  if (!queued) {
    since_ = now;
    return;
  }
  const double gap = std::clamp(absl::ToDoubleSeconds(now - since_), 0.0, kGapSecondsMax);
  const double keep = std::exp(-gap / kMemorySeconds);
  cost_ = cost_ * keep + static_cast<double>(cost);
  seconds_ = seconds_ * keep + gap;
  since_ = now;
}

void Backlog::Drop(int priority, int64_t cost) { Remove(priority, cost); }

absl::Duration Backlog::Wait(int priority) const {
  if (count_ < kShortQueue || seconds_ <= 0 || cost_ <= 0) return absl::ZeroDuration();
  double before = 0;
  for (auto it = waiting_.begin(); it != waiting_.end() && it->first <= priority; ++it) {
    before += static_cast<double>(it->second);
  }
  return absl::Seconds(before * seconds_ / cost_);
}

}  // namespace switchyard

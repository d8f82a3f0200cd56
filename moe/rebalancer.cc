#include "moe/rebalancer.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace switchyard {

void Rebalancer::Count(Matrix<const int32_t> counts) {
  SY_CHECK(counts.rows() * counts.cols() == loads_.size());
  const int32_t* const from = counts.row(0);
  for (size_t i = 0; i < loads_.size(); ++i) loads_[i] += from[i];
}

void Rebalancer::Fill(int rank, absl::Time now, StepHeader* mine) {
  untold_ = false;
  mine->ready = state_ == State::kReady ? digest_ : 0;
  if (busy()) mine->wants |= kBalances;
  if (state_ == State::kGaveUp) mine->wants |= kGivesUp;
  if (last_ == absl::InfinitePast()) last_ = now;
  // One rank's clock decides.
  if (rank == 0 && interval_ > absl::ZeroDuration() && !busy() && now - last_ >= interval_) {
    mine->wants |= kWantsToBalance;
  }
}

Rebalancer::Act Rebalancer::OnHeaders(std::span<const StepHeader> headers) const {
  bool wanted = false, absent = false, any_busy = false, all_busy = true, gave_up = false;
  size_t ready = 0;
  uint64_t digest = 0;
  bool differ = false;
  for (const StepHeader& h : headers) {
    if (h.epoch == 0) {
      absent = true;
      continue;
    }
    const bool busy = (h.wants & kBalances) != 0;
    wanted = wanted || (h.wants & kWantsToBalance) != 0;
    gave_up = gave_up || (h.wants & kGivesUp) != 0;
    any_busy = any_busy || busy;
    all_busy = all_busy && busy;
    if (h.ready == 0) continue;
    differ = differ || (ready > 0 && h.ready != digest);
    digest = h.ready;
    ++ready;
  }
  // Equal loads make equal plans. A rank with another one, or with none, must not be waited for.
  if (gave_up || differ || (ready > 0 && !all_busy)) return Act::kDrop;
  if (ready > 0 && ready == headers.size()) return Act::kSwitch;
  // While ranks are missing, the others do their work (Placement::Without).
  return wanted && !any_busy && !absent ? Act::kGather : Act::kNone;
}

std::vector<int64_t> Rebalancer::Begin(absl::Time now) {
  SY_CHECK(!busy());
  state_ = State::kWorking;
  last_ = now;
  std::vector<int64_t> loads(loads_.size());
  loads.swap(loads_);
  return loads;
}

}  // namespace switchyard

// router/breaker.h: how far a router trusts one worker address. A fault closes it to new attempts
// for a pause that doubles with each further fault; when the pause is over, one attempt per pause
// tries it, until one succeeds. So a worker that fails everything at once costs its cluster a few
// attempts, and requests wait for it rather than use up their tries. Pure; not thread-safe.
#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace switchyard {

class Breaker {
 public:
  static constexpr absl::Duration kPauseMin = absl::Milliseconds(100), kPauseMax = absl::Seconds(5);

  bool Allows(absl::Time now) const { return now >= closed_until_; }
  // An attempt goes there, which Allows() has allowed.
  void OnStart(absl::Time now) {
    if (faults_ > 0) closed_until_ = now + Pause();
  }
  void OnSuccess() {
    faults_ = 0;
    closed_until_ = absl::InfinitePast();
  }
  // Many requests fail with one fault of their worker: those of one pause count once.
  void OnFault(absl::Time now) {
    if (faults_ > 0 && now < counted_ + Pause()) return;
    ++faults_;
    counted_ = now;
    closed_until_ = now + Pause();
  }

 private:
  absl::Duration Pause() const {
    return std::min(kPauseMax, kPauseMin * (int64_t{1} << std::clamp(faults_ - 1, 0, 20)));
  }
  int faults_ = 0;  // since the last success
  absl::Time counted_ = absl::InfinitePast(), closed_until_ = absl::InfinitePast();
};

}  // namespace switchyard

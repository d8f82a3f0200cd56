// common/clock.h: the one source of time. Injected, so that a simulator can own it.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace switchyard {

// Monotonic time since an arbitrary start: leases, deadlines and latencies use this, never the wall
// clock. absl::Time is used as the type; its zero is the clock's own start, not 1970.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;  // thread-safe
};

class MonotonicClock final : public Clock {
 public:
  absl::Time Now() const override {
    return absl::UnixEpoch() +
           absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

// A clock that stands still until told. Not thread-safe.
class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return now_; }
  void Advance(absl::Duration d) { now_ += d; }

 private:
  absl::Time now_ = absl::UnixEpoch();
};

}  // namespace switchyard

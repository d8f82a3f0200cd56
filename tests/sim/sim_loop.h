// tests/sim/sim_loop.h: virtual time. One queue of events in the order of their times, one source
// of chance; everything that a run does follows from its seed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace switchyard::sim {

// Splitmix64 (Steele et al. 2014): small, and cheap to seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // [low, high]
  int Int(int low, int high) {
    return low + static_cast<int>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(double p) { return static_cast<double>(Next() >> 11) * 0x1p-53 < p; }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    const int64_t ns = absl::ToInt64Nanoseconds(high - low);
    return low + absl::Nanoseconds(Next() % static_cast<uint64_t>(ns + 1));
  }

 private:
  uint64_t state_;
};

class Loop final : public Clock {
 public:
  explicit Loop(uint64_t seed) : random_(seed) {}

  absl::Time Now() const override { return now_; }
  Random& random() { return random_; }
  void At(absl::Time t, std::function<void()> event);
  void After(absl::Duration d, std::function<void()> event) { At(now_ + d, std::move(event)); }
  // Runs the next event if it is due by `until`; else the time is `until`. False: none was due.
  bool RunOne(absl::Time until);
  uint64_t events() const { return sequence_; }

  // The event log, kept only if asked for.
  void KeepLog() { keep_log_ = true; }
  bool logs() const { return keep_log_; }
  template <typename... Parts>
  void Log(const Parts&... parts) {
    if (keep_log_) AddToLog(absl::StrCat(parts...));
  }
  const std::string& log() const { return log_; }

 private:
  struct Event {
    absl::Time at;
    uint64_t sequence;
    std::function<void()> run;
  };
  static bool Later(const Event& a, const Event& b) {
    return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
  }
  void AddToLog(const std::string& line);

  Random random_;
  absl::Time now_ = absl::UnixEpoch();
  std::vector<Event> heap_;
  uint64_t sequence_ = 0;
  bool keep_log_ = false;
  std::string log_;
};

// What a process sees as time: the loop's, moved by the jumps that it has suffered.
class ProcessClock final : public Clock {
 public:
  explicit ProcessClock(const Loop* loop) : loop_(loop) {}
  absl::Time Now() const override { return loop_->Now() + offset_; }
  void Jump(absl::Duration d) { offset_ += d; }
  // The loop's time of a time of this clock.
  absl::Time ToLoop(absl::Time t) const { return t - offset_; }

 private:
  const Loop* const loop_;
  absl::Duration offset_;
};

}  // namespace switchyard::sim

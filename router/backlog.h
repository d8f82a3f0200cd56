// router/backlog.h: how long a request that came now would wait for its first token: what stands
// before it, at the rate at which first tokens have come lately. Cost is in tokens of KV that a
// request may need: its prompt and max_tokens. Pure; not thread-safe.
#pragma once

#include <cstdint>
#include <map>

#include "absl/time/time.h"

namespace switchyard {

class Backlog {
 public:
  // So few in the queue say nothing about a wait.
  static constexpr int kShortQueue = 8;

  void Add(int priority, int64_t cost, absl::Time now);
  // It has its first token.
  void Served(int priority, int64_t cost, absl::Time now);
  // It ended without one.
  void Drop(int priority, int64_t cost);

  // Of a request of that priority. Zero while the queue is short or no rate is known.
  absl::Duration Wait(int priority) const;

 private:
  void Remove(int priority, int64_t cost);

  std::map<int, int64_t> waiting_;  // cost by priority
  int count_ = 0;
  // Sums over the time in which somebody waited, with exponentially less weight for what is longer
  // ago.
  double cost_ = 0, seconds_ = 0;  // only while the queue was not short: one after the other says
                                   // nothing of many at once
  absl::Time since_;  // of the last first token, or of the first arrival since nobody waited
};

}  // namespace switchyard

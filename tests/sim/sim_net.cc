#include "tests/sim/sim_net.h"

#include <algorithm>

namespace switchyard::sim {

void Thread::Schedule(absl::Time t) {
  if (t >= next_) return;
  next_ = t;
  loop_->At(t, [self = std::weak_ptr<Thread*>(self_), t] {
    if (const auto thread = self.lock(); thread && (*thread)->next_ == t) (*thread)->Turn();
  });
}

void Thread::Turn() {
  next_ = absl::InfiniteFuture();
  if (loop_->Now() < free_at()) return Schedule(free_at());
  const std::weak_ptr<Thread*> self = self_;
  // What is posted meanwhile has its own turn.
  for (size_t n = tasks_.size(); n > 0 && !self.expired(); --n) {
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    task();
  }
  if (self.expired() || !after_) return;
  after_();
}

absl::Time Network::Arrival(int from, int to) {
  const Way& w = way(from, to);
  Random& random = loop_->random();
  absl::Duration delay = absl::Nanoseconds(random.Int(20'000, 300'000));
  if (random.Chance(0.02)) delay *= 20;
  if (loop_->Now() < w.slow_until) delay *= 50;
  return std::max(loop_->Now(), w.blocked_until) + delay;
}

void Pipe::Send(std::function<void()> deliver) {
  if (!*open_) return;
  last_ = std::max(last_ + absl::Nanoseconds(1), network_->Arrival(from_, to_));
  loop_->At(last_, [open = open_, deliver = std::move(deliver)] {
    if (*open) deliver();
  });
}

}  // namespace switchyard::sim

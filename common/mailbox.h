// common/mailbox.h: a bounded queue of messages to one owner thread. Any thread may Post; one
// thread takes. The state that the messages change has no lock of its own: only the owner touches
// it.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/mutex.h"

namespace switchyard {

template <typename T>
class Mailbox {
 public:
  // At most `capacity` messages wait. `wake`, if given, is called after each Post, outside the lock
  // (to signal an eventfd that the owner polls).
  explicit Mailbox(size_t capacity, std::function<void()> wake = nullptr)
      : capacity_(capacity), wake_(std::move(wake)) {}

  // False if the box is full or closed: the message is dropped and the caller must answer for it.
  [[nodiscard]] bool Post(T message) {
    {
      MutexLock lock(mu_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(message));
    }
    arrived_.NotifyOne();
    if (wake_) wake_();
    return true;
  }

  // Everything that waits, in order; blocks up to `timeout` if nothing does. May return empty.
  std::vector<T> Take(absl::Duration timeout) {
    std::vector<T> out;
    MutexLock lock(mu_);
    if (items_.empty() && !closed_ && timeout > absl::ZeroDuration()) {
      arrived_.WaitFor(mu_, timeout);
    }
    out.swap(items_);
    return out;
  }

  // Later Posts fail; a waiting Take returns.
  void Close() {
    {
      MutexLock lock(mu_);
      closed_ = true;
    }
    arrived_.NotifyAll();
    if (wake_) wake_();
  }

 private:
  const size_t capacity_;
  const std::function<void()> wake_;
  Mutex mu_;
  CondVar arrived_;
  std::vector<T> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace switchyard

// kvtransfer/io_loop.h: the I/O thread of one end of the KV transfer. It owns a UCX worker and
// whatever its messages touch, and sleeps in poll() on the worker's event fd and its mailbox's: no
// turn is taken while nothing happens.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/event_fd.h"
#include "common/mailbox.h"
#include "common/net/ucx.h"

namespace switchyard {

class IoLoop {
 public:
  // All are called on the thread.
  struct Hooks {
    std::function<bool(absl::Time now)> work;           // true: there is more to do at once
    std::function<absl::Time(absl::Time now)> wake_at;  // sleep until then at the latest
    std::function<void()> stop;                         // the thread's last call
  };
  using Message = std::function<void()>;
  static constexpr size_t kMessagesMax = 1 << 16;

  // `worker` and `clock` must outlive the loop.
  static absl::StatusOr<std::unique_ptr<IoLoop>> Start(UcxWorker* worker, const Clock* clock,
                                                       Hooks hooks);
  // Runs what has been posted, then hooks.stop, and joins.
  ~IoLoop();
  IoLoop(const IoLoop&) = delete;
  IoLoop& operator=(const IoLoop&) = delete;

  // Runs `message` on the thread. False if the mailbox is full or closed: it will not run.
  [[nodiscard]] bool Post(Message message) { return mailbox_.Post(std::move(message)); }

 private:
  IoLoop(UcxWorker* worker, const Clock* clock, Hooks hooks, std::unique_ptr<EventFd> wake);
  void Run();
  void Sleep();

  UcxWorker* const worker_;
  const Clock* const clock_;
  const Hooks hooks_;
  const std::unique_ptr<EventFd> wake_;
  Mailbox<Message> mailbox_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace switchyard

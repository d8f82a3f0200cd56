#include "kvtransfer/io_loop.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<IoLoop>> IoLoop::Start(UcxWorker* worker, const Clock* clock,
                                                      Hooks hooks) {
  ASSIGN_OR_RETURN(std::unique_ptr<EventFd> wake, EventFd::Create());
  return std::unique_ptr<IoLoop>(new IoLoop(worker, clock, std::move(hooks), std::move(wake)));
}

IoLoop::IoLoop(UcxWorker* worker, const Clock* clock, Hooks hooks, std::unique_ptr<EventFd> wake)
    : worker_(worker),
      clock_(clock),
      hooks_(std::move(hooks)),
      wake_(std::move(wake)),
      mailbox_(kMessagesMax, [wake = wake_.get()] { wake->Signal(); }),
      thread_([this] { Run(); }) {}

IoLoop::~IoLoop() {
  stopping_ = true;
  mailbox_.Close();
  thread_.join();
}

void IoLoop::Run() {
  // A bounded number of progress calls per turn, so that messages and timers get theirs.
  constexpr int kProgressMax = 64;
  while (true) {
    const bool last = stopping_;
    for (Message& message : mailbox_.Take(absl::ZeroDuration())) message();
    if (last) break;
    bool busy = false;
    for (int i = 0; i < kProgressMax && worker_->Progress(); ++i) busy = true;
    busy |= hooks_.work(clock_->Now());
    if (!busy) Sleep();
  }
  hooks_.stop();
}

void IoLoop::Sleep() {
  absl::StatusOr<bool> armed = worker_->Arm();
  SY_CHECK_MSG(armed.ok(), armed.status().ToString());
  if (!*armed) return;
  const absl::Time now = clock_->Now();
  // A minute is as good as forever, and fits poll's int. Closing endpoints are looked after.
  absl::Duration wait =
      std::min(hooks_.wake_at(now) - now,
               worker_->closing() > 0 ? absl::Milliseconds(10) : absl::Minutes(1));
  const auto wait_ms = static_cast<int>(
      std::max<int64_t>(0, absl::ToInt64Milliseconds(wait + absl::Milliseconds(1))));
  pollfd fds[2] = {{worker_->event_fd(), POLLIN, 0}, {wake_->fd(), POLLIN, 0}};
  if (poll(fds, 2, wait_ms) > 0 && fds[1].revents != 0) wake_->Clear();
}

}  // namespace switchyard

#include "moe/ep_progress.h"

#include <poll.h>

#include "common/status_macros.h"

namespace switchyard {
namespace {
constexpr int kNapMaxMs = 250;
}

absl::StatusOr<std::unique_ptr<EpProgress>> EpProgress::Create(
    EpGroup* group, std::function<bool()> move, std::function<bool(int)> wants_room) {
  std::unique_ptr<EpProgress> progress(
      new EpProgress(group, std::move(move), std::move(wants_room)));
  ASSIGN_OR_RETURN(progress->wake_, EventFd::Create());
  return progress;
}

EpProgress::~EpProgress() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(mu_);
    stop_ = true;
    given_or_stopped_.NotifyOne();
    wake_->Signal();
  }
  thread_.join();
}

void EpProgress::Take() {
  wanted_ = true;
  mu_.lock();
  wanted_ = false;
  if (napping_ && Works()) group_.Awake();  // nobody need ring for what the caller looks at
}

void EpProgress::Give() {
  if (Works()) {
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    if (!napping_) {
      given_or_stopped_.NotifyOne();
    } else if (!group_.FallAsleep(move_, wants_room_)) {
      wake_->Signal();
    }
  }
  mu_.unlock();
}

void EpProgress::Run() {
  MutexLock lock(mu_);
  while (!stop_) {
    if (!Works() || wanted_) {
      given_or_stopped_.Wait(mu_);
      continue;
    }
    if (group_.FallAsleep(move_, wants_room_)) {
      napping_ = true;
      mu_.unlock();
      pollfd fds[2] = {{group_.event_fd(), POLLIN, 0}, {wake_->fd(), POLLIN, 0}};
      poll(fds, 2, kNapMaxMs);
      mu_.lock();
      napping_ = false;
      wake_->Clear();
    }
    if (Works()) group_.Awake();
  }
}

}  // namespace switchyard

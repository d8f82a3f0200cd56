// common/event_fd.h: a flag that a thread asleep in poll() sees. Signal is thread-safe.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace switchyard {

class EventFd {
 public:
  // kResourceExhausted if the process has no descriptors left.
  static absl::StatusOr<std::unique_ptr<EventFd>> Create() {
    const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd >= 0) return std::unique_ptr<EventFd>(new EventFd(fd));
    return absl::ResourceExhaustedError(absl::StrCat("eventfd: ", std::strerror(errno)));
  }
  ~EventFd() { close(fd_); }
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;

  int fd() const { return fd_; }  // readable from Signal until Clear
  void Signal() const {
    const uint64_t one = 1;
    // EAGAIN means that the counter is at its limit: the sleeper is woken anyway.
    (void)!write(fd_, &one, sizeof one);
  }
  void Clear() const {
    uint64_t count;
    (void)!read(fd_, &count, sizeof count);
  }

 private:
  explicit EventFd(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace switchyard

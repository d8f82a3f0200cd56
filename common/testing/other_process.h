// common/testing/other_process.h: a second process for tests, with a socket to it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

namespace switchyard::testing {

// This executable again, as `role`, with a socket to it. Killed when the object dies.
class OtherProcess {
 public:
  explicit OtherProcess(const std::string& role);
  ~OtherProcess();
  OtherProcess(const OtherProcess&) = delete;
  OtherProcess& operator=(const OtherProcess&) = delete;
  void Signal(int signal) const;
  int fd() const { return fd_; }

 private:
  pid_t pid_ = -1;
  int fd_ = -1;
};
// The fd and the role of such a process, from main's arguments; the role is empty for others.
std::pair<std::string, int> RoleOf(int argc, char** argv);

// Messages between the two: strings. Receive gives nothing at the end.
void SendText(int fd, const std::string& text);
std::string ReceiveText(int fd);
void SendNumber(int fd, uint64_t number);
uint64_t ReceiveNumber(int fd);
}  // namespace switchyard::testing

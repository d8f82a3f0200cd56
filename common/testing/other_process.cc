#include "common/testing/other_process.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "common/check.h"

namespace switchyard::testing {

OtherProcess::OtherProcess(const std::string& role) {
  int fds[2];
  SY_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  fd_ = fds[0];
  const std::string fd = std::to_string(fds[1]), parent_fd = std::to_string(fds[0]);
  pid_ = fork();
  SY_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    // Only what is safe after a fork in a process with threads.
    close(fds[0]);
    execl("/proc/self/exe", "other_process", "--role", role.c_str(), fd.c_str(), nullptr);
    _exit(127);
  }
  close(fds[1]);
}

OtherProcess::~OtherProcess() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(fd_);
}

void OtherProcess::Signal(int signal) const { SY_CHECK(kill(pid_, signal) == 0); }

std::pair<std::string, int> RoleOf(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--role") return {argv[2], std::atoi(argv[3])};
  return {"", -1};
}

void SendText(int fd, const std::string& text) {
  const uint64_t n = text.size();
  // MSG_NOSIGNAL: the other end may have been killed.
  (void)!send(fd, &n, sizeof n, MSG_NOSIGNAL);
  for (size_t sent = 0; sent < n;) {
    ssize_t k = send(fd, text.data() + sent, n - sent, MSG_NOSIGNAL);
    if (k <= 0) return;
    sent += static_cast<size_t>(k);
  }
}

std::string ReceiveText(int fd) {
  uint64_t n = 0;
  if (recv(fd, &n, sizeof n, MSG_WAITALL) != sizeof n) return "";
  std::string text(n, '\0');
  if (n > 0 && recv(fd, text.data(), n, MSG_WAITALL) != static_cast<ssize_t>(n)) return "";
  return text;
}

void SendNumber(int fd, uint64_t number) { SendText(fd, std::to_string(number)); }
uint64_t ReceiveNumber(int fd) { return std::strtoull(ReceiveText(fd).c_str(), nullptr, 10); }

}  // namespace switchyard::testing

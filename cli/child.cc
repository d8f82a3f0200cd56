#include "cli/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr size_t kReadyLineMax = 4096;

absl::Status Errno(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

}  // namespace

Child::Child(std::string role, int rank, std::vector<std::string> arguments)
    : role_(std::move(role)), rank_(rank), arguments_(std::move(arguments)) {}

Child::~Child() {
  CloseReadyPipe();
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::Status Child::Start() {
  ready_.reset();
  ready_line_.clear();
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return Errno("pipe");
  std::vector<std::string> words = {"switchyard", role_};
  words.insert(words.end(), arguments_.begin(), arguments_.end());
  words.insert(words.end(),
               {absl::StrCat("--ready-fd=", fds[1]), absl::StrCat("--parent-pid=", getpid()),
                absl::StrCat("--rank=", rank_)});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  sigset_t none;
  sigemptyset(&none);
  pid_ = fork();
  if (pid_ == 0) {  // only calls that are safe between fork and exec
    fcntl(fds[1], F_SETFD, 0);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execv("/proc/self/exe", argv.data());
    _exit(127);
  }
  close(fds[1]);
  ready_fd_ = fds[0];
  fcntl(ready_fd_, F_SETFL, O_NONBLOCK);
  if (pid_ > 0) return absl::OkStatus();
  pid_ = 0;
  CloseReadyPipe();
  return Errno("fork");
}

void Child::CloseReadyPipe() {
  if (ready_fd_ >= 0) close(ready_fd_);
  ready_fd_ = -1;
}

absl::StatusOr<bool> Child::PollReady(absl::Time now) {
  if (ready_fd_ < 0) return false;
  char buffer[512];
  ssize_t n;
  while ((n = read(ready_fd_, buffer, sizeof buffer)) > 0) {
    last_alive_ = now;
    if (ready_.has_value()) continue;  // a beat
    ready_line_.append(buffer, n);
    if (ready_line_.size() > kReadyLineMax) {
      return absl::InternalError(name() + ": its ready line is too long");
    }
  }
  if (n == 0) CloseReadyPipe();  // it has ended
  const size_t end = ready_line_.find('\n');
  if (ready_.has_value() || end == std::string::npos) return false;
  const auto line = nlohmann::json::parse(ready_line_.substr(0, end), nullptr,
                                          /*allow_exceptions=*/false);
  if (!line.is_object() || !line.contains("port") || !line["port"].is_number_integer()) {
    return absl::InternalError(absl::StrCat(name(), ": its ready line is ", ready_line_));
  }
  ready_ = ChildReady{.port = line["port"].get<int>(),
                      .grpc_port = line.value("grpc_port", 0),
                      .metrics_port = line.value("metrics_port", 0)};
  return true;
}

std::optional<std::string> Child::PollExit() {
  int status = 0;
  if (pid_ == 0 || waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = 0;
  if (WIFSIGNALED(status)) {
    return absl::StrCat("was ended by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)),
                        ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(status));
}

bool Child::Alive(absl::Time now, absl::Duration limit) {
  if (now - last_asked_ > limit / 4) last_alive_ = std::min(now, last_alive_ + (now - last_asked_));
  last_asked_ = now;
  return !ready_.has_value() || now - last_alive_ <= limit;  // it may load for long
}

void Child::Signal(int signal_number) {
  if (pid_ != 0) kill(pid_, signal_number);
}

}  // namespace switchyard

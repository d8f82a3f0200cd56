#include "cli/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_server.h"

namespace switchyard {
namespace {

constexpr size_t kReadyLineMax = 4096;
constexpr absl::Duration kProbeEvery = absl::Milliseconds(500);
constexpr auto kProbeTimeout = std::chrono::seconds(2);

absl::Status Errno(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

}  // namespace

// grpc.health.v1.Health/Check with an empty request, whose bytes are none. Any answer,
// UNIMPLEMENTED too, says that the process takes calls.
struct Child::Probe {
  explicit Probe(const std::shared_ptr<grpc::Channel>& channel) : stub(channel) {}
  grpc::GenericStub stub;
  grpc::ClientContext context;
  grpc::ByteBuffer request, response;
  std::atomic<bool> done{false}, answered{false};
};

Child::Child(std::string role, int rank, const std::string& host,
             std::vector<std::string> arguments)
    : role_(std::move(role)),
      rank_(rank),
      host_(host == "0.0.0.0" || host == "::" ? "127.0.0.1" : host),
      arguments_(std::move(arguments)) {}

Child::~Child() {
  CloseReadyPipe();
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::Status Child::Start() {
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
  ready_.reset();
  ready_line_.clear();
  probe_.reset();
  channel_.reset();
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
    ready_line_.append(buffer, n);
    if (ready_line_.size() > kReadyLineMax) {
      return absl::InternalError(name() + ": its ready line is too long");
    }
  }
  if (n == 0) CloseReadyPipe();  // it has ended, or said all
  if (ready_line_.empty() || ready_line_.back() != '\n') return false;
  CloseReadyPipe();
  const auto line = nlohmann::json::parse(ready_line_, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object() || !line.contains("port") || !line["port"].is_number_integer()) {
    return absl::InternalError(absl::StrCat(name(), ": its ready line is ", ready_line_));
  }
  ready_ = ChildReady{.port = line["port"].get<int>()};
  if (line.contains("grpc_port")) ready_->grpc_port = line["grpc_port"].get<int>();
  const int port = ready_->grpc_port != 0 ? ready_->grpc_port : ready_->port;
  channel_ = DialChannel(HostPort(host_, port));
  last_alive_ = next_probe_ = now;
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
  if (!ready_.has_value()) return true;  // it may load for long
  if (probe_ != nullptr && probe_->done) {
    if (probe_->answered) last_alive_ = now;
    probe_.reset();
  }
  if (probe_ == nullptr && now >= next_probe_) StartProbe(now);
  return now - last_alive_ <= limit;
}

void Child::StartProbe(absl::Time now) {
  next_probe_ = now + kProbeEvery;
  probe_ = std::make_shared<Probe>(channel_);
  probe_->context.set_deadline(std::chrono::system_clock::now() + kProbeTimeout);
  probe_->request = grpc::ByteBuffer(nullptr, 0);
  probe_->stub.UnaryCall(&probe_->context, "/grpc.health.v1.Health/Check", {}, &probe_->request,
                         &probe_->response, [probe = probe_](const grpc::Status& status) {
                           probe->answered = status.ok() ||
                                             status.error_code() == grpc::UNIMPLEMENTED ||
                                             status.error_code() == grpc::NOT_FOUND;
                           probe->done = true;
                         });
}

void Child::Signal(int signal_number) {
  if (pid_ != 0) kill(pid_, signal_number);
}

}  // namespace switchyard

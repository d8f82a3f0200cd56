#include "cli/role_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr int kInterrupted = 130;
constexpr timespec kLookEvery = {.tv_sec = 0, .tv_nsec = 20'000'000};
constexpr timespec kBeatEvery = {.tv_sec = 0, .tv_nsec = 200'000'000};

sigset_t StopSignals(const ChildFlags& flags) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  // A terminal sends these to the whole group; the launcher then ends its children in order.
  if (flags.parent_pid == 0) {
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
  }
  return set;
}

absl::Status TellReady(const ChildFlags& flags, const RoleProcess& process) {
  if (flags.ready_fd < 0) return absl::OkStatus();
  fcntl(flags.ready_fd, F_SETFL, O_NONBLOCK);  // a launcher that hangs must not hang us
  nlohmann::ordered_json line = {
      {"role", process.role}, {"rank", flags.rank}, {"pid", getpid()}, {"port", process.port}};
  if (process.grpc_port != 0) line["grpc_port"] = process.grpc_port;
  if (process.metrics_port != 0) line["metrics_port"] = process.metrics_port;
  const std::string text = line.dump() + "\n";
  const ssize_t n = write(flags.ready_fd, text.data(), text.size());
  if (n == static_cast<ssize_t>(text.size())) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("--ready-fd ", flags.ready_fd));
}

// Waits for one of the signals for a while and tells the launcher that this process lives. The
// signal, or a negative number.
int AwaitSignal(const ChildFlags& flags, const sigset_t& set) {
  const char beat = '.';
  // A full pipe says as much as another beat would.
  if (flags.ready_fd >= 0) [[maybe_unused]]
    const ssize_t n = write(flags.ready_fd, &beat, 1);
  return sigtimedwait(&set, nullptr, &kBeatEvery);
}

}  // namespace

void ChildFlags::AddTo(CLI::App& app) {
  app.add_option("--drain-seconds", drain_seconds, "how long running requests may go on at the end")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--rank", rank, "this process among those of its role")
      ->check(CLI::Range(0, 1 << 16));
  app.add_option("--ready-fd", ready_fd, "")->group("");
  app.add_option("--parent-pid", parent_pid, "")->group("");
}

Starting::Starting(const ChildFlags& flags)
    : watcher_([this, set = StopSignals(flags)] {
        while (!over_) {
          const int signal_number = sigtimedwait(&set, nullptr, &kLookEvery);
          if (signal_number > 0) std::_Exit(128 + signal_number);
        }
      }) {}

Starting::~Starting() {
  over_ = true;
  watcher_.join();
}

absl::StatusOr<std::unique_ptr<Starting>> PrepareRole(const ChildFlags& flags) {
  if (flags.parent_pid != 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The parent may have ended before the line above.
    if (getppid() != flags.parent_pid) return absl::AbortedError("the parent has ended");
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);  // UCX would turn on its debug log
  }
  signal(SIGPIPE, SIG_IGN);
  const sigset_t set = StopSignals(flags);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return std::make_unique<Starting>(flags);
}

absl::StatusOr<int> RunRole(const ChildFlags& flags, const RoleProcess& process, Logger& log) {
  if (absl::Status s = TellReady(flags, process); !s.ok()) return s;
  const sigset_t set = StopSignals(flags);
  int signal_number = -1;
  while (signal_number < 0) {
    signal_number = AwaitSignal(flags, set);
    if (absl::Status s = process.health(); !s.ok()) return s;
  }
  log.Info("draining", {{"signal", signal_number}});
  std::atomic<bool> drained{false};
  std::thread drain([&] {
    process.drain(absl::Seconds(flags.drain_seconds));
    drained = true;
  });
  while (!drained) {
    if (AwaitSignal(flags, set) > 0) std::_Exit(kInterrupted);
  }
  drain.join();
  return 0;
}

}  // namespace switchyard

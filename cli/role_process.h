// cli/role_process.h: the life of a router, prefill or decode process after it is up: says so to
// whoever started it, waits for a signal, drains, ends.
#pragma once

#include <CLI/CLI.hpp>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/telemetry/log.h"

namespace switchyard {

// Flags that `serve` gives its children.
struct ChildFlags {
  int ready_fd = -1;   // one JSON line is written here when the process is ready, then beats
  int parent_pid = 0;  // end when this process does; leave SIGINT to it
  int rank = 0;
  double drain_seconds = 30;

  void AddTo(CLI::App& app);
};

// While it lives, a signal to stop ends the process at once: nothing is served yet.
class Starting {
 public:
  explicit Starting(const ChildFlags& flags);
  ~Starting();
  Starting(const Starting&) = delete;

 private:
  std::atomic<bool> over_{false};
  std::thread watcher_;
};

// To be called before any thread is made: dies with the parent, and blocks the signals that
// RunRole waits for. What it returns ends when there is something to drain.
absl::StatusOr<std::unique_ptr<Starting>> PrepareRole(const ChildFlags& flags);

struct RoleProcess {
  std::string role;
  int port = 0;          // router: HTTP
  int grpc_port = 0;     // router only
  int metrics_port = 0;  // workers only; 0: none
  std::function<void(absl::Duration notice)> drain;
  std::function<absl::Status()> health;
};

// Returns the exit code. A second signal ends the process at once.
absl::StatusOr<int> RunRole(const ChildFlags& flags, const RoleProcess& process, Logger& log);

}  // namespace switchyard

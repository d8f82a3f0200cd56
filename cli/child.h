// cli/child.h: one process that `serve` started: this binary with a role's subcommand.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

// What a child says when it is ready (--ready-fd).
struct ChildReady {
  int port = 0, grpc_port = 0, metrics_port = 0;
};

// Owned by the launcher's one thread. Destruction kills the process.
class Child {
 public:
  // `arguments`: of the subcommand `role`.
  Child(std::string role, int rank, std::vector<std::string> arguments);
  ~Child();
  Child(const Child&) = delete;

  const std::string& role() const { return role_; }
  int rank() const { return rank_; }
  pid_t pid() const { return pid_; }
  std::string name() const { return role_ + "-" + std::to_string(rank_); }
  const std::optional<ChildReady>& ready() const { return ready_; }

  // Replaces the arguments for the next Start (a port that is now known).
  void set_arguments(std::vector<std::string> arguments) { arguments_ = std::move(arguments); }

  // Forks and executes. Nothing of an earlier process may be left.
  absl::Status Start();
  // Reads what it says. True if it has just said that it is ready. Never blocks.
  absl::StatusOr<bool> PollReady(absl::Time now);
  // How it ended, in words, if it has; then pid() is 0.
  std::optional<std::string> PollExit();
  // False if a ready child has been silent for `limit`. To be asked often: time in which nobody
  // asked, because this process was stopped or the machine slept, is not held against the child.
  bool Alive(absl::Time now, absl::Duration limit);
  void Signal(int signal_number);

 private:
  void CloseReadyPipe();

  const std::string role_;
  const int rank_;
  std::vector<std::string> arguments_;
  pid_t pid_ = 0;
  int ready_fd_ = -1;
  std::string ready_line_;
  std::optional<ChildReady> ready_;
  absl::Time last_alive_, last_asked_;
};

}  // namespace switchyard

// cli/child.h: one process that `serve` started: this binary with a role's subcommand.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <sys/types.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

// What a child says when it is ready (--ready-fd).
struct ChildReady {
  int port = 0, grpc_port = 0;
};

// Owned by the launcher's one thread. Destruction kills the process.
class Child {
 public:
  // `host`: where it listens. `arguments`: of the subcommand `role`.
  Child(std::string role, int rank, const std::string& host, std::vector<std::string> arguments);
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
  // True if it has just said that it is ready. Never blocks.
  absl::StatusOr<bool> PollReady(absl::Time now);
  // How it ended, in words, if it has; then pid() is 0.
  std::optional<std::string> PollExit();
  // Asks a ready child whether it lives. False if it has not answered for `limit`. Never blocks.
  bool Alive(absl::Time now, absl::Duration limit);
  void Signal(int signal_number);

 private:
  // One question under way: shared with gRPC's thread, which answers.
  struct Probe;
  void StartProbe(absl::Time now);
  void CloseReadyPipe();

  const std::string role_;
  const int rank_;
  const std::string host_;
  std::vector<std::string> arguments_;
  pid_t pid_ = 0;
  int ready_fd_ = -1;
  std::string ready_line_;
  std::optional<ChildReady> ready_;
  absl::Time last_alive_, next_probe_;
  std::shared_ptr<grpc::Channel> channel_;
  std::shared_ptr<Probe> probe_;
};

}  // namespace switchyard

// cli/launcher.h: a local cluster of real processes on loopback: starts them, watches them, starts
// those again that end or hang, and ends them in order.
#pragma once

#include <signal.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/child.h"
#include "common/clock.h"

namespace switchyard {

struct LauncherOptions {
  std::string host = "127.0.0.1", model;
  int prefill = 1, decode = 1;
  int port = 8000, grpc_port = 50051;
  std::vector<std::string> worker_arguments, router_arguments;  // after MODEL, without ports
  std::string kv_lane, ready_file;                              // "" : none
  absl::Duration hang = absl::Seconds(3);                       // zero: not watched
  absl::Duration drain = absl::Seconds(30);
};

// One thread. Blocks SIGINT, SIGTERM and SIGHUP in it.
class Launcher {
 public:
  explicit Launcher(const LauncherOptions& options) : options_(options) {}

  // Returns when the cluster has been told to end and has ended; the exit code.
  absl::StatusOr<int> Run();

 private:
  struct Member {
    std::unique_ptr<Child> child;
    int failed_starts = 0;  // in a row: ended before it was ready
    absl::Time restart_at = absl::InfiniteFuture();
    bool killed = false;  // by us, because it did not answer
  };

  absl::Status StartWorkers();
  absl::Status StartRouter();
  // Until all members are ready. Unavailable if one ends before; kCancelled by a signal.
  absl::Status AwaitReady();
  absl::Status Announce();
  absl::Status WriteReadyFile() const;
  absl::Status Watch();  // one turn
  void OnEnded(Member& member, const std::string& how, absl::Time now);
  int Stop();
  // The next signal within `timeout`, or 0.
  int NextSignal(absl::Duration timeout) const;
  // Hears a child, and kills it if it says nonsense or nothing. True if it has just become ready.
  bool Listen(Member& member, absl::Time now);
  bool AnyLeft(const std::string& role);  // listens and reaps
  std::vector<std::string> WorkerArguments(int port) const;
  std::vector<std::string> RouterArguments() const;

  const LauncherOptions options_;
  const MonotonicClock clock_;
  sigset_t signals_;
  std::vector<Member> members_;  // the router is the last
  int http_port_ = 0, grpc_port_ = 0;
};

}  // namespace switchyard

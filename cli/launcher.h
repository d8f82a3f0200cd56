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
#include "cli/ports.h"
#include "common/clock.h"
#include "common/telemetry/log.h"

namespace switchyard {

inline constexpr int kDecodeMetrics = 100;  // as deploy/systemd has them: 9300 and 9400

struct LauncherOptions {
  std::string host = "127.0.0.1", model;
  int prefill = 1, decode = 1;            // groups
  int prefill_ep = 1, decode_ep = 1;      // processes of each, which share the experts
  int prefill_tp = 1;                     // of these, so many neighbours compute attention together
  int prefill_nice = 0, decode_nice = 0;  // how far these processes give way to the others
  // Process n computes on device first_device + n mod devices; 1: all as worker_arguments say.
  int first_device = 0, devices = 1;
  int port = 8000, grpc_port = 50051;
  // Prefill rank n has its metrics at this + n, decode rank n at this + kDecodeMetrics + n; 0: any.
  int metrics_port_base = 0;
  std::string metrics_host;                                     // "": 127.0.0.1
  std::vector<std::string> worker_arguments, router_arguments;  // after MODEL, without ports
  std::vector<std::string> group_arguments;  // besides, of workers in groups of more than one
  bool threads_given = false;                // else the ranks of a group share the cores
  bool tls = false;                          // of the router
  std::string kv_lane, ready_file;           // "" : none
  absl::Duration hang = absl::Seconds(3);    // zero: not watched
  absl::Duration drain = absl::Seconds(30);
  Logger* json_log = nullptr;  // what is said goes there; null: stderr, as text
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
    int port = 0, metrics_port = 0;              // 0: any
    std::vector<std::string> group_arguments{};  // of its rank in its group
    int failed_starts = 0;                       // in a row: ended before it was ready
    absl::Time restart_at = absl::InfiniteFuture();
    bool killed = false;  // by us, because it did not answer
  };

  absl::Status StartWorkers();
  absl::Status StartGroup(const std::string& role, int group, int ranks, int tensor_ranks);
  absl::Status StartRouter();
  // Until all members are ready. Unavailable if one ends before; kCancelled by a signal.
  absl::Status AwaitReady();
  absl::Status Announce();
  std::string HttpUrl() const;
  absl::Status WriteReadyFile() const;
  absl::Status Watch();  // one turn
  void OnEnded(Member& member, const std::string& how, absl::Time now);
  int Stop();
  void Say(const std::string& line) const;
  // The next signal within `timeout`, or 0.
  int NextSignal(absl::Duration timeout) const;
  // Hears a child, and kills it if it says nonsense or nothing. True if it has just become ready.
  bool Listen(Member& member, absl::Time now);
  bool AnyLeft(const std::string& role);  // listens and reaps
  std::vector<std::string> WorkerArguments(const Member& member) const;
  std::vector<std::string> RouterArguments() const;

  const LauncherOptions options_;
  std::vector<ReservedPorts> reserved_;  // of groups; also for ranks that start again
  const MonotonicClock clock_;
  sigset_t signals_;
  std::vector<Member> members_;  // the router is the last
  int http_port_ = 0, grpc_port_ = 0;
};

}  // namespace switchyard

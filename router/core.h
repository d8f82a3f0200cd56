// router/core.h: RouterCore's implementation: the thread that owns a Conductor, the streams to the
// workers, and what fronts may ask for.
//
// Threads: fronts call the public methods; everything else runs on the core's one thread, which
// takes closures from a mailbox. What both sides need is in `Shared`, under one mutex.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>

#include "absl/synchronization/notification.h"
#include "cluster/discovery.h"
#include "common/clock.h"
#include "common/mailbox.h"
#include "common/mutex.h"
#include "common/telemetry/log.h"
#include "router/backlog.h"
#include "router/conductor.h"
#include "router/metrics.h"
#include "router/router.h"

namespace switchyard {

class Core final : public RouterCore {
 public:
  // Dials the workers at once; names are asked again each second. `clock` and `log` must outlive
  // it. kInvalidArgument: an address that is none or is listed twice, no decode worker.
  static absl::StatusOr<std::unique_ptr<Core>> Create(CoreOptions options, const Clock* clock,
                                                      Logger* log);
  // Ends all requests (GiveUpAll).
  ~Core() override;

  absl::Status CheckAdmission(int priority, absl::Duration deadline) const override {
    MutexLock lock(mu_);
    return Admit(priority, deadline);
  }
  absl::StatusOr<std::string> Submit(ClientRequest request, Sink sink) override;
  bool Abort(const std::string& request_id) override;
  const ModelDescription& model() const override { return *model_.load(); }
  const Tokenizer* tokenizer() const override { return options_.tokenizer; }
  const RouterLimits& limits() const override { return options_.limits; }
  RouterStatus status() const override;
  void ListRequests(std::function<void(std::vector<RequestStatus>)> done) override;
  void StartDrain() override;
  std::string MetricsText() const override {
    return metrics_.Text(options_.spans != nullptr ? options_.spans->lost() : 0);
  }

  void GiveUpAll();  // as Conductor's
  // Calls `watch` now and when readiness changes, until it is replaced (null: none). It must not
  // call the core.
  void WatchReady(std::function<void(bool)> watch);

 private:
  class Links;
  struct Entry {
    uint64_t number = 0;
    int priority = 0;
    int64_t cost = 0;
    bool waits = true;  // for its first token
  };
  struct Shared {
    std::unordered_map<std::string, Entry> ids;  // of requests that have not ended
    Backlog backlog;                             // of those without a token
    uint64_t next_number = 1;
    std::mt19937_64 rng;  // seeds of requests
    bool draining = false, was_ready = false;
    RouterStatus status;
    std::function<void(bool)> watch;
  };

  Core(CoreOptions options, Discovery prefill, Discovery decode, const Clock* clock, Logger* log);
  // Why a request is not taken, with advice for who would wait too long; counted.
  absl::Status Admit(int priority, absl::Duration deadline) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnFirstToken(const std::string& id);
  void Discover();                        // tells the thread what the addresses are now
  void Post(std::function<void()> work);  // blocks while the mailbox is full
  void Run();

  // On the core's thread:
  void Pin();
  void PublishStatus();
  void SetReady(std::string why_not) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CoreOptions options_;
  // Used by one thread at a time: of the constructor, then those that ask.
  struct Names {
    Discovery prefill, decode;
    bool change() const { return prefill.changes() || decode.changes(); }
  };
  const std::shared_ptr<Names> names_;
  const Clock* const clock_;
  Logger* const log_;
  const std::string router_id_;
  RouterMetrics metrics_;
  // Two at most: as configured, and as the first worker pinned it. Readers keep references.
  std::unique_ptr<const ModelDescription> configured_model_, pinned_model_;
  std::atomic<const ModelDescription*> model_;

  mutable Mutex mu_;
  Shared shared_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> stop_{false};
  Mailbox<std::function<void()>> mailbox_;

  // The thread's:
  std::vector<uint64_t> aborts_;  // that sinks asked for
  std::unique_ptr<Links> links_;
  std::unique_ptr<Conductor> conductor_;
  std::thread thread_;
  absl::Notification stopping_;
  std::thread discovery_;  // only if a name is to be asked again and again
};

}  // namespace switchyard

// router/core.h: RouterCore's implementation.
//
// Threads: fronts call the public methods; everything else runs on the core's one thread, which
// takes closures from a mailbox. What both sides need is in `Shared`, under one mutex.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>

#include "common/clock.h"
#include "common/mailbox.h"
#include "common/mutex.h"
#include "common/telemetry/log.h"
#include "router/answer_text.h"
#include "router/attempt.h"
#include "router/metrics.h"
#include "router/router.h"
#include "router/worker_pool.h"

namespace switchyard {

struct CoreOptions {
  ModelDescription
      model;  // numerics_id and, unless it is fixed, max_model_len come from the workers
  bool max_model_len_fixed = false;
  const Tokenizer* tokenizer = nullptr;  // must outlive the core
  std::vector<std::string> prefill_addresses, decode_addresses;
  Disaggregate disaggregate = Disaggregate::kAuto;
  RouterLimits limits;
  AttemptLimits attempts;
  // How long a request waits while no decode worker is alive.
  absl::Duration outage_wait = absl::Seconds(60);
  absl::Duration lease = absl::Seconds(3);  // of a silent worker
  uint64_t seed = 0;                        // of ids, absent sampling seeds and jitter
};

class Core final : public RouterCore {
 public:
  // Dials the workers at once. `clock` and `log` must outlive it. kInvalidArgument: an address that
  // is listed twice, no decode worker.
  static absl::StatusOr<std::unique_ptr<Core>> Create(CoreOptions options, const Clock* clock,
                                                      Logger* log);
  // Ends all requests with kAbort.
  ~Core() override;

  absl::StatusOr<std::string> Submit(ClientRequest request, Sink sink) override;
  bool Abort(const std::string& request_id) override;
  const ModelDescription& model() const override { return *model_.load(); }
  const Tokenizer* tokenizer() const override { return options_.tokenizer; }
  const RouterLimits& limits() const override { return options_.limits; }
  RouterStatus status() const override;
  void StartDrain() override;
  std::string MetricsText() const override { return metrics_.Text(); }

  void AbortAll();
  // Calls `watch` now and when readiness changes, until it is replaced (null: none). It must not
  // call the core.
  void WatchReady(std::function<void(bool)> watch);

 private:
  struct Request;
  struct Shared {
    std::unordered_map<std::string, uint64_t> ids;  // of requests that have not ended
    uint64_t next_number = 1;
    std::mt19937_64 rng;  // seeds of requests
    bool draining = false, was_ready = false;
    RouterStatus status;
    std::function<void(bool)> watch;
  };

  Core(CoreOptions options, const Clock* clock, Logger* log);
  void Post(std::function<void()> work);  // blocks while the mailbox is full
  void Run();

  // On the core's thread:
  void Begin(uint64_t number, std::string id, ClientRequest request, Sink sink);
  void OnWorkerEvents(WorkerId worker, cluster::v1::StepEvents events);
  void OnWorkerLost(WorkerId worker, const absl::Status& why);
  void OnTimers();
  void OnTimer(Request& r, absl::Time now);
  void Dispatch();
  void StartAttempt(Request& r, const Route& route);
  cluster::v1::Submit SubmitFor(const Request& r, const Route& route, bool to_prefill) const;
  // Does what the effects say; `r` may be gone afterwards.
  void Apply(Request& r, RequestAttempts::Effects effects);
  void TakeTokens(Request& r, RequestAttempts::Effects* effects, ClientUpdate* update);
  void FillEnd(Request& r, const RequestAttempts::End& end, ClientUpdate* update);
  void StopRequest(Request& r, const RequestAttempts::End& end);
  void AbortRequest(uint64_t number);
  void AbortRequests();
  void Settle(Request& r);  // after a step of its attempts: load, waiting list, timer
  void Erase(Request& r);
  void Pin();
  void PublishStatus();
  void SetReady(std::string why_not) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CoreOptions options_;
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

  std::mt19937_64 jitter_;
  std::map<uint64_t, std::unique_ptr<Request>> requests_;
  std::map<std::string, uint64_t> by_wire_id_;
  std::set<std::pair<int, uint64_t>> waiting_;        // priority, arrival
  std::set<std::pair<absl::Time, uint64_t>> timers_;  // one per request
  std::vector<uint64_t> aborts_;                      // that sinks asked for
  bool status_dirty_ = true;
  std::unique_ptr<WorkerPool> pool_;
  std::thread thread_;
};

}  // namespace switchyard

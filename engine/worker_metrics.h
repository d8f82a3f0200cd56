// engine/worker_metrics.h: the series that prefill and decode workers share, and the HTTP port that
// shows them. Names are the router's where the figure is the same; the label `role` tells whose it
// is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "common/net/http_server.h"
#include "common/telemetry/metrics.h"
#include "engine/engine.h"
#include "engine/ep_rank.h"
#include "engine/machine_peak.h"
#include "engine/work_estimate.h"

namespace switchyard {

// A moment of a worker.
struct WorkerSnapshot {
  EngineStats engine;
  uint64_t steps = 0;
  bool busy = false, draining = false;
  int routers = 0;      // that are connected
  size_t attempts = 0;  // that have not ended
  EpSnapshot ep = {};
  uint64_t spans_lost = 0;
  absl::Status health;
  absl::Time at;  // of a monotonic clock
};

// Thread-safe.
class WorkerMetrics {
 public:
  // `role`: prefill or decode.
  WorkerMetrics(const std::string& model_name, const std::string& role);
  ~WorkerMetrics();

  // For the series of one role; they begin to exist when they are made.
  MetricRegistry& registry() { return registry_; }
  // What tokens and steps of this rank cost. Set before Serve.
  void SetWork(const WorkEstimate& work, const MachinePeak& peak);
  // Called before each scrape, one at a time: to bring gauges up to date. Set before Serve.
  void OnScrape(std::function<void()> update) { update_ = std::move(update); }
  std::string Text(const WorkerSnapshot& now);

  // Serves /metrics, /health (the process lives), /readyz (it takes work: 503 while it drains or
  // has failed), /expert_loads (JSON: EpSnapshot's, as `switchyard balance` reads them) on
  // `host`:`port`; 0: any. `snapshot` is called on the server's threads until Stop.
  absl::Status Serve(const std::string& host, int port, std::function<WorkerSnapshot()> snapshot);
  void Stop();
  int port() const { return server_ == nullptr ? -1 : server_->port(); }

 private:
  struct Series;
  void ShowWork(const WorkerSnapshot& now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  MetricRegistry registry_;
  const std::unique_ptr<Series> series_;
  WorkEstimate work_;
  MachinePeak peak_;
  Mutex mu_;  // one scrape at a time
  // Of the last scrape that showed shares.
  EngineStats before_ ABSL_GUARDED_BY(mu_);
  absl::Time before_at_ ABSL_GUARDED_BY(mu_);
  std::function<void()> update_ = [] {};
  std::unique_ptr<HttpServer> server_;
};

}  // namespace switchyard

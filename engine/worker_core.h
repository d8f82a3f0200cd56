// engine/worker_core.h: what prefill and decode workers have in common: the model, its engine and
// engine thread, the gRPC server with the routers' streams, and the control loop: the one thread
// that owns all per-attempt state of the worker. Whatever happens elsewhere (gRPC, engine, KV I/O)
// becomes a closure posted to the loop, in the order of its source.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/grpc_server.h"
#include "cluster/worker_server.h"
#include "common/clock.h"
#include "common/mailbox.h"
#include "engine/engine_thread.h"
#include "engine/ep_rank.h"
#include "engine/worker_env.h"
#include "engine/worker_metrics.h"
#include "engine/worker_options.h"

namespace switchyard {

inline constexpr absl::Duration kWorkerTick = absl::Milliseconds(100);

class WorkerCore final : public WorkerEnv {
 public:
  // All but the two `fill_…` are called on the loop; those must be thread-safe.
  struct Hooks {
    std::function<void(Engine&)> on_engine = [](Engine&) {};  // within Start, before it runs
    std::function<void(SessionId, cluster::v1::Submit)> on_submit;
    std::function<void(const AttemptKey&)> on_abort;  // the router's, or its session has ended
    std::function<void(EngineOutput)> on_output;      // one call per output, in order
    std::function<void(absl::Time now)> on_tick;      // every kWorkerTick
    std::function<void(cluster::v1::Registration*)> fill_registration;  // role and addresses
    std::vector<grpc::Service*> services;  // besides Worker; outlive the core's Stop
  };

  // Loads the model and makes its engine. Nothing runs yet. `role`: prefill or decode.
  static absl::StatusOr<std::unique_ptr<WorkerCore>> Create(const WorkerOptions& options,
                                                            const std::string& role);
  ~WorkerCore() override;

  // Starts loop, engine and server, and waits until the ranks of its group have met, if it has one.
  // Errors: a taken or bad port; kFailedPrecondition if a rank of the group computes otherwise.
  absl::Status Start(Hooks hooks);
  // Ends all calls and the loop: no hook runs afterwards, and Post does nothing. The engine and its
  // memory live on until the destructor. Idempotent.
  void Stop();
  // Runs `task` on the engine thread and waits for it.
  void RunOnEngine(EngineThread::Task task);

  // Runs `task` on the loop. A full box (65,536) fails the rank: what cannot be told is not lost
  // in silence.
  void Post(std::function<void()> task) override;
  // Runs `task` on the engine thread between two steps. As Post.
  void PostEngine(EngineTask task) override;
  // Queues an event for the router of `session`, on the loop. Those of one turn go together.
  void Send(SessionId session, cluster::v1::AttemptEvent event) override {
    events_.emplace_back(session, std::move(event));
  }

  // Thread-safe; of the engine: fixed values, and the KV memory by the rules of kvcache/layout.h.
  KvStorage& kv() override { return *kv_; }
  const Model& model() const { return *model_; }
  const EngineOptions& engine_options() const { return engine_options_; }
  const Clock& clock() const override { return clock_; }
  Logger* log() override { return log_; }
  SpanSink* spans() override { return spans_; }
  uint64_t incarnation() const { return incarnation_; }
  WorkerMetrics& metrics() { return *metrics_; }
  const std::string& host() const { return host_; }
  int port() const;  // waits until the server listens

  // Refuses new attempts and waits until the worker has said SetActive(0), at most `notice`.
  void Drain(absl::Duration notice);
  bool draining() const override { return draining_.load(std::memory_order_relaxed); }
  void SetActive(size_t attempts) override { active_.store(attempts, std::memory_order_relaxed); }

  absl::Status health() const;
  void Fail(absl::Status why);  // of the rank as a whole; the first one stays

 private:
  WorkerCore() = default;
  void RunLoop();
  // Loads the model, with the experts of this rank, and makes the rank of its group.
  absl::Status LoadModel(const WorkerOptions& options);
  // Tells the group that this rank has nothing more to do and serves it until all ranks say so.
  void LeaveGroup(absl::Time end);
  WorkerCallbacks MakeCallbacks();
  cluster::v1::Registration MakeRegistration() const;
  std::optional<cluster::v1::Heartbeat> MakeHeartbeat();  // nothing while the loop stands still
  WorkerSnapshot Snapshot();
  EngineStats Stats();  // of a moment ago

  const MonotonicClock clock_;
  std::string host_, metrics_host_;
  int wanted_port_ = 0, metrics_port_ = -1;
  uint64_t incarnation_ = 0;
  Hooks hooks_;
  Logger* log_ = nullptr;
  SpanSink* spans_ = nullptr;
  TlsOptions tls_;
  std::vector<WorkerServer::Addressed> events_;  // the loop's
  std::unique_ptr<Model> model_;
  std::unique_ptr<EpRank> ep_;      // null: this rank has all experts
  std::unique_ptr<Engine> engine_;  // until Start moves it into its thread
  EngineOptions engine_options_;
  KvStorage* kv_ = nullptr;
  Mailbox<std::function<void()>> mailbox_{1 << 16};
  std::unique_ptr<WorkerMetrics> metrics_;
  std::unique_ptr<WorkerServer> server_;
  std::unique_ptr<EngineThread> engine_thread_;
  std::unique_ptr<GrpcServer> grpc_;
  std::thread loop_;
  std::atomic<bool> draining_{false}, stop_{false};
  std::atomic<bool> stats_asked_{false};  // the engine has not answered yet
  std::atomic<size_t> active_{0};
  std::atomic<int64_t> turned_ms_{0};  // the loop's last turn
  mutable Mutex mu_;
  mutable CondVar listening_;
  int port_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status health_ ABSL_GUARDED_BY(mu_);
  EngineStats stats_ ABSL_GUARDED_BY(mu_);  // of a moment ago
};

}  // namespace switchyard

#include "engine/worker_core.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/random_word.h"
#include "common/status_macros.h"
#include "engine/wire_conversion.h"

namespace switchyard {

namespace pb = cluster::v1;

namespace {
// Who delivers no token for so long must not seem to be alive. A turn takes at most kWorkerTick and
// what its tasks do, which is next to nothing.
constexpr absl::Duration kTurnMax = absl::Seconds(1);
}  // namespace

absl::StatusOr<std::unique_ptr<WorkerCore>> WorkerCore::Create(const WorkerOptions& options,
                                                               const std::string& role) {
  std::unique_ptr<WorkerCore> core(new WorkerCore());
  ASSIGN_OR_RETURN(auto host_port, SplitHostPort(options.listen));
  std::tie(core->host_, core->wanted_port_) = std::move(host_port);
  core->incarnation_ = RandomWord() | 1;  // 0 means: not known
  core->log_ = options.log;
  core->spans_ = options.spans;
  core->tls_ = options.tls;
  RETURN_IF_ERROR(core->LoadModel(options));
  if (options.log != nullptr) {
    for (const std::string& notice : core->model_->notices()) options.log->Info(notice);
  }
  EngineOptions engine = options.engine;
  engine.prefix_seed = RandomWord();  // a secret, unlike the incarnation
  ASSIGN_OR_RETURN(core->engine_, Engine::Create(core->model_.get(), engine, core->ep_.get()));
  core->engine_options_ = core->engine_->options();
  if (core->ep_ != nullptr) core->ep_->UseEngine(core->engine_options_);
  core->kv_ = &core->engine_->kv();
  core->metrics_port_ = options.metrics_port;
  core->metrics_host_ = options.metrics_host.empty() ? core->host_ : options.metrics_host;
  const std::filesystem::path dir = std::filesystem::path(options.model_dir).lexically_normal();
  core->metrics_ = std::make_unique<WorkerMetrics>(
      (dir.has_filename() ? dir : dir.parent_path()).filename().string(), role);
  core->metrics_->SetWork(
      EstimateWork(core->model_->config(), options.model.dtype, options.model.quantization,
                   std::max(1, options.ep.world()), core->model_->options().expands_prompts()),
      options.peak);
  {
    MutexLock lock(core->mu_);
    core->stats_ = core->engine_->stats();
  }
  return core;
}

absl::Status WorkerCore::LoadModel(const WorkerOptions& options) {
  ModelOptions model = options.model;
  if (!options.ep.alone()) {
    ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
    ASSIGN_OR_RETURN(Placement placement, MakePlacement(config, options.ep));
    model.placement = std::make_shared<const Placement>(std::move(placement));
    model.rank = RankId(options.ep.rank);
    model.tensor_rank = options.ep.tensor_rank();
    model.tensor_ranks = options.ep.tensor_ranks;
  }
  ASSIGN_OR_RETURN(model_, Model::Load(options.model_dir, model));
  if (options.ep.alone()) return absl::OkStatus();
  ASSIGN_OR_RETURN(ep_,
                   EpRank::Create(options.ep, model_.get(), model.placement, &clock_, options.log));
  return absl::OkStatus();
}

WorkerCore::~WorkerCore() {
  Stop();
  engine_thread_.reset();
}

absl::Status WorkerCore::Start(Hooks hooks) {
  hooks_ = std::move(hooks);
  server_ = std::make_unique<WorkerServer>(MakeCallbacks());
  loop_ = std::thread([this] { RunLoop(); });
  hooks_.on_engine(*engine_);
  engine_thread_ = std::make_unique<EngineThread>(
      std::move(engine_),
      [this](std::vector<EngineOutput> outputs) {
        Post([this, outputs = std::move(outputs)]() mutable {
          for (EngineOutput& output : outputs) hooks_.on_output(std::move(output));
        });
      },
      [this](absl::Status why) { Fail(std::move(why)); }, ep_.get());
  std::vector<grpc::Service*> services = hooks_.services;
  services.push_back(server_.get());
  if (ep_ != nullptr) services.push_back(ep_->service());
  GrpcServerOptions listen;
  listen.host = host_;
  listen.port = wanted_port_;
  listen.tls = tls_;
  ASSIGN_OR_RETURN(grpc_, GrpcServer::Listen(listen, services));
  {
    MutexLock lock(mu_);
    port_ = grpc_->port();
    listening_.NotifyAll();
  }
  if (metrics_port_ >= 0) {
    RETURN_IF_ERROR(metrics_->Serve(metrics_host_, metrics_port_, [this] { return Snapshot(); }));
  }
  // The first task runs when the ranks of the group have met.
  if (ep_ != nullptr) RunOnEngine([](Engine&) {});
  return health();
}

void WorkerCore::Stop() {
  if (stop_.exchange(true)) return;
  if (ep_ != nullptr) ep_->Stop();
  if (metrics_ != nullptr) metrics_->Stop();
  if (grpc_ != nullptr) grpc_->Shutdown();
  mailbox_.Close();
  if (loop_.joinable()) loop_.join();
}

void WorkerCore::RunOnEngine(EngineThread::Task task) {
  auto done = std::make_shared<std::promise<void>>();
  std::future<void> future = done->get_future();
  const bool posted = engine_thread_ != nullptr &&
                      engine_thread_->Post([done, task = std::move(task)](Engine& engine) {
                        task(engine);
                        done->set_value();
                      });
  if (posted) future.wait();
}

int WorkerCore::port() const {
  MutexLock lock(mu_);
  while (port_ == 0) listening_.Wait(mu_);
  return port_;
}

void WorkerCore::RunLoop() {
  absl::Time next_tick = clock_.Now() + kWorkerTick;
  while (!stop_.load(std::memory_order_relaxed)) {
    turned_ms_.store(absl::ToUnixMillis(clock_.Now()), std::memory_order_relaxed);
    for (auto& task : mailbox_.Take(next_tick - clock_.Now())) task();
    if (const absl::Time now = clock_.Now(); now >= next_tick) {
      hooks_.on_tick(now);
      next_tick = now + kWorkerTick;
    }
    if (!events_.empty()) server_->SendAll(std::exchange(events_, {}));
  }
}

void WorkerCore::Post(std::function<void()> task) {
  if (mailbox_.Post(std::move(task)) || stop_.load(std::memory_order_relaxed)) return;
  Fail(absl::InternalError("the control loop's mailbox is full"));
}

void WorkerCore::PostEngine(EngineThread::Task task) {
  if (engine_thread_->Post(std::move(task)) || stop_.load(std::memory_order_relaxed)) return;
  Fail(absl::InternalError("the engine thread's mailbox is full"));
}

WorkerCallbacks WorkerCore::MakeCallbacks() {
  WorkerCallbacks callbacks;
  callbacks.registration = [this] { return MakeRegistration(); };
  callbacks.heartbeat = [this] { return MakeHeartbeat(); };
  callbacks.on_submit = [this](SessionId session, pb::Submit submit) {
    Post([this, session, submit = std::move(submit)]() mutable {
      if (draining()) {
        const auto status = absl::UnavailableError("the worker is draining");
        return Send(session, ErrorEvent(FromProto(submit.id()), status));
      }
      hooks_.on_submit(session, std::move(submit));
    });
  };
  callbacks.on_abort = [this](SessionId, const AttemptKey& key) {
    Post([this, key] { hooks_.on_abort(key); });
  };
  callbacks.on_session_end = [this](SessionId, std::vector<AttemptKey> keys) {
    Post([this, keys = std::move(keys)] {
      for (const AttemptKey& key : keys) hooks_.on_abort(key);
    });
  };
  return callbacks;
}

pb::Registration WorkerCore::MakeRegistration() const {
  const KvLayout& layout = kv_->layout();
  pb::Registration r;
  r.set_incarnation(incarnation_);
  r.set_numerics_id(model_->numerics_id());
  r.set_layout_id(layout.LayoutId());
  r.set_max_model_len(engine_options_.max_model_len);
  r.set_block_tokens(layout.block_tokens);
  r.set_kv_blocks_total(kv_->blocks());
  r.set_vocab_size(model_->config().vocab_size);
  hooks_.fill_registration(&r);
  return r;
}

EngineStats WorkerCore::Stats() {
  // The next call's numbers; a stuck engine shows in `steps`, which needs no answer from it.
  if (!stats_asked_.exchange(true)) {
    PostEngine([this](Engine& engine) {
      EngineStats stats = engine.stats();
      MutexLock lock(mu_);
      stats_ = stats;
      stats_asked_ = false;
    });
  }
  MutexLock lock(mu_);
  return stats_;
}

WorkerSnapshot WorkerCore::Snapshot() {
  return {.engine = Stats(),
          .steps = engine_thread_->steps(),
          .busy = engine_thread_->busy(),
          .draining = draining(),
          .routers = server_->sessions(),
          .attempts = active_.load(std::memory_order_relaxed),
          .ep = ep_ != nullptr ? ep_->Snapshot() : EpSnapshot{},
          .spans_lost = spans_ != nullptr ? spans_->lost() : 0,
          .health = health(),
          .at = clock_.Now()};
}

std::optional<pb::Heartbeat> WorkerCore::MakeHeartbeat() {
  if (clock_.Now() - absl::FromUnixMillis(turned_ms_.load(std::memory_order_relaxed)) > kTurnMax) {
    return std::nullopt;
  }
  pb::Heartbeat h;
  h.set_steps(engine_thread_->steps());
  h.set_progress(engine_thread_->progress());
  h.set_engine_cpu_ms(engine_thread_->signs_of_life());
  h.set_busy(engine_thread_->busy());
  // Who cannot take requests says so as one that drains: none are sent.
  const bool takes = ep_ == nullptr || (ep_->tensor_rank() == 0 && ep_->tensor_epoch() != 0);
  h.set_draining(draining() || !takes);
  ToProto(Stats(), &h);
  return h;
}

void WorkerCore::Drain(absl::Duration notice) {
  draining_ = true;
  grpc_->SetServing(false);
  server_->HeartbeatNow();
  // A submit that came before this moment has been counted when the barrier is reached.
  auto barrier = std::make_shared<std::atomic<bool>>(false);
  Post([barrier] { *barrier = true; });
  const absl::Time end = clock_.Now() + notice;
  while (clock_.Now() < end && !(*barrier && active_ == 0)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (ep_ != nullptr) LeaveGroup(end);
}

void WorkerCore::LeaveGroup(absl::Time end) {
  PostEngine([this](Engine&) { ep_->Leave(); });
  while (clock_.Now() < end && !ep_->left() && health().ok()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

absl::Status WorkerCore::health() const {
  MutexLock lock(mu_);
  return health_;
}

void WorkerCore::Fail(absl::Status why) {
  MutexLock lock(mu_);
  if (health_.ok()) health_ = std::move(why);
}

}  // namespace switchyard

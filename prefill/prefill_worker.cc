#include "prefill/prefill_worker.h"

#include <utility>

#include "common/status_macros.h"
#include "engine/worker_core.h"
#include "prefill/grpc_handoff_channel.h"
#include "prefill/handoff_metrics.h"
#include "prefill/prefill_attempts.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

class PrefillWorkerImpl final : public PrefillWorker {
 public:
  ~PrefillWorkerImpl() override;
  absl::Status Start(const WorkerOptions& options);

  int port() const override { return core_->port(); }
  int metrics_port() const override { return core_->metrics().port(); }
  void Drain(absl::Duration notice) override { core_->Drain(notice); }
  absl::Status health() const override { return core_->health(); }

 private:
  WorkerCore::Hooks MakeHooks();

  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<HandoffMetrics> metrics_;
  std::unique_ptr<KvSender> sender_;
  std::unique_ptr<PrefillAttempts> attempts_;
};

absl::Status PrefillWorkerImpl::Start(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(core_, WorkerCore::Create(options, "prefill"));
  metrics_ = std::make_unique<HandoffMetrics>(core_->metrics().registry());
  KvSenderOptions send;
  send.lanes = options.kv_lanes;
  send.net_devices = options.kv_net_devices;
  send.log = options.log;
  ASSIGN_OR_RETURN(sender_, KvSender::Create(send, &core_->kv(), &core_->clock()));
  KvHello hello = sender_->MakeHello();
  hello.numerics_id = core_->model().numerics_id();
  hello.layout_id = core_->kv().layout().LayoutId();
  hello.peer_name = options.name;
  hello.incarnation = core_->incarnation();
  attempts_ = std::make_unique<PrefillAttempts>(
      core_.get(), sender_.get(), std::move(hello),
      [core = core_.get(), tls = options.tls](const std::string& a) {
        return std::make_unique<GrpcHandoffChannel>(
            a, tls, [core](std::function<void()> task) { core->Post(std::move(task)); });
      });
  attempts_->set_metrics(metrics_.get());
  return core_->Start(MakeHooks());
}

PrefillWorkerImpl::~PrefillWorkerImpl() {
  if (core_ == nullptr) return;
  core_->Stop();
  // The engine lives on, but sends nothing any more: then the sender may go.
  core_->RunOnEngine([](Engine& engine) { engine.SetKvProgress(nullptr); });
  if (attempts_ != nullptr) attempts_->Clear();
  sender_.reset();
}

WorkerCore::Hooks PrefillWorkerImpl::MakeHooks() {
  WorkerCore::Hooks hooks;
  hooks.on_engine = [this](Engine& engine) {
    engine.SetKvProgress([this](const KvProgress& p) { attempts_->OnProgress(p); });
  };
  hooks.on_submit = [this](SessionId session, pb::Submit submit) {
    attempts_->OnSubmit(session, std::move(submit));
  };
  hooks.on_abort = [this](const AttemptKey& key) { attempts_->OnAbort(key); };
  hooks.on_output = [this](EngineOutput output) { attempts_->OnOutput(std::move(output)); };
  hooks.on_tick = [this](absl::Time) { attempts_->OnTick(); };
  hooks.fill_registration = [](pb::Registration* r) { r->set_role(pb::ROLE_PREFILL); };
  return hooks;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorker::Create(const WorkerOptions& options) {
  auto worker = std::make_unique<PrefillWorkerImpl>();
  RETURN_IF_ERROR(worker->Start(options));
  return worker;
}

}  // namespace switchyard

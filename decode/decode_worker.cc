#include "decode/decode_worker.h"

#include <utility>

#include "common/status_macros.h"
#include "decode/decode_attempts.h"
#include "decode/handoff_service.h"
#include "decode/receiver_metrics.h"
#include "engine/worker_core.h"

namespace switchyard {
namespace {

namespace cpb = cluster::v1;
namespace hpb = handoff::v1;

class DecodeWorkerImpl final : public DecodeWorker {
 public:
  ~DecodeWorkerImpl() override;
  absl::Status Start(const WorkerOptions& options);

  int port() const override { return core_->port(); }
  int metrics_port() const override { return core_->metrics().port(); }
  void Drain(absl::Duration notice) override { core_->Drain(notice); }
  absl::Status health() const override { return core_->health(); }

 private:
  WorkerCore::Hooks MakeHooks(const WorkerOptions& options);
  HandoffService::Handlers MakeHandlers();

  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<ReceiverMetrics> metrics_;
  std::unique_ptr<HandoffService> service_;
  std::unique_ptr<DecodeAttempts> attempts_;
  std::unique_ptr<KvReceiver> receiver_;
};

absl::Status DecodeWorkerImpl::Start(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(core_, WorkerCore::Create(options, "decode"));
  attempts_ = std::make_unique<DecodeAttempts>(core_.get());
  KvReceiverOptions receive;
  receive.numerics_id = core_->model().numerics_id();
  receive.lanes = options.kv_lanes;
  receive.incarnation = core_->incarnation();
  receive.net_devices = options.kv_net_devices;
  receive.log = options.log;
  ASSIGN_OR_RETURN(receiver_, KvReceiver::Create(receive, &core_->kv(), &core_->clock(),
                                                 attempts_->MakeOnDropped()));
  attempts_->set_receiver(receiver_.get());
  metrics_ = std::make_unique<ReceiverMetrics>(core_->metrics().registry());
  core_->metrics().OnScrape([this] { metrics_->Update(receiver_->stats()); });
  service_ = std::make_unique<HandoffService>(MakeHandlers());
  return core_->Start(MakeHooks(options));
}

DecodeWorkerImpl::~DecodeWorkerImpl() {
  if (core_ == nullptr) return;
  core_->Stop();
  receiver_.reset();  // before the memory that it writes
  core_.reset();      // before the service that it serves
}

WorkerCore::Hooks DecodeWorkerImpl::MakeHooks(const WorkerOptions& options) {
  WorkerCore::Hooks hooks;
  hooks.on_submit = [this](SessionId session, cpb::Submit submit) {
    attempts_->OnSubmit(session, std::move(submit));
  };
  hooks.on_abort = [this](const AttemptKey& key) { attempts_->OnAbort(key); };
  hooks.on_output = [this](EngineOutput output) { attempts_->OnOutput(std::move(output)); };
  hooks.on_tick = [this](absl::Time now) { attempts_->OnTick(now); };
  hooks.fill_registration = [this, advertised = options.advertise_host](cpb::Registration* r) {
    r->set_role(cpb::ROLE_DECODE);
    const std::string& host = advertised.empty() ? core_->host() : advertised;
    r->set_handoff_address(HostPort(host, core_->port()));
  };
  hooks.services = {service_.get()};
  return hooks;
}

HandoffService::Handlers DecodeWorkerImpl::MakeHandlers() {
  HandoffService::Handlers handlers;
  handlers.hello = [this](const hpb::HelloRequest& request, auto answer) {
    attempts_->Hello(request, std::move(answer));
  };
  handlers.reserve = [this](hpb::ReserveRequest request, auto answer) {
    core_->Post([this, request = std::move(request), answer = std::move(answer)] {
      attempts_->Reserve(request, answer);
    });
  };
  handlers.commit = [this](hpb::CommitRequest request, auto answer) {
    core_->Post([this, request = std::move(request), answer = std::move(answer)] {
      attempts_->Commit(request, answer);
    });
  };
  handlers.cancel = [this](hpb::CancelRequest request, auto answer) {
    core_->Post([this, request = std::move(request), answer = std::move(answer)] {
      attempts_->Cancel(request);
      answer(hpb::CancelResponse());
    });
  };
  handlers.renew = [this](const hpb::RenewRequest& request, auto answer) {
    attempts_->Renew(request, std::move(answer));
  };
  return handlers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Create(const WorkerOptions& options) {
  auto worker = std::make_unique<DecodeWorkerImpl>();
  RETURN_IF_ERROR(worker->Start(options));
  return worker;
}

}  // namespace switchyard

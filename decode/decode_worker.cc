#include "decode/decode_worker.h"

#include <utility>

#include "common/status_macros.h"
#include "decode/decode_worker_impl.h"

namespace switchyard {

namespace cpb = cluster::v1;
namespace hpb = handoff::v1;

namespace {
constexpr size_t kLanesMax = 1024;  // of peers that were introduced; most are long gone
}

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorkerImpl::Create(
    const WorkerOptions& options) {
  std::unique_ptr<DecodeWorkerImpl> worker(new DecodeWorkerImpl());
  RETURN_IF_ERROR(worker->Start(options));
  return worker;
}

absl::Status DecodeWorkerImpl::Start(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(core_, WorkerCore::Create(options));
  KvReceiverOptions receive;
  receive.numerics_id = core_->model().numerics_id();
  receive.lanes = options.kv_lanes;
  receive.incarnation = core_->incarnation();
  receive.net_devices = options.kv_net_devices;
  receive.log = options.log;
  ASSIGN_OR_RETURN(
      receiver_,
      KvReceiver::Create(receive, &core_->kv(), &core_->clock(),
                         [this](const KvTarget& target, bool peer_may_write, absl::Status why) {
                           core_->Post([=, this] { OnDropped(target, peer_may_write, why); });
                         }));
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
    OnSubmit(session, std::move(submit));
  };
  hooks.on_abort = [this](const AttemptKey& key) { Feed(key, AttemptJoin::Aborted{}); };
  hooks.on_output = [this](EngineOutput output) { OnOutput(std::move(output)); };
  hooks.on_tick = [this](absl::Time now) { OnTick(now); };
  hooks.fill_registration = [this, advertised = options.advertise_host](cpb::Registration* r) {
    r->set_role(cpb::ROLE_DECODE);
    const std::string& host = advertised.empty() ? core_->host() : advertised;
    r->set_handoff_address(HostPort(host, core_->port()));
  };
  hooks.fill_heartbeat = [this](cpb::Heartbeat* h) {
    h->set_kv_bytes_moved(receiver_->stats().bytes);
  };
  hooks.services = {service_.get()};
  return hooks;
}

HandoffService::Handlers DecodeWorkerImpl::MakeHandlers() {
  HandoffService::Handlers handlers;
  handlers.hello = [this](hpb::HelloRequest request, auto answer) {
    OnHello(request, std::move(answer));
  };
  handlers.reserve = [this](hpb::ReserveRequest request, auto answer) {
    core_->Post([this, call = ReserveCall{std::move(request), std::move(answer)}]() mutable {
      OnReserve(std::move(call));
    });
  };
  handlers.commit = [this](hpb::CommitRequest request, auto answer) {
    core_->Post([this, call = CommitCall{std::move(request), std::move(answer)}]() mutable {
      OnCommit(std::move(call));
    });
  };
  handlers.cancel = [this](hpb::CancelRequest request, auto answer) {
    core_->Post([this, request = std::move(request), answer = std::move(answer)] {
      OnCancel(request);
      answer(hpb::CancelResponse());
    });
  };
  handlers.renew = [this](hpb::RenewRequest request, auto answer) {
    receiver_->Renew(request.peer_token(), {request.sessions().begin(), request.sessions().end()},
                     [answer = std::move(answer)](std::vector<uint64_t> lost) {
                       hpb::RenewResponse response;
                       response.mutable_lost()->Add(lost.begin(), lost.end());
                       answer(std::move(response));
                     });
  };
  return handlers;
}

void DecodeWorkerImpl::OnHello(const hpb::HelloRequest& request,
                               HandoffService::Answer<hpb::HelloResponse> answer) {
  receiver_->Hello(FromProto(request),
                   [this, answer = std::move(answer)](absl::StatusOr<KvHelloAnswer> a) {
                     if (!a.ok()) return answer(a.status());
                     core_->Post([this, token = a->peer_token, lane = a->lane] {
                       if (lanes_.size() >= kLanesMax) lanes_.erase(lanes_.begin());
                       lanes_[token] = lane;
                     });
                     answer(ToProto(*a));
                   });
}

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Create(const WorkerOptions& options) {
  return DecodeWorkerImpl::Create(options);
}

}  // namespace switchyard

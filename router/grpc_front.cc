#include "router/grpc_front.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_server.h"
#include "common/mutex.h"
#include "proto/inference.grpc.pb.h"
#include "router/grpc_convert.h"

namespace switchyard {
namespace {

// One Generate stream. gRPC deletes the reactor's hold on it in OnDone, the core drops its own with
// the request's last update; whichever comes later frees it.
class GenerateStream final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                             public std::enable_shared_from_this<GenerateStream> {
 public:
  GenerateStream(RouterCore* core, const v1::GenerateRequest* request, size_t queued_max)
      : core_(core), request_(*request), queued_max_(queued_max) {}

  void Begin(std::optional<absl::Duration> deadline) {
    self_ = shared_from_this();
    absl::StatusOr<ClientRequest> client = FromProto(request_, core_->tokenizer());
    if (!client.ok()) return Refuse(client.status());
    // Kept for its flags only; the prompt may be long.
    request_.clear_prompt();
    if (client->prompt_logprobs >= 0) prompt_ids_ = client->prompt_ids;
    if (deadline) client->deadline = *deadline;
    absl::StatusOr<std::string> id = core_->Submit(
        *std::move(client),
        [stream = shared_from_this()](ClientUpdate update) { stream->Push(std::move(update)); });
    if (!id.ok()) return Refuse(id.status());
    std::string abort;
    {
      MutexLock lock(mu_);
      id_ = *id;
      if (cancelled_) abort = RunningId();
      Pump();
    }
    if (!abort.empty()) core_->Abort(abort);
  }

  void OnWriteDone(bool ok) override {
    std::string abort;
    {
      MutexLock lock(mu_);
      writing_ = false;
      if (!ok) {
        cancelled_ = true;
        abort = RunningId();
      }
      Pump();
    }
    if (!abort.empty()) core_->Abort(abort);
  }
  void OnCancel() override {
    std::string abort;
    {
      MutexLock lock(mu_);
      cancelled_ = true;
      queue_.clear();
      abort = RunningId();
      Pump();
    }
    if (!abort.empty()) core_->Abort(abort);
  }
  void OnDone() override { self_.reset(); }

 private:
  void Refuse(const absl::Status& status) {
    MutexLock lock(mu_);
    finished_ = true;
    Finish(ToGrpc(status));
  }

  // The id that Abort may name. After the core's last update it may be another request's.
  std::string RunningId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return core_ended_ ? "" : id_; }

  // On the core's thread.
  void Push(ClientUpdate update) {
    std::string abort;
    {
      MutexLock lock(mu_);
      const bool last = update.finish != ClientUpdate::Finish::kNone;
      core_ended_ |= last;
      if (finished_) return;
      if (queue_.size() >= queued_max_ && !last && !cancelled_) {
        cancelled_ = true;
        too_slow_ = true;
        queue_.clear();
        abort = RunningId();
      }
      if (!cancelled_) queue_.push_back(std::move(update));
      Pump();
    }
    if (!abort.empty()) core_->Abort(abort);
  }

  // Writes the next update, or finishes once the last one is written. Not before Submit has told
  // the id, which every response carries.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_ || writing_ || id_.empty()) return;
    if (cancelled_) {
      finished_ = true;
      queue_.clear();
      Finish(too_slow_ ? grpc::Status(grpc::RESOURCE_EXHAUSTED,
                                      absl::StrCat("the client does not read: ", queued_max_,
                                                   " updates wait, the limit"))
                       : grpc::Status::CANCELLED);
      return;
    }
    if (queue_.empty()) return;
    ClientUpdate update = std::move(queue_.front());
    queue_.pop_front();
    if (update.finish == ClientUpdate::Finish::kError && update.tokens.empty() &&
        update.text.empty()) {
      finished_ = true;
      return Finish(ToGrpc(update.error));
    }
    response_ = ToProto(update, id_, request_, core_->tokenizer());
    if (update.first) {
      response_.mutable_prompt_token_ids()->Add(prompt_ids_.begin(), prompt_ids_.end());
    }
    if (update.finish == ClientUpdate::Finish::kNone) {
      writing_ = true;
      return StartWrite(&response_);
    }
    finished_ = true;
    StartWriteAndFinish(&response_, grpc::WriteOptions(), ToGrpc(update.error));
  }

  RouterCore* const core_;
  v1::GenerateRequest request_;
  const size_t queued_max_;
  std::vector<TokenId> prompt_ids_;  // if they are part of the answer
  std::shared_ptr<GenerateStream> self_;

  Mutex mu_;
  std::string id_ ABSL_GUARDED_BY(mu_);
  std::deque<ClientUpdate> queue_ ABSL_GUARDED_BY(mu_);
  v1::GenerateResponse response_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool core_ended_ ABSL_GUARDED_BY(mu_) = false;  // the core has sent the last update
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool too_slow_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

class RouterService final : public v1::Router::CallbackService {
 public:
  RouterService(RouterCore* core, size_t queued_max) : core_(core), queued_max_(queued_max) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    auto stream = std::make_shared<GenerateStream>(core_, request, queued_max_);
    std::optional<absl::Duration> deadline;
    if (context->deadline() != std::chrono::system_clock::time_point::max()) {
      deadline = absl::FromChrono(context->deadline() - std::chrono::system_clock::now());
    }
    stream->Begin(deadline);
    return stream.get();
  }
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override {
    response->set_found(core_->Abort(request->request_id()));
    return Done(context);
  }
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest*,
                                         v1::ModelInfo* response) override {
    *response = ToProto(core_->model(), core_->tokenizer() != nullptr);
    return Done(context);
  }
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context, const v1::GetLoadRequest*,
                                    v1::Load* response) override {
    *response = ToProto(core_->status());
    return Done(context);
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse* response) override {
    core_->StartDrain();
    const RouterStatus status = core_->status();
    response->set_requests_running(status.running + status.waiting);
    return Done(context);
  }

 private:
  static grpc::ServerUnaryReactor* Done(grpc::CallbackServerContext* context) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  RouterCore* const core_;
  const size_t queued_max_;
};

// gRPC keeps both as switches of the process; they only add services to servers built later.
void EnableHealthAndReflection() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

}  // namespace

struct GrpcFront::Impl {
  Impl(RouterCore* core, size_t queued_max) : service(core, queued_max) {}
  RouterService service;
  std::unique_ptr<GrpcServer> server;
};

GrpcFront::GrpcFront(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcFront::~GrpcFront() = default;

absl::StatusOr<std::unique_ptr<GrpcFront>> GrpcFront::Create(RouterCore* core,
                                                             const GrpcFrontOptions& options) {
  EnableHealthAndReflection();
  auto impl = std::make_unique<Impl>(core, options.queued_updates_max);
  absl::StatusOr<std::unique_ptr<GrpcServer>> server =
      GrpcServer::Listen({.host = options.host,
                          .port = options.port,
                          .next_free_port = options.next_free_port,
                          .receive_bytes_max = options.receive_bytes_max},
                         {&impl->service});
  if (!server.ok()) return server.status();
  impl->server = *std::move(server);
  std::unique_ptr<GrpcFront> front(new GrpcFront(std::move(impl)));
  front->SetServing(false);
  return front;
}

int GrpcFront::port() const { return impl_->server->port(); }

void GrpcFront::SetServing(bool serving) {
  impl_->server->server().GetHealthCheckService()->SetServingStatus(serving);
}

}  // namespace switchyard

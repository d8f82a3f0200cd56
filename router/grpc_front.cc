#include "router/grpc_front.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>

#include <mutex>
#include <utility>

#include "cluster/grpc_server.h"
#include "proto/inference.grpc.pb.h"
#include "router/api_keys.h"
#include "router/grpc_convert.h"
#include "router/grpc_streams.h"

namespace switchyard {
namespace {

class RouterService final : public AsyncRouterService {
 public:
  RouterService(RouterCore* core, const GrpcFrontOptions& options)
      : core_(core), keys_(options.api_keys, options.admin_keys) {}

  absl::Status CheckKey(const grpc::ServerContextBase& context) const {
    if (keys_.Allows(Authorization(context))) return absl::OkStatus();
    return absl::UnauthenticatedError(
        "a valid API key is wanted as metadata \"authorization: Bearer KEY\"");
  }

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override {
    return Answer(context, CheckAdmin(*context),
                  [&] { response->set_found(core_->Abort(request->request_id())); });
  }
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest*,
                                         v1::ModelInfo* response) override {
    return Answer(context, CheckKey(*context),
                  [&] { *response = ToProto(core_->model(), core_->tokenizer() != nullptr); });
  }
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context, const v1::GetLoadRequest*,
                                    v1::Load* response) override {
    return Answer(context, CheckKey(*context), [&] { *response = ToProto(core_->status()); });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse* response) override {
    return Answer(context, CheckAdmin(*context), [&] {
      core_->StartDrain();
      const RouterStatus status = core_->status();
      response->set_requests_running(status.running + status.waiting);
    });
  }

 private:
  // Empty: there is none.
  static std::string_view Authorization(const grpc::ServerContextBase& context) {
    const auto it = context.client_metadata().find("authorization");
    if (it == context.client_metadata().end()) return {};
    return {it->second.data(), it->second.size()};
  }
  // For what ends the service, or others' requests.
  absl::Status CheckAdmin(const grpc::CallbackServerContext& context) const {
    if (absl::Status allowed = CheckKey(context); !allowed.ok()) return allowed;
    if (keys_.has_admin_keys()) {
      if (keys_.AllowsAdmin(Authorization(context))) return absl::OkStatus();
      return absl::PermissionDeniedError(
          "an admin key is wanted as metadata \"authorization: Bearer KEY\"");
    }
    if (IsOfThisMachine(context.peer())) return absl::OkStatus();
    return absl::PermissionDeniedError(
        "Drain and Abort are for clients on the router's machine: it has no admin keys "
        "(--admin-key-file)");
  }
  template <typename Fill>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                   const absl::Status& allowed, const Fill& fill) {
    if (allowed.ok()) fill();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(allowed));
    return reactor;
  }

  RouterCore* const core_;
  const ApiKeys keys_;
};

// A switch of the process: it adds the service to servers that are built later.
void EnableReflection() {
  static std::once_flag once;
  std::call_once(once, [] { grpc::reflection::InitProtoReflectionServerBuilderPlugin(); });
}

}  // namespace

struct GrpcFront::Impl {
  Impl(RouterCore* core, const GrpcFrontOptions& options) : service(core, options) {}
  RouterService service;
  std::unique_ptr<GrpcServer> server;
  std::unique_ptr<GrpcStreams> streams;  // last: it shuts the server down
};

GrpcFront::GrpcFront(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcFront::~GrpcFront() = default;

absl::StatusOr<std::unique_ptr<GrpcFront>> GrpcFront::Create(RouterCore* core,
                                                             const GrpcFrontOptions& options) {
  EnableReflection();
  auto impl = std::make_unique<Impl>(core, options);
  absl::StatusOr<std::unique_ptr<GrpcServer>> server =
      GrpcServer::Listen({.host = options.host,
                          .port = options.port,
                          .next_free_port = options.next_free_port,
                          .receive_bytes_max = options.receive_bytes_max,
                          .tls = options.tls,
                          .queues = GrpcStreams::kQueues},
                         {&impl->service});
  if (!server.ok()) return server.status();
  impl->server = *std::move(server);
  impl->streams = std::make_unique<GrpcStreams>(GrpcStreams::Options{
      .core = core,
      .service = &impl->service,
      .server = impl->server.get(),
      .check = [service = &impl->service](
                   const grpc::ServerContextBase& context) { return service->CheckKey(context); },
      .queued_updates_max = options.queued_updates_max,
      .unread_grace = options.unread_grace,
      .ended_grace = options.ended_grace});
  std::unique_ptr<GrpcFront> front(new GrpcFront(std::move(impl)));
  front->SetServing(false);
  return front;
}

int GrpcFront::port() const { return impl_->server->port(); }

int GrpcFront::streams() const { return impl_->streams->running(); }

void GrpcFront::SetServing(bool serving) { impl_->server->SetServing(serving); }

}  // namespace switchyard

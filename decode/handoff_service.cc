#include "decode/handoff_service.h"

#include <memory>
#include <utility>

#include "cluster/grpc_server.h"
#include "common/mutex.h"

namespace switchyard {
namespace {

namespace pb = handoff::v1;

// When every block is taken, one is free again after a request has ended: some hundred steps.
constexpr char kRetryAfterMs[] = "200";

// A call under way, shared by gRPC's reactor and whoever will answer. gRPC keeps context, response
// and reactor until Finish, so they may be used by the one that takes the reactor out.
template <typename Response>
class PendingCall {
 public:
  PendingCall(grpc::CallbackServerContext* context, grpc::ServerUnaryReactor* reactor,
              Response* response)
      : context_(context), response_(response), reactor_(reactor) {}

  void Finish(absl::StatusOr<Response> answer) {
    grpc::ServerUnaryReactor* reactor;
    {
      MutexLock lock(mu_);
      reactor = std::exchange(reactor_, nullptr);
    }
    if (reactor == nullptr) return;
    if (absl::IsResourceExhausted(answer.status())) {
      context_->AddTrailingMetadata(kRetryAfterKey, kRetryAfterMs);
    }
    if (answer.ok()) *response_ = *std::move(answer);
    reactor->Finish(ToGrpc(answer.status()));
  }

 private:
  grpc::CallbackServerContext* const context_;
  Response* const response_;
  Mutex mu_;
  grpc::ServerUnaryReactor* reactor_ ABSL_GUARDED_BY(mu_);  // null: answered
};

template <typename Response>
class Reactor final : public grpc::ServerUnaryReactor {
 public:
  Reactor(grpc::CallbackServerContext* context, Response* response)
      : call_(std::make_shared<PendingCall<Response>>(context, this, response)) {}
  std::shared_ptr<PendingCall<Response>> call() const { return call_; }
  void OnCancel() override { call_->Finish(absl::CancelledError("the caller has gone")); }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<PendingCall<Response>> call_;
};

template <typename Request, typename Response>
grpc::ServerUnaryReactor* Handle(const HandoffService::Handler<Request, Response>& handler,
                                 grpc::CallbackServerContext* context, const Request* request,
                                 Response* response) {
  auto* reactor = new Reactor<Response>(context, response);  // deletes itself when done
  handler(*request, [call = reactor->call()](absl::StatusOr<Response> answer) {
    call->Finish(std::move(answer));
  });
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* HandoffService::Hello(Context* context, const pb::HelloRequest* request,
                                                pb::HelloResponse* response) {
  return Handle(handlers_.hello, context, request, response);
}
grpc::ServerUnaryReactor* HandoffService::Reserve(Context* context,
                                                  const pb::ReserveRequest* request,
                                                  pb::ReserveResponse* response) {
  return Handle(handlers_.reserve, context, request, response);
}
grpc::ServerUnaryReactor* HandoffService::Commit(Context* context, const pb::CommitRequest* request,
                                                 pb::CommitResponse* response) {
  return Handle(handlers_.commit, context, request, response);
}
grpc::ServerUnaryReactor* HandoffService::Cancel(Context* context, const pb::CancelRequest* request,
                                                 pb::CancelResponse* response) {
  return Handle(handlers_.cancel, context, request, response);
}
grpc::ServerUnaryReactor* HandoffService::Renew(Context* context, const pb::RenewRequest* request,
                                                pb::RenewResponse* response) {
  return Handle(handlers_.renew, context, request, response);
}

}  // namespace switchyard

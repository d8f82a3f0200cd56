// decode/handoff_service.h: handoff.proto as calls with an answer that comes later. No thread waits
// for one: gRPC's callback API.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "proto/handoff.grpc.pb.h"

namespace switchyard {

class HandoffService final : public handoff::v1::Handoff::CallbackService {
 public:
  // Thread-safe; the first call answers, later ones and those after the caller has gone do nothing.
  template <typename Response>
  using Answer = std::function<void(absl::StatusOr<Response>)>;
  template <typename Request, typename Response>
  using Handler = std::function<void(Request, Answer<Response>)>;

  // Called on gRPC's threads, several at a time; must not block.
  struct Handlers {
    Handler<handoff::v1::HelloRequest, handoff::v1::HelloResponse> hello;
    Handler<handoff::v1::ReserveRequest, handoff::v1::ReserveResponse> reserve;
    Handler<handoff::v1::CommitRequest, handoff::v1::CommitResponse> commit;
    Handler<handoff::v1::CancelRequest, handoff::v1::CancelResponse> cancel;
    Handler<handoff::v1::RenewRequest, handoff::v1::RenewResponse> renew;
  };
  explicit HandoffService(Handlers handlers) : handlers_(std::move(handlers)) {}

 private:
  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* Hello(Context* context, const handoff::v1::HelloRequest* request,
                                  handoff::v1::HelloResponse* response) override;
  grpc::ServerUnaryReactor* Reserve(Context* context, const handoff::v1::ReserveRequest* request,
                                    handoff::v1::ReserveResponse* response) override;
  grpc::ServerUnaryReactor* Commit(Context* context, const handoff::v1::CommitRequest* request,
                                   handoff::v1::CommitResponse* response) override;
  grpc::ServerUnaryReactor* Cancel(Context* context, const handoff::v1::CancelRequest* request,
                                   handoff::v1::CancelResponse* response) override;
  grpc::ServerUnaryReactor* Renew(Context* context, const handoff::v1::RenewRequest* request,
                                  handoff::v1::RenewResponse* response) override;

  const Handlers handlers_;
};

}  // namespace switchyard

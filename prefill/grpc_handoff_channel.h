// prefill/grpc_handoff_channel.h: HandoffChannel by gRPC.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>

#include "common/mutex.h"
#include "common/net/tls.h"
#include "prefill/handoff_channel.h"
#include "proto/handoff.grpc.pb.h"

namespace switchyard {

class GrpcHandoffChannel final : public HandoffChannel {
 public:
  // Runs a closure on the control loop; thread-safe; may drop it when the loop has ended.
  using PostToLoop = std::function<void(std::function<void()>)>;
  GrpcHandoffChannel(const std::string& address, const TlsOptions& tls, PostToLoop post);
  // Cancels what is under way and waits for it.
  ~GrpcHandoffChannel() override;

  void Hello(handoff::v1::HelloRequest request, absl::Duration timeout,
             Done<handoff::v1::HelloResponse> done) override;
  void Reserve(handoff::v1::ReserveRequest request, absl::Duration timeout,
               Done<handoff::v1::ReserveResponse> done) override;
  void Commit(handoff::v1::CommitRequest request, absl::Duration timeout,
              Done<handoff::v1::CommitResponse> done) override;
  void Cancel(handoff::v1::CancelRequest request, absl::Duration timeout,
              Done<handoff::v1::CancelResponse> done) override;
  void Renew(handoff::v1::RenewRequest request, absl::Duration timeout,
             Done<handoff::v1::RenewResponse> done) override;

 private:
  using Stub = handoff::v1::Handoff::StubInterface::async_interface;
  template <typename Request, typename Response>
  void Call(void (Stub::*method)(grpc::ClientContext*, const Request*, Response*,
                                 std::function<void(grpc::Status)>),
            Request request, absl::Duration timeout, Done<Response> done);

  const PostToLoop post_;
  const std::unique_ptr<handoff::v1::Handoff::Stub> stub_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // the loop's
  Mutex mu_;
  CondVar idle_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard

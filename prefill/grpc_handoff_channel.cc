#include "prefill/grpc_handoff_channel.h"

#include <chrono>
#include <utility>

#include "absl/strings/numbers.h"
#include "cluster/convert.h"
#include "cluster/grpc_server.h"

namespace switchyard {

namespace pb = handoff::v1;

namespace {

// With the decode rank's advice, if it gave one.
absl::Status FailureOf(const grpc::Status& status, const grpc::ClientContext& context) {
  absl::Status out = FromGrpc(status);
  const auto& trailing = context.GetServerTrailingMetadata();
  int64_t ms = 0;
  const auto found = trailing.find(kRetryAfterKey);
  if (found != trailing.end() &&
      absl::SimpleAtoi(std::string(found->second.data(), found->second.size()), &ms)) {
    SetRetryAfter(absl::Milliseconds(ms), &out);
  }
  return out;
}

}  // namespace

GrpcHandoffChannel::GrpcHandoffChannel(const std::string& address, const TlsOptions& tls,
                                       PostToLoop post)
    : post_(std::move(post)), stub_(pb::Handoff::NewStub(DialChannel(address, tls))) {}

GrpcHandoffChannel::~GrpcHandoffChannel() {
  *alive_ = false;
  MutexLock lock(mu_);
  closed_ = true;
  for (grpc::ClientContext* call : calls_) call->TryCancel();
  while (!calls_.empty()) idle_.Wait(mu_);
}

template <typename Request, typename Response>
void GrpcHandoffChannel::Call(void (Stub::*method)(grpc::ClientContext*, const Request*, Response*,
                                                   std::function<void(grpc::Status)>),
                              Request request, absl::Duration timeout, Done<Response> done) {
  struct State {
    grpc::ClientContext context;
    Request request;
    Response response;
    Done<Response> done;
  };
  auto state = std::make_shared<State>();
  state->request = std::move(request);
  state->done = std::move(done);
  state->context.set_deadline(std::chrono::system_clock::now() +
                              absl::ToChronoMilliseconds(timeout));
  {
    MutexLock lock(mu_);
    calls_.insert(&state->context);
  }
  // The answer comes on a thread of gRPC's. After the erase this object may go, and with it the
  // channel: the context, which refers to it too, goes before, because the last reference must not
  // go on that thread, which would have to join itself (gRPC then frees its queue twice).
  (stub_->async()->*method)(&state->context, &state->request, &state->response,
                            [this, state, post = post_](const grpc::Status& status) mutable {
                              absl::StatusOr<Response> answer = std::move(state->response);
                              if (!status.ok()) answer = FailureOf(status, state->context);
                              MutexLock lock(mu_);
                              if (!closed_) {
                                post([done = std::move(state->done), answer = std::move(answer),
                                      alive = alive_]() mutable {
                                  if (*alive) done(std::move(answer));
                                });
                              }
                              calls_.erase(&state->context);
                              state.reset();
                              idle_.NotifyAll();
                            });
}

void GrpcHandoffChannel::Hello(pb::HelloRequest request, absl::Duration timeout,
                               Done<pb::HelloResponse> done) {
  Call<pb::HelloRequest, pb::HelloResponse>(&Stub::Hello, std::move(request), timeout,
                                            std::move(done));
}

void GrpcHandoffChannel::Reserve(pb::ReserveRequest request, absl::Duration timeout,
                                 Done<pb::ReserveResponse> done) {
  Call<pb::ReserveRequest, pb::ReserveResponse>(&Stub::Reserve, std::move(request), timeout,
                                                std::move(done));
}

void GrpcHandoffChannel::Commit(pb::CommitRequest request, absl::Duration timeout,
                                Done<pb::CommitResponse> done) {
  Call<pb::CommitRequest, pb::CommitResponse>(&Stub::Commit, std::move(request), timeout,
                                              std::move(done));
}

void GrpcHandoffChannel::Cancel(pb::CancelRequest request, absl::Duration timeout,
                                Done<pb::CancelResponse> done) {
  Call<pb::CancelRequest, pb::CancelResponse>(&Stub::Cancel, std::move(request), timeout,
                                              std::move(done));
}

void GrpcHandoffChannel::Renew(pb::RenewRequest request, absl::Duration timeout,
                               Done<pb::RenewResponse> done) {
  Call<pb::RenewRequest, pb::RenewResponse>(&Stub::Renew, std::move(request), timeout,
                                            std::move(done));
}

}  // namespace switchyard

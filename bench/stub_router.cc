#include "bench/stub_router.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <mutex>

#include "common/clock.h"
#include "common/status_macros.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

// Writes max_tokens responses of one token each, the last with the finish reason.
class Answer final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  Answer(int tokens, absl::Duration delay) : left_(tokens) {
    if (delay <= absl::ZeroDuration()) {
      WriteNext();
      return;
    }
    alarm_.Set(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(delay),
               [this](bool) { WriteNext(); });
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    if (left_ == 0) return Finish(grpc::Status::OK);
    WriteNext();
  }
  void OnCancel() override { alarm_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    response_.clear_token_ids();
    response_.add_token_ids(left_--);
    if (left_ == 0) response_.set_finish_reason(v1::FINISH_REASON_LENGTH);
    StartWrite(&response_);
  }

  int left_;
  v1::GenerateResponse response_;
  grpc::Alarm alarm_;
};

class Failure final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  Failure() { Finish(grpc::Status(grpc::RESOURCE_EXHAUSTED, "no room")); }
  void OnDone() override { delete this; }
};

class Service final : public v1::Router::CallbackService {
 public:
  explicit Service(const StubRouterOptions& options) : options_(options) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext*, const v1::GenerateRequest* request) override {
    if (options_.fail_all) return new Failure();
    std::call_once(first_, [this] { start_ = clock_.Now(); });
    const absl::Duration at = clock_.Now() - start_;
    const absl::Duration end = options_.stall_after + options_.stall;
    const bool stalled = at >= options_.stall_after && at < end;
    return new Answer(request->max_tokens() + options_.tokens_extra,
                      stalled ? end - at : absl::ZeroDuration());
  }
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest*,
                                         v1::ModelInfo* info) override {
    info->set_id("stub");
    info->set_vocab_size(1000);
    info->set_max_model_len(4096);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const StubRouterOptions options_;
  const MonotonicClock clock_;
  std::once_flag first_;
  absl::Time start_;
};

class StubRouterImpl final : public StubRouter {
 public:
  explicit StubRouterImpl(const StubRouterOptions& options) : service_(options) {}
  absl::Status Listen(int port) {
    GrpcServerOptions listen;
    listen.port = port;
    ASSIGN_OR_RETURN(server_, GrpcServer::Listen(listen, {&service_}));
    return absl::OkStatus();
  }
  ~StubRouterImpl() override {
    if (server_ != nullptr) server_->Shutdown();
  }
  int port() const override { return server_->port(); }

 private:
  Service service_;
  std::unique_ptr<GrpcServer> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StubRouter>> StubRouter::Create(const StubRouterOptions& options) {
  auto stub = std::make_unique<StubRouterImpl>(options);
  RETURN_IF_ERROR(stub->Listen(options.port));
  return stub;
}

}  // namespace switchyard

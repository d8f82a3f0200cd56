#include "router/grpc_front.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "cluster/grpc_server.h"
#include "common/mutex.h"
#include "proto/inference.grpc.pb.h"
#include "router/api_keys.h"
#include "router/grpc_convert.h"

namespace switchyard {
namespace {

// One Generate stream. gRPC deletes the reactor's hold on it in OnDone, the core drops its own with
// the last update of the last answer; whichever comes later frees it.
class GenerateStream final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                             public std::enable_shared_from_this<GenerateStream> {
 public:
  GenerateStream(RouterCore* core, grpc::CallbackServerContext* context,
                 const v1::GenerateRequest* request, size_t queued_max)
      : core_(core), context_(context), request_(request), queued_max_(queued_max) {}

  // `allowed`: whether the client may ask at all.
  void Begin(const absl::Status& allowed, std::optional<absl::Duration> deadline,
             const std::optional<TraceContext>& trace) {
    self_ = shared_from_this();
    if (!allowed.ok()) return Refuse(allowed);
    const absl::Status admitted =
        core_->CheckAdmission(request_->priority(), deadline.value_or(absl::InfiniteDuration()));
    if (!admitted.ok()) return Refuse(admitted);
    absl::StatusOr<std::vector<ClientRequest>> answers =
        FromProto(*request_, core_->model(), core_->limits(), core_->tokenizer());
    if (!answers.ok()) return Refuse(answers.status());
    with_logprobs_ = request_->has_logprobs();
    request_ = nullptr;
    if (answers->front().prompt_logprobs >= 0) prompt_ids_ = answers->front().prompt_ids;
    {
      MutexLock lock(mu_);
      answers_.resize(answers->size());
      open_ = answers->size();
    }
    for (size_t i = 0; i < answers->size(); ++i) {
      ClientRequest& client = (*answers)[i];
      if (deadline) client.deadline = *deadline;
      client.trace = trace;
      absl::StatusOr<std::string> id =
          core_->Submit(std::move(client), [stream = shared_from_this(), i](ClientUpdate update) {
            stream->Push(i, std::move(update));
          });
      if (!id.ok()) return Refuse(id.status());
      MutexLock lock(mu_);
      answers_[i].id = *std::move(id);
      if (cancelled_) break;
    }
    Abort([this] {
      MutexLock lock(mu_);
      begun_ = true;
      return Pump();
    }());
  }

  void OnWriteDone(bool ok) override {
    Abort([&] {
      MutexLock lock(mu_);
      writing_ = false;
      cancelled_ |= !ok;
      return Pump();
    }());
  }
  void OnCancel() override {
    Abort([this] {
      MutexLock lock(mu_);
      cancelled_ = true;
      return Pump();
    }());
  }
  void OnDone() override { self_.reset(); }

 private:
  struct Answer {
    std::string id;      // the core's; empty before it was told, and once it need not be aborted
    bool ended = false;  // the core has sent the last update: the id may be another request's
  };
  struct Update {
    size_t answer;
    ClientUpdate update;
  };

  void Refuse(const absl::Status& status) {
    if (const absl::Duration after = RetryAfter(status); after > absl::ZeroDuration()) {
      context_->AddTrailingMetadata(kRetryAfterKey, absl::StrCat(absl::ToInt64Milliseconds(after)));
    }
    Abort([&] {
      MutexLock lock(mu_);
      End(ToGrpc(status));
      return Pump();
    }());
  }

  // Not under mu_: the core may be waiting for it in Push.
  void Abort(const std::vector<std::string>& ids) {
    for (const std::string& id : ids) core_->Abort(id);
  }

  // On the core's thread.
  void Push(size_t answer, ClientUpdate update) {
    Abort([&] {
      MutexLock lock(mu_);
      const bool last = update.finish != ClientUpdate::Finish::kNone;
      answers_[answer].ended |= last;
      if (queue_.size() >= queued_max_ && !last) cancelled_ = too_slow_ = true;
      if (!cancelled_ && !finished_) queue_.push_back({answer, std::move(update)});
      return Pump();
    }());
  }

  void End(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (std::exchange(finished_, true)) return;
    Finish(status);
  }

  // Writes the next update, or finishes once the last one is written. Not before Submit has told
  // the ids, which the responses carry. Returns the requests that nobody waits for any more.
  std::vector<std::string> Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (cancelled_ && begun_ && !writing_) {
      End(too_slow_ ? grpc::Status(grpc::RESOURCE_EXHAUSTED,
                                   absl::StrCat("the client does not read: ", queued_max_,
                                                " updates wait, the limit"))
                    : grpc::Status::CANCELLED);
    }
    if (!finished_ && !cancelled_ && begun_ && !writing_ && !queue_.empty()) {
      Update next = std::move(queue_.front());
      queue_.pop_front();
      Write(next.answer, std::move(next.update));
    }
    std::vector<std::string> aborts;
    if (!finished_ && !cancelled_) return aborts;
    queue_.clear();
    for (Answer& a : answers_) {
      if (!a.ended && !a.id.empty()) aborts.push_back(std::exchange(a.id, ""));
    }
    return aborts;
  }

  void Write(size_t answer, ClientUpdate update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const bool failed = update.finish == ClientUpdate::Finish::kError;
    if (failed && update.tokens.empty() && update.text.empty()) return End(ToGrpc(update.error));
    response_ = ToProto(update, answers_[answer].id, with_logprobs_, core_->tokenizer());
    response_.set_index(static_cast<int>(answer));
    if (update.first) {
      response_.mutable_prompt_token_ids()->Add(prompt_ids_.begin(), prompt_ids_.end());
    }
    if (update.finish != ClientUpdate::Finish::kNone) --open_;
    if (!failed && open_ > 0) {
      writing_ = true;
      return StartWrite(&response_);
    }
    finished_ = true;
    StartWriteAndFinish(&response_, grpc::WriteOptions(), ToGrpc(update.error));
  }

  RouterCore* const core_;
  grpc::CallbackServerContext* const context_;  // lives until OnDone
  const v1::GenerateRequest* request_;          // during Begin only
  bool with_logprobs_ = false;
  const size_t queued_max_;
  PromptIds prompt_ids_;  // if they are part of the answer
  std::shared_ptr<GenerateStream> self_;

  Mutex mu_;
  std::vector<Answer> answers_ ABSL_GUARDED_BY(mu_);
  size_t open_ ABSL_GUARDED_BY(mu_) = 0;  // answers whose end is not written
  std::deque<Update> queue_ ABSL_GUARDED_BY(mu_);
  v1::GenerateResponse response_ ABSL_GUARDED_BY(mu_);
  bool begun_ ABSL_GUARDED_BY(mu_) = false;  // every answer was submitted
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool too_slow_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

class RouterService final : public v1::Router::CallbackService {
 public:
  RouterService(RouterCore* core, const GrpcFrontOptions& options)
      : core_(core), keys_(options.api_keys), queued_max_(options.queued_updates_max) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    auto stream = std::make_shared<GenerateStream>(core_, context, request, queued_max_);
    std::optional<absl::Duration> deadline;
    if (context->deadline() != std::chrono::system_clock::time_point::max()) {
      deadline = absl::FromChrono(context->deadline() - std::chrono::system_clock::now());
    }
    stream->Begin(CheckKey(*context), deadline,
                  ParseTraceparent(Metadata(*context, "traceparent")));
    return stream.get();
  }
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override {
    return Answer(context, [&] { response->set_found(core_->Abort(request->request_id())); });
  }
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest*,
                                         v1::ModelInfo* response) override {
    return Answer(context,
                  [&] { *response = ToProto(core_->model(), core_->tokenizer() != nullptr); });
  }
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context, const v1::GetLoadRequest*,
                                    v1::Load* response) override {
    return Answer(context, [&] { *response = ToProto(core_->status()); });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse* response) override {
    return Answer(context, [&] {
      core_->StartDrain();
      const RouterStatus status = core_->status();
      response->set_requests_running(status.running + status.waiting);
    });
  }

 private:
  // Empty: there is none.
  static std::string_view Metadata(const grpc::CallbackServerContext& context, const char* key) {
    const auto it = context.client_metadata().find(key);
    if (it == context.client_metadata().end()) return {};
    return {it->second.data(), it->second.size()};
  }
  absl::Status CheckKey(const grpc::CallbackServerContext& context) const {
    if (keys_.Allows(Metadata(context, "authorization"))) return absl::OkStatus();
    return absl::UnauthenticatedError(
        "a valid API key is wanted as metadata \"authorization: Bearer KEY\"");
  }
  template <typename Fill>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const Fill& fill) {
    const absl::Status allowed = CheckKey(*context);
    if (allowed.ok()) fill();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(allowed));
    return reactor;
  }

  RouterCore* const core_;
  const ApiKeys keys_;
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
  Impl(RouterCore* core, const GrpcFrontOptions& options) : service(core, options) {}
  RouterService service;
  std::unique_ptr<GrpcServer> server;
};

GrpcFront::GrpcFront(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcFront::~GrpcFront() = default;

absl::StatusOr<std::unique_ptr<GrpcFront>> GrpcFront::Create(RouterCore* core,
                                                             const GrpcFrontOptions& options) {
  EnableHealthAndReflection();
  auto impl = std::make_unique<Impl>(core, options);
  absl::StatusOr<std::unique_ptr<GrpcServer>> server =
      GrpcServer::Listen({.host = options.host,
                          .port = options.port,
                          .next_free_port = options.next_free_port,
                          .receive_bytes_max = options.receive_bytes_max,
                          .tls = options.tls},
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

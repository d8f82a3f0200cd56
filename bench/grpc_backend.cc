#include <grpcpp/grpcpp.h>

#include <unordered_set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/backend.h"
#include "common/mutex.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

void SendKey(const std::string& key, grpc::ClientContext* context) {
  if (!key.empty()) context->AddMetadata("authorization", absl::StrCat("Bearer ", key));
}

class GrpcBackend;

// One request in flight. gRPC calls it on its own threads, one call at a time; lives until OnDone
// has handed its record on.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(const BackendOptions& o, LoadRequest request, const Clock* clock, GrpcBackend* backend,
         LoadBackend::Done done)
      : drop_after_(request.drop_after),
        events_max_(EventsMax(request.item)),
        intended_(request.start + request.intended),
        clock_(clock),
        backend_(backend),
        done_(std::move(done)) {
    const WorkItem& item = request.item;
    *request_.mutable_tokens()->mutable_ids() = {item.prompt_ids.begin(), item.prompt_ids.end()};
    request_.set_max_tokens(item.output_len);
    request_.set_ignore_eos(o.ignore_eos);
    request_.mutable_sampling()->set_temperature(o.temperature);
    request_.mutable_sampling()->set_seed(request.seed);
    record_.prompt_tokens = static_cast<int>(item.prompt_ids.size());
    record_.cut = item.cut;
    record_.intended = request.intended;
    context_.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(o.timeout));
    SendKey(o.api_key, &context_);
  }

  void Start(v1::Router::Stub& stub) {
    record_.sent_late = clock_->Now() - intended_;
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  // From any thread, before OnDone has run.
  void Cancel() {
    cancelled_ = true;
    context_.TryCancel();
  }

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  const int drop_after_;  // tokens; 0: never
  const int64_t events_max_;
  const absl::Time intended_;
  const Clock* const clock_;
  GrpcBackend* const backend_;
  const LoadBackend::Done done_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  RequestRecord record_;
  absl::Time last_;
  bool finished_ = false;
  std::atomic<bool> cancelled_{false};
};

class GrpcBackend final : public LoadBackend {
 public:
  GrpcBackend(const BackendOptions& options, const Clock* clock)
      : options_(options), clock_(clock) {
    for (int i = 0; i < std::max(1, options.connections); ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
      stubs_.push_back(v1::Router::NewStub(grpc::CreateCustomChannel(
          options.address, grpc::InsecureChannelCredentials(), arguments)));
    }
  }
  ~GrpcBackend() override {
    MutexLock lock(mu_);
    while (under_way_ > 0) idle_.Wait(mu_);
  }
  const char* name() const override { return "switchyard-grpc"; }

  absl::StatusOr<BackendModel> AwaitReady(absl::Duration limit) override {
    BackendModel model;
    const auto until = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(limit);
    for (const auto& stub : stubs_) {  // connects all
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      context.set_deadline(until);
      SendKey(options_.api_key, &context);
      v1::ModelInfo info;
      if (auto s = stub->GetModelInfo(&context, {}, &info); !s.ok()) return FromGrpc(s, limit);
      model = {info.id(), info.vocab_size(), info.max_model_len()};
    }
    return model;
  }

  void Start(LoadRequest request, Done done) override {
    auto* stream = new Stream(options_, std::move(request), clock_, this, std::move(done));
    v1::Router::Stub* stub = nullptr;
    {
      MutexLock lock(mu_);
      streams_.insert(stream);
      ++under_way_;
      stub = stubs_[next_++ % stubs_.size()].get();
    }
    stream->Start(*stub);
  }
  void CancelAll() override {
    MutexLock lock(mu_);
    for (Stream* stream : streams_) stream->Cancel();
  }
  // Deletes it while the channels still live. Its context refers to one, and the last reference
  // must not go on a thread of gRPC's: that would have to join itself, and gRPC frees its queue
  // twice.
  void End(Stream* stream) {
    {
      MutexLock lock(mu_);
      streams_.erase(stream);
    }
    delete stream;
    MutexLock lock(mu_);
    if (--under_way_ == 0) idle_.NotifyAll();
  }

 private:
  absl::Status FromGrpc(const grpc::Status& s, absl::Duration waited) const {
    const auto code = static_cast<absl::StatusCode>(s.error_code());
    if (code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kUnavailable) {
      return absl::UnavailableError(absl::StrCat("the router at ", options_.address,
                                                 " does not answer (waited ",
                                                 absl::FormatDuration(waited), ")"));
    }
    return absl::Status(code,
                        absl::StrCat("router at ", options_.address, ": ", s.error_message()));
  }

  const BackendOptions options_;
  const Clock* const clock_;
  std::vector<std::unique_ptr<v1::Router::Stub>> stubs_;
  Mutex mu_;
  CondVar idle_;
  std::unordered_set<Stream*> streams_ ABSL_GUARDED_BY(mu_);  // that may be cancelled
  int under_way_ ABSL_GUARDED_BY(mu_) = 0;                    // and those being deleted
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
};

void Stream::OnReadDone(bool ok) {
  if (!ok) return;
  const absl::Time now = clock_->Now();
  if (response_.token_ids_size() > 0) {
    if (record_.output_tokens == 0) {
      record_.ttft = now - intended_;
    } else {
      record_.itls.push_back(now - last_);
    }
    last_ = now;
    record_.output_tokens += response_.token_ids_size();
  }
  if (response_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    finished_ = true;
    record_.kv_bytes_moved = response_.metrics().kv_bytes_moved();
  }
  if (drop_after_ > 0 && record_.output_tokens >= drop_after_) Cancel();
  if (static_cast<int64_t>(record_.itls.size()) > events_max_) {
    record_.error = kEndless;
    Cancel();
  }
  response_.Clear();
  StartRead(&response_);
}

void Stream::OnDone(const grpc::Status& status) {
  record_.e2e = (record_.output_tokens > 0 ? last_ : clock_->Now()) - intended_;
  // A short answer may have ended before its cancellation came through: that one completed.
  const bool cancelled = cancelled_ && status.error_code() == grpc::StatusCode::CANCELLED;
  record_.dropped = cancelled && record_.error.empty();
  if (!status.ok() && !cancelled) {
    record_.error = absl::StrCat(static_cast<int>(status.error_code()), ": ",
                                 std::string(status.error_message()));
  } else if (!finished_ && !cancelled) {
    record_.error = "the stream ended without a finish reason";
  }
  done_(std::move(record_));
  backend_->End(this);
}

}  // namespace

std::unique_ptr<LoadBackend> MakeGrpcBackend(const BackendOptions& options, const Clock* clock) {
  return std::make_unique<GrpcBackend>(options, clock);
}

}  // namespace switchyard

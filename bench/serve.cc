#include "bench/serve.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/mailbox.h"
#include "common/status_macros.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

constexpr absl::Duration kReadyTimeout = absl::Seconds(10);
constexpr absl::Duration kTick = absl::Milliseconds(100);

void SendKey(const std::string& key, grpc::ClientContext* context) {
  if (!key.empty()) context->AddMetadata("authorization", absl::StrCat("Bearer ", key));
}

// One request in flight. gRPC calls it on its own threads, one call at a time; it owns itself until
// OnDone has handed its record to the driver.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(const BenchServeOptions& o, const WorkItem& item, size_t index, absl::Time intended,
         int drop_after, const Clock* clock, std::function<void(size_t, RequestRecord)> done)
      : index_(index),
        intended_(intended),
        drop_after_(drop_after),
        clock_(clock),
        done_(std::move(done)) {
    *request_.mutable_tokens()->mutable_ids() = {item.prompt_ids.begin(), item.prompt_ids.end()};
    request_.set_max_tokens(item.output_len);
    request_.set_ignore_eos(o.ignore_eos);
    request_.mutable_sampling()->set_temperature(o.temperature);
    request_.mutable_sampling()->set_seed(index);
    record_.prompt_tokens = static_cast<int>(item.prompt_ids.size());
    record_.cut = item.cut;
    context_.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(o.timeout));
    SendKey(o.api_key, &context_);
  }

  void Start(v1::Router::Stub& stub) {
    record_.sent_late = clock_->Now() - intended_;
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
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
    if (drop_after_ > 0 && record_.output_tokens >= drop_after_) {
      cancelled_ = true;
      context_.TryCancel();
    }
    response_.Clear();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.e2e = (record_.output_tokens > 0 ? last_ : clock_->Now()) - intended_;
    // A short answer may have ended before its cancellation came through: that one completed.
    record_.dropped = cancelled_ && status.error_code() == grpc::StatusCode::CANCELLED;
    if (!status.ok() && !record_.dropped) {
      record_.error = absl::StrCat(static_cast<int>(status.error_code()), ": ",
                                   std::string(status.error_message()));
    } else if (!finished_ && !record_.dropped) {
      record_.error = "the stream ended without a finish reason";
    }
    done_(index_, std::move(record_));
    delete this;
  }

 private:
  const size_t index_;
  const absl::Time intended_;
  const int drop_after_;  // tokens; 0: never
  const Clock* const clock_;
  const std::function<void(size_t, RequestRecord)> done_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  RequestRecord record_;
  absl::Time last_;
  bool finished_ = false, cancelled_ = false;
};

struct Completion {
  size_t index;
  RequestRecord record;
};

absl::Status FromGrpc(const grpc::Status& s, const std::string& address) {
  const auto code = static_cast<absl::StatusCode>(s.error_code());
  if (code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kUnavailable) {
    return absl::Status(code, absl::StrCat("the router at ", address, " does not answer (waited ",
                                           absl::FormatDuration(kReadyTimeout), ")"));
  }
  return absl::Status(code, absl::StrCat("router at ", address, ": ", s.error_message()));
}

class Driver {
 public:
  Driver(const BenchServeOptions& options, v1::Router::Stub& stub, std::vector<WorkItem> items)
      : options_(options),
        stub_(stub),
        items_(std::move(items)),
        records_(items_.size()),
        completions_(items_.size() + 1),
        drop_rng_(options.workload.seed + 1) {}

  nlohmann::ordered_json Run() {
    start_ = clock_.Now();
    size_t next = 0, done = 0;
    while (done < next || (next < items_.size() && !stopping_)) {
      stopping_ = stopping_ || (options_.stop && options_.stop());
      while (!stopping_ && next < items_.size() && MaySend(next, next - done)) Send(next++);
      for (Completion& c : completions_.Take(Wait(next, next - done))) {
        records_[c.index] = std::move(c.record);
        ++done;
      }
      if (options_.progress)
        options_.progress(static_cast<int>(done), static_cast<int>(items_.size()));
    }
    records_.resize(next);
    return MakeReport(options_.report, records_, clock_.Now() - start_);
  }

 private:
  bool HasRoom(size_t in_flight) const {
    return options_.max_concurrency == 0 ||
           in_flight < static_cast<size_t>(options_.max_concurrency);
  }
  bool MaySend(size_t next, size_t in_flight) const {
    return HasRoom(in_flight) && clock_.Now() >= start_ + items_[next].send_at;
  }
  absl::Duration Wait(size_t next, size_t in_flight) const {
    if (stopping_ || next >= items_.size() || !HasRoom(in_flight)) return kTick;
    return std::clamp(start_ + items_[next].send_at - clock_.Now(), absl::ZeroDuration(), kTick);
  }
  void Send(size_t index) {
    // Without a rate there is no intended time but "as soon as there is room".
    const absl::Time intended =
        options_.workload.request_rate > 0 ? start_ + items_[index].send_at : clock_.Now();
    int drop_after = 0;
    if (std::uniform_real_distribution<>(0, 1)(drop_rng_) < options_.drop_share) {
      drop_after = std::max(1, items_[index].output_len / 2);
    }
    auto* stream = new Stream(options_, items_[index], index, intended, drop_after, &clock_,
                              [this](size_t i, RequestRecord r) {
                                SY_CHECK(completions_.Post({i, std::move(r)}));
                              });
    stream->Start(stub_);
  }

  const BenchServeOptions& options_;
  v1::Router::Stub& stub_;
  const std::vector<WorkItem> items_;
  std::vector<RequestRecord> records_;
  Mailbox<Completion> completions_;
  std::mt19937_64 drop_rng_;
  MonotonicClock clock_;
  absl::Time start_;
  bool stopping_ = false;
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunBenchServe(const BenchServeOptions& given) {
  BenchServeOptions options = given;
  if (!(options.drop_share >= 0 && options.drop_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--drop-share is ", options.drop_share, ", must be in [0, 1]"));
  }
  auto channel = grpc::CreateChannel(options.address, grpc::InsecureChannelCredentials());
  auto stub = v1::Router::NewStub(channel);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() +
                       absl::ToChronoMilliseconds(kReadyTimeout));
  SendKey(options.api_key, &context);
  v1::ModelInfo info;
  if (auto s = stub->GetModelInfo(&context, {}, &info); !s.ok()) {
    return FromGrpc(s, options.address);
  }
  options.workload.vocab_size = info.vocab_size();
  options.workload.tokens_max = info.max_model_len();
  options.report.backend = "switchyard-grpc";
  options.report.model_id = info.id();
  options.report.request_rate = options.workload.request_rate;
  options.report.burstiness = options.workload.burstiness;
  options.report.max_concurrency = options.max_concurrency;
  ASSIGN_OR_RETURN(std::vector<WorkItem> items, MakeWorkload(options.workload));
  return Driver(options, *stub, std::move(items)).Run();
}

}  // namespace switchyard

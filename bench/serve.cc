#include "bench/serve.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/scraper.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/mailbox.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
// A cancelled stream ends at once; one that does not is left to the backend's destructor.
constexpr absl::Duration kCancelGrace = absl::Seconds(5);
// Of servers that do not say: small enough for every tokenizer, and every context we met.
constexpr int kVocabAssumed = 1000, kContextAssumed = 2048;

class Driver {
 public:
  Driver(const BenchServeOptions& options, LoadBackend& backend, Workload workload,
         const Clock* clock)
      : options_(options),
        backend_(backend),
        workload_(std::move(workload)),
        clock_(clock),
        room_(static_cast<size_t>(options.max_concurrency > 0
                                      ? std::min(options.max_concurrency, kInFlightMax)
                                      : kInFlightMax)),
        statistics_(options.report),
        drop_rng_(options.workload.seed + 1),
        // Whoever is told late finds the box, not the driver.
        ended_(std::make_shared<Mailbox<RequestRecord>>(room_ + 1)) {}

  nlohmann::ordered_json Run() {
    const absl::Time wall_start = absl::Now();
    start_ = clock_->Now();
    next_ = workload_.Next();
    while (in_flight_ > 0 || next_) {
      if (!interrupted_ && options_.stop && options_.stop()) Interrupt();
      if (interrupted_ && clock_->Now() >= give_up_at_) break;
      while (MaySend()) Send();
      const bool full = in_flight_ >= room_;
      for (RequestRecord& record : ended_->Take(Wait())) {
        statistics_.Add(std::move(record));
        --in_flight_;
      }
      if (full && in_flight_ < room_) room_since_ = clock_->Now() - start_;
      Progress();
    }
    const absl::Duration duration = clock_->Now() - start_;
    return statistics_.Report(duration, {.wanted = workload_.total(),
                                         .interrupted = interrupted_,
                                         .clock_error = absl::Now() - wall_start - duration});
  }

 private:
  bool MaySend() const {
    return next_ && in_flight_ < room_ && clock_->Now() >= start_ + next_->send_at;
  }
  absl::Duration Wait() const {
    if (!next_ || in_flight_ >= room_) return kTick;
    return std::clamp(start_ + next_->send_at - clock_->Now(), absl::ZeroDuration(), kTick);
  }
  void Send() {
    LoadRequest request;
    request.item = *std::move(next_);
    request.seed = static_cast<uint64_t>(sent_++);
    request.start = start_;
    // Without a pace there is no intended time but "as soon as there is room".
    request.intended = options_.report.paced ? request.item.send_at : clock_->Now() - start_;
    if (std::uniform_real_distribution<>(0, 1)(drop_rng_) < options_.drop_share) {
      request.drop_after = std::max(1, request.item.output_len / 2);
    }
    ++in_flight_;
    // Who was due while all streams were open, at the head of the line or behind others.
    const absl::Duration held_back = std::max(absl::ZeroDuration(), room_since_ - request.intended);
    const int drop_after = request.drop_after;
    backend_.Start(std::move(request), [box = ended_, held_back, drop_after](RequestRecord record) {
      record.held_back = held_back;
      const bool on_purpose = drop_after > 0 && record.output_tokens >= drop_after;
      record.interrupted = record.dropped && !on_purpose;
      record.dropped = record.dropped && on_purpose;
      SY_CHECK(box->Post(std::move(record)));
    });
    next_ = workload_.Next();
  }
  void Interrupt() {
    interrupted_ = true;
    next_.reset();
    give_up_at_ = clock_->Now() + kCancelGrace;
    backend_.CancelAll();
  }
  void Progress() {
    const absl::Time now = clock_->Now();
    if (!options_.progress || now < progress_at_) return;
    progress_at_ = now + kTick;
    const double seconds = std::max(1e-3, absl::ToDoubleSeconds(now - start_));
    options_.progress(
        {.ended = statistics_.ended(),
         .total = workload_.total(),
         .failed = statistics_.failed(),
         .in_flight = static_cast<int>(in_flight_),
         .requests_per_second = static_cast<double>(statistics_.ended()) / seconds,
         .tokens_per_second = static_cast<double>(statistics_.output_tokens()) / seconds,
         .median_ttft_ms = statistics_.median_ttft_ms()});
  }

  const BenchServeOptions& options_;
  LoadBackend& backend_;
  Workload workload_;
  const Clock* const clock_;
  const size_t room_;
  RunStatistics statistics_;
  std::mt19937_64 drop_rng_;
  const std::shared_ptr<Mailbox<RequestRecord>> ended_;
  absl::Time start_, progress_at_, give_up_at_ = absl::InfiniteFuture();
  std::optional<WorkItem> next_;  // not yet sent
  bool interrupted_ = false;
  size_t in_flight_ = 0;
  absl::Duration room_since_;  // when a stream ended while all were open; of the test's time
  int64_t sent_ = 0;
};

// Requests of the workload's kind, one after the other. The first failure ends the test: a server
// that refuses these would refuse all.
absl::Status WarmUp(const BenchServeOptions& options, LoadBackend& backend, const Clock* clock) {
  WorkloadOptions w = options.workload;
  w.prompts = options.warmups;
  w.seed = ~w.seed;  // a prefix cache must not know the test's prompts
  ASSIGN_OR_RETURN(Workload workload, Workload::Create(std::move(w)));
  while (std::optional<WorkItem> item = workload.Next()) {
    auto box = std::make_shared<Mailbox<RequestRecord>>(1);
    LoadRequest request;
    request.item = *std::move(item);
    request.start = clock->Now();
    backend.Start(std::move(request),
                  [box](RequestRecord record) { SY_CHECK(box->Post(std::move(record))); });
    std::vector<RequestRecord> ended;
    while (ended.empty()) {
      if (options.stop && options.stop()) return absl::CancelledError("interrupted in the warm-up");
      ended = box->Take(kTick);
    }
    if (!ended.front().error.empty()) {
      return absl::UnavailableError(absl::StrCat("warm-up: ", ended.front().error));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const BenchServeOptions& o) {
  if (!(o.drop_share >= 0 && o.drop_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--drop-share is ", o.drop_share, ", must be in [0, 1]"));
  }
  if (o.max_concurrency < 0 || o.max_concurrency > kInFlightMax) {
    return absl::InvalidArgumentError(absl::StrCat("--max-concurrency is ", o.max_concurrency,
                                                   ", must be in [0, ", kInFlightMax, "]"));
  }
  if (o.warmups < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--num-warmups is ", o.warmups, ", must be at least 0"));
  }
  for (const double p : o.report.percentiles) {
    if (!(p >= 0 && p <= 100)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--metric-percentiles has ", p, ", must be in [0, 100]"));
    }
  }
  if (o.report.percentiles.empty()) {
    return absl::InvalidArgumentError("--metric-percentiles: at least one is wanted");
  }
  return absl::OkStatus();
}

// Of the report: all that the figures depend on and the report does not say already.
nlohmann::ordered_json Parameters(const BenchServeOptions& o) {
  const WorkloadOptions& w = o.workload;
  nlohmann::ordered_json p = {{"num_prompts", w.prompts}, {"seed", w.seed}};
  if (w.lengths == WorkloadOptions::Lengths::kDataset) {
    p["dataset_rows"] = w.rows.size();
    p["trace_times"] = w.trace_times;
    p["trace_time_scale"] = w.time_scale;
    p["trace_length_scale"] = w.length_scale;
  } else if (w.lengths == WorkloadOptions::Lengths::kRandom) {
    p["random_input_len"] = w.input_len;
    p["random_output_len"] = w.output_len;
    p["random_range_ratio"] = w.range_ratio;
  }
  p["random_prefix_len"] = w.prefix_len;
  if (w.ramp_up != WorkloadOptions::RampUp::kNone) {
    p["ramp_up_strategy"] =
        w.ramp_up == WorkloadOptions::RampUp::kLinear ? "linear" : "exponential";
    p["ramp_up_start_rps"] = w.ramp_start_rps;
    p["ramp_up_end_rps"] = w.ramp_end_rps;
  }
  p["vocab_size"] = w.vocab_size;
  p["max_model_len"] = w.tokens_max;
  p["num_warmups"] = o.warmups;
  p["drop_share"] = o.drop_share;
  p["temperature"] = o.backend.temperature;
  p["ignore_eos"] = o.backend.ignore_eos;
  p["timeout"] = absl::ToDoubleSeconds(o.backend.timeout);
  if (o.openai) p["endpoint"] = o.backend.endpoint;
  if (!o.openai) p["connections"] = o.backend.connections;
  p["goodput"] = ToJson(o.report.goodput);
  p.update(o.report.parameters);
  return p;
}

}  // namespace

std::unique_ptr<LoadBackend> MakeBackend(const BenchServeOptions& options, const Clock* clock) {
  return options.openai ? MakeHttpBackend(options.backend, clock)
                        : MakeGrpcBackend(options.backend, clock);
}

absl::StatusOr<nlohmann::ordered_json> RunBenchServe(const BenchServeOptions& options) {
  const MonotonicClock clock;
  return RunBenchServe(options, *MakeBackend(options, &clock), &clock);
}

absl::StatusOr<nlohmann::ordered_json> RunBenchServe(const BenchServeOptions& given,
                                                     LoadBackend& backend, const Clock* clock) {
  // All that can be wrong with them is said before anybody waits for a server.
  RETURN_IF_ERROR(CheckOptions(given));
  RETURN_IF_ERROR(Workload::Check(given.workload));
  BenchServeOptions options = given;
  ASSIGN_OR_RETURN(const BackendModel model, backend.AwaitReady(options.ready_limit));
  WorkloadOptions& w = options.workload;
  if (w.vocab_size == 0) w.vocab_size = model.vocab_size > 0 ? model.vocab_size : kVocabAssumed;
  if (w.tokens_max == 0) w.tokens_max = model.tokens_max > 0 ? model.tokens_max : kContextAssumed;
  options.report.backend = backend.name();
  options.report.model_id = model.id;
  options.report.request_rate = w.request_rate;
  options.report.burstiness = w.burstiness;
  options.report.max_concurrency = options.max_concurrency;
  options.report.paced =
      w.request_rate > 0 || w.trace_times || w.ramp_up != WorkloadOptions::RampUp::kNone;
  options.report.parameters = Parameters(options);
  ASSIGN_OR_RETURN(Workload workload, Workload::Create(w));
  if (options.warmups > 0) RETURN_IF_ERROR(WarmUp(options, backend, clock));

  std::optional<Scraper> scraper;
  if (!options.metrics_address.empty()) {
    scraper.emplace(options.metrics_address, clock, [&options](const std::string& why) {
      if (options.warn) {
        options.warn(absl::StrCat("--metrics-address ", options.metrics_address, ": ", why));
      }
    });
  }
  nlohmann::ordered_json report = Driver(options, backend, std::move(workload), clock).Run();
  if (!scraper) return report;
  report["server"] = scraper->Stop();
  const nlohmann::ordered_json& server = report["server"];
  if (server["failed"] > 0) {
    report["notes"].push_back(absl::StrCat(server["failed"].get<int64_t>(), " of ",
                                           server["readings"].get<int64_t>(), " readings of ",
                                           "--metrics-address ", options.metrics_address,
                                           " failed: ", server["error"].get<std::string>()));
  }
  return report;
}

}  // namespace switchyard

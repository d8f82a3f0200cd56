#include "bench/sweep.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace switchyard {

void RateSearch::Tell(bool met) {
  const double rate = *next_;
  (met ? best_ : failed_) = rate;
  if (failed_ == 0) {
    next_ = rate < max_ ? std::optional(std::min(max_, rate * 2)) : std::nullopt;
  } else if (best_ == 0) {
    next_ = ++halvings_ <= kHalvingsMax ? std::optional(rate / 2) : std::nullopt;
  } else if (failed_ / best_ <= 1 + resolution_) {
    next_.reset();
  } else {
    next_ = std::sqrt(best_ * failed_);
  }
}

namespace {

absl::Status Check(const BenchServeOptions& o, const SweepOptions& s) {
  const auto invalid = [](const char* option, double value, const char* limit) {
    return absl::InvalidArgumentError(absl::StrCat(option, " is ", value, ", must be ", limit));
  };
  if (!o.report.goodput.asked()) {
    return absl::InvalidArgumentError(
        "sweep: --goodput says what must be kept, as ttft:500 tpot:50");
  }
  if (o.workload.ramp_up != WorkloadOptions::RampUp::kNone) {
    return absl::InvalidArgumentError("sweep: --ramp-up-strategy has rates of its own");
  }
  if (!(s.start_rate > 0)) return invalid("--sweep-start-rate", s.start_rate, "positive");
  if (!(s.rate_max >= s.start_rate))
    return invalid("--sweep-max-rate", s.rate_max, "the start or more");
  if (!(s.resolution >= 0.001)) return invalid("--sweep-resolution", s.resolution, "0.001 or more");
  if (!(s.attainment > 0 && s.attainment <= 1))
    return invalid("--sweep-attainment", s.attainment, "in (0, 1]");
  if (!(s.seconds > 0)) return invalid("--sweep-seconds", s.seconds, "positive");
  return absl::OkStatus();
}

bool Has(const nlohmann::ordered_json& report, std::string_view reason) {
  for (const std::string text : report["verdict_reasons"]) {
    if (text.starts_with(reason)) return true;
  }
  return false;
}

// So many that one bad one is not too many by itself.
double RequestsMin(const SweepOptions& s) {
  const double fewest = s.attainment < 1 ? std::ceil(1 / (1 - s.attainment) - 1e-6) : 1;
  return std::clamp<double>(s.prompts_min, fewest, 1e6);
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunSweep(const BenchServeOptions& given,
                                                const SweepOptions& sweep) {
  RETURN_IF_ERROR(Check(given, sweep));
  // One for all trials: gRPC 1.51 may abort when its last user goes while the next one comes.
  const MonotonicClock clock;
  const std::unique_ptr<LoadBackend> backend = MakeBackend(given, &clock);
  RateSearch search(sweep.start_rate, sweep.rate_max, sweep.resolution);
  nlohmann::ordered_json trials = nlohmann::ordered_json::array();
  const char* limit = "server";
  while (const std::optional<double> rate = search.Next()) {
    BenchServeOptions options = given;
    options.workload.request_rate = *rate;
    options.workload.trace_times = false;
    options.workload.seed += trials.size();  // the next trial's prompts are new to a cache
    options.workload.prompts =
        static_cast<int>(std::clamp(*rate * sweep.seconds, RequestsMin(sweep), 1e7));
    absl::StatusOr<nlohmann::ordered_json> report = RunBenchServe(options, *backend, &clock);
    if (given.stop && given.stop()) {  // an unfinished trial says nothing
      limit = "interrupted";
      break;
    }
    RETURN_IF_ERROR(report.status());
    const bool too_fast = Has(*report, "driver");
    const bool met = !too_fast && !Has(*report, "errors") &&
                     (*report)["goodput_share"].get<double>() >= sweep.attainment;
    trials.push_back({{"rate", *rate}, {"met", met}, {"report", *std::move(report)}});
    if (sweep.trial_done) sweep.trial_done(trials.back());
    if (!met) limit = too_fast ? "driver" : "server";  // each that fails is lower than the last
    search.Tell(met);
  }
  return nlohmann::ordered_json{{"max_rate", search.best()},
                                {"limit", limit},
                                {"attainment", sweep.attainment},
                                {"trials", std::move(trials)}};
}

}  // namespace switchyard

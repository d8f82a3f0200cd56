#include "bench/sweep.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/verdict.h"
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

// So many that one bad one is not too many by itself.
double RequestsMin(const SweepOptions& s) {
  const double fewest = s.attainment < 1 ? std::ceil(1 / (1 - s.attainment) - 1e-6) : 1;
  return std::clamp<double>(s.prompts_min, fewest, 1e6);
}

constexpr double kLateShareMin = 0.01;  // as of a single run's verdict

}  // namespace

TrialVerdict JudgeTrial(const nlohmann::ordered_json& report, double attainment) {
  const auto ended = report["num_prompts"].get<double>();
  const auto late = report["driver_late"].get<double>();
  const double late_max = std::max(1.0, std::max(kLateShareMin, 1 - attainment) * ended);
  TrialVerdict v;
  v.sent = late <= late_max + 1e-6;
  if (!v.sent) {
    v.why = absl::StrFormat("this driver sent %.1f %% more than %s late", 100 * late / ended,
                            absl::FormatDuration(kLateAfter));
    return v;
  }
  const auto good = report["goodput_share"].get<double>();
  v.met = good >= attainment;
  if (v.met) return v;
  v.why = absl::StrFormat("%.1f %% good of %g %% wanted", 100 * good, 100 * attainment);
  const char* separator = ": ";
  const auto missed = report.value("goodput_missed", nlohmann::ordered_json::object());
  for (const auto& [metric, count] : missed.items()) {
    absl::StrAppendFormat(&v.why, "%s%d missed %s", std::exchange(separator, ", "),
                          count.get<int64_t>(), metric);
  }
  if (const auto failed = report["failed"].get<int64_t>(); failed > 0) {
    absl::StrAppendFormat(&v.why, "%s%d failed", separator, failed);
  }
  return v;
}

absl::StatusOr<nlohmann::ordered_json> RunSweep(const BenchServeOptions& given,
                                                const SweepOptions& sweep) {
  RETURN_IF_ERROR(Check(given, sweep));
  // One for all trials: gRPC 1.51 may abort when its last user goes while the next one comes.
  const MonotonicClock clock;
  const std::unique_ptr<LoadBackend> backend = MakeBackend(given, &clock);
  RateSearch search(sweep.start_rate, sweep.rate_max, sweep.resolution);
  nlohmann::ordered_json trials = nlohmann::ordered_json::array();
  const char* limit = "rate_max";
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
    const TrialVerdict verdict = JudgeTrial(*report, sweep.attainment);
    trials.push_back({{"rate", *rate},
                      {"met", verdict.met},
                      {"why", verdict.why},
                      {"report", *std::move(report)}});
    if (sweep.trial_done) sweep.trial_done(trials.back());
    // Each that fails is lower than the last.
    if (!verdict.met) limit = verdict.sent ? "server" : "driver";
    search.Tell(verdict.met);
  }
  return nlohmann::ordered_json{{"max_rate", search.best()},
                                {"limit", limit},
                                {"attainment", sweep.attainment},
                                {"goodput", ToJson(given.report.goodput)},
                                {"trials", std::move(trials)}};
}

}  // namespace switchyard

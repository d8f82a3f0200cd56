#include "bench/sweep.h"

#include <algorithm>
#include <cmath>
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
  if (!(s.start_rate > 0)) return invalid("--sweep-start-rate", s.start_rate, "positive");
  if (!(s.rate_max >= s.start_rate))
    return invalid("--sweep-max-rate", s.rate_max, "the start or more");
  if (!(s.resolution >= 0.001)) return invalid("--sweep-resolution", s.resolution, "0.001 or more");
  if (!(s.attainment > 0 && s.attainment <= 1))
    return invalid("--sweep-attainment", s.attainment, "in (0, 1]");
  if (!(s.seconds > 0)) return invalid("--sweep-seconds", s.seconds, "positive");
  return absl::OkStatus();
}

// A rate that the driver itself does not reach is not the server's.
bool Met(const nlohmann::ordered_json& report, double attainment) {
  for (const auto& why : report["verdict_reasons"]) {
    const std::string text = why;
    if (text.starts_with("driver") || text.starts_with("errors") || text.starts_with("interrupted"))
      return false;
  }
  return report["goodput_share"].get<double>() >= attainment;
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
  while (const std::optional<double> rate = search.Next()) {
    BenchServeOptions options = given;
    options.workload.request_rate = *rate;
    options.workload.trace_times = false;
    options.workload.seed += trials.size();  // the next trial's prompts are new to a cache
    options.workload.prompts =
        static_cast<int>(std::clamp(*rate * sweep.seconds, double{1} * sweep.prompts_min, 1e7));
    ASSIGN_OR_RETURN(nlohmann::ordered_json report, RunBenchServe(options, *backend, &clock));
    if (given.stop && given.stop()) break;  // an unfinished trial says nothing
    const bool met = Met(report, sweep.attainment);
    trials.push_back({{"rate", *rate}, {"met", met}, {"report", std::move(report)}});
    if (sweep.trial_done) sweep.trial_done(trials.back());
    search.Tell(met);
  }
  return nlohmann::ordered_json{
      {"max_rate", search.best()}, {"attainment", sweep.attainment}, {"trials", std::move(trials)}};
}

}  // namespace switchyard

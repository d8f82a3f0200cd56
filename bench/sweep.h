// bench/sweep.h: the highest request rate at which a server keeps a promise.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "bench/serve.h"

namespace switchyard {

// Doubles the rate until it fails, then bisects (in the logarithm) until the two ends are closer
// than `resolution`. Pure: Next, then Tell, in turn.
class RateSearch {
 public:
  RateSearch(double start, double max, double resolution)
      : next_(start), max_(max), resolution_(resolution) {}
  std::optional<double> Next() const { return next_; }  // nullopt: done
  void Tell(bool met);
  double best() const { return best_; }  // 0: not even the lowest rate that was tried

 private:
  static constexpr int kHalvingsMax = 6;  // below the start, while nothing has been met
  std::optional<double> next_;
  const double max_, resolution_;
  double best_ = 0, failed_ = 0;  // failed_ 0: nothing has
  int halvings_ = 0;
};

struct SweepOptions {
  double start_rate = 1, rate_max = 1e5, resolution = 0.05;
  double attainment = 0.99;  // share of requests that must be good (--goodput)
  double seconds = 20;       // of each trial
  int prompts_min = 20;      // of each trial; 1 / (1 - attainment) if that is more
  std::function<void(const nlohmann::ordered_json& trial)> trial_done;  // may be empty
};

// Whether a trial met the promise, and if not, why.
struct TrialVerdict {
  bool met = false;
  bool sent = false;  // the driver kept the rate; else the trial says nothing of the server
  std::string why;    // "" if met
};
// `report` as RunBenchServe makes it, with goodput. A failed request is not a good one. The driver
// may have sent as large a share late as may be bad (1 - attainment), 1 % and one request at least:
// a late request's latencies count from when it was due, so that it can only look worse.
TrialVerdict JudgeTrial(const nlohmann::ordered_json& report, double attainment);

// {"max_rate", "limit", "attainment", "goodput", "trials": [{"rate", "met", "why", "report"}, …]}.
// `limit`: why not more than max_rate: the "server", "rate_max", the "driver", which failed to send
// faster, or "interrupted" by options.stop, with what there was. kInvalidArgument: no --goodput, a
// ramp, or an option out of range.
absl::StatusOr<nlohmann::ordered_json> RunSweep(const BenchServeOptions& options,
                                                const SweepOptions& sweep);

}  // namespace switchyard

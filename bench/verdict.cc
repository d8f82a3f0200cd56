#include "bench/verdict.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace switchyard {
namespace {

constexpr double kFailedShareMax = 0.01, kLateShareMax = 0.01;
// NTP slews by 500 ppm at most: more is a step, and times of day in logs do not fit the latencies.
constexpr double kClockShareMax = 1e-3;
constexpr absl::Duration kClockSlack = absl::Milliseconds(20);
constexpr size_t kDriftBatchesMin = 8;
constexpr double kDriftShare = 0.25, kDriftSigmas = 3;

struct Mean {
  double mean = 0, squared_error = 0;
};
Mean MeanOf(const double* begin, const double* end) {
  const auto n = static_cast<double>(end - begin);
  double sum = 0, squares = 0;
  for (const double* v = begin; v != end; ++v) sum += *v;
  for (const double* v = begin; v != end; ++v) squares += (*v - sum / n) * (*v - sum / n);
  return {sum / n, squares / (n - 1) / n};
}

// Whether the first half's batches differ from the second's by more than chance and by much.
std::string Drift(const char* what, const std::vector<double>& means) {
  if (means.size() < kDriftBatchesMin) return "";
  const double* middle = means.data() + means.size() / 2;
  const Mean first = MeanOf(means.data(), middle);
  const Mean second = MeanOf(middle, means.data() + means.size());
  const double apart = std::abs(second.mean - first.mean);
  const double error = std::sqrt(first.squared_error + second.squared_error);
  if (apart <= kDriftSigmas * error || apart <= kDriftShare * std::min(first.mean, second.mean)) {
    return "";
  }
  return absl::StrFormat(
      "drift: mean %s was %.1f ms in the first half and %.1f ms in the second (%s)", what,
      first.mean, second.mean,
      second.mean > first.mean ? "the load is more than the server takes" : "not warmed up");
}

}  // namespace

Verdict Judge(const VerdictInput& in) {
  Verdict v;
  const int64_t ended = in.completed + in.failed;
  if (in.run.interrupted) {
    v.invalid.push_back(
        absl::StrCat("interrupted: ", ended, " of ", in.run.wanted, " requests ended"));
  }
  if (static_cast<double>(in.failed) >
      kFailedShareMax * static_cast<double>(std::max<int64_t>(1, ended))) {
    v.invalid.push_back(absl::StrCat("errors: ", in.failed, " of ", ended, " requests failed"));
  }
  // A percentile needs a value beyond it.
  const double wanted = 100 / std::max(1e-9, 100 - in.percentile_max);
  if (static_cast<double>(in.completed) + 1e-6 < wanted) {
    v.invalid.push_back(absl::StrCat("too few samples: p", in.percentile_max, " of ", in.completed,
                                     " requests; at least ", std::ceil(wanted), " are wanted"));
  }
  // One request alone says nothing of a share.
  if (in.paced &&
      static_cast<double>(in.late) > std::max(1.0, kLateShareMax * static_cast<double>(ended))) {
    v.invalid.push_back(absl::StrCat("driver saturated: ", in.late, " of ", ended,
                                     " requests left more than ", absl::FormatDuration(kLateAfter),
                                     " late"));
  }
  if (in.paced && in.held_back > 0) {
    v.notes.push_back(absl::StrCat(in.held_back,
                                   " requests waited for --max-concurrency; "
                                   "their latencies contain that wait"));
  }
  const absl::Duration clock_max = kClockSlack + in.duration * kClockShareMax;
  if (absl::AbsDuration(in.run.clock_error) > clock_max) {
    v.invalid.push_back(absl::StrCat("clock: the wall clock moved by ",
                                     absl::FormatDuration(in.run.clock_error),
                                     " against the monotonic one"));
  }
  // A burst of everything at once drifts by nature.
  if (in.paced) {
    for (std::string why : {Drift("TTFT", in.ttft_means_ms), Drift("TPOT", in.tpot_means_ms)}) {
      if (!why.empty()) v.invalid.push_back(std::move(why));
    }
  }
  return v;
}

}  // namespace switchyard

// bench/compare.h: two load tests side by side, with confidence intervals of 95 %.
//
// Means and throughputs are the reports' own; their intervals come from batches over time (requests
// that meet in a queue are not independent, slices of the run nearly are): the ratio estimator
// (Cochran, Sampling Techniques, ch. 6), Student's t. Percentiles: order statistics of the
// histogram (binomial), which takes samples for independent. The difference: MOVER (Zou and Donner,
// 2008), from the two intervals. What the sample cannot bound is unbounded.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

struct Estimate {
  // value: NaN without a sample; low, high: infinite where the sample is too small.
  double value = 0, low = 0, high = 0;
};
// sum(sums) / sum(counts), of independent batches. The lists are equally long.
Estimate RatioEstimate(const std::vector<double>& sums, const std::vector<double>& counts);
// Of [[value, count], …], ascending. kInvalidArgument: not that.
absl::StatusOr<Estimate> PercentileEstimate(const nlohmann::ordered_json& buckets, double percent);

// {"metrics": [{"name", "a", "b", "change_percent", "low_percent", "high_percent", "differs"}, …],
// "notes"}; a percent is null where there is no bound, which is never said to differ, and so is
// what has no sample. The notes name all settings that differ.
// kInvalidArgument: not reports of `bench serve`.
absl::StatusOr<nlohmann::ordered_json> CompareReports(const nlohmann::ordered_json& a,
                                                      const nlohmann::ordered_json& b);
std::string CompareText(const nlohmann::ordered_json& comparison);

}  // namespace switchyard

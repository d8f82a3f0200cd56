// bench/compare.h: two load tests side by side, with confidence intervals of 95 %.
//
// Means and throughputs: batch means over time (requests that meet in a queue are not independent,
// slices of the run nearly are), Student's t. Percentiles: order statistics of the histogram
// (binomial). The difference: MOVER (Zou and Donner, 2008), from the two intervals.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

struct Estimate {
  double value = 0, low = 0, high = 0;
};
// Of independent values; fewer than two: low and high are the value.
Estimate MeanEstimate(const std::vector<double>& values);
// Of [[value, count], …], ascending. kInvalidArgument: not that.
absl::StatusOr<Estimate> PercentileEstimate(const nlohmann::ordered_json& buckets, double percent);

// {"metrics": [{"name", "a", "b", "change_percent", "low_percent", "high_percent", "differs"}, …],
// "notes"}. kInvalidArgument: not reports of `bench serve`.
absl::StatusOr<nlohmann::ordered_json> CompareReports(const nlohmann::ordered_json& a,
                                                      const nlohmann::ordered_json& b);
std::string CompareText(const nlohmann::ordered_json& comparison);

}  // namespace switchyard

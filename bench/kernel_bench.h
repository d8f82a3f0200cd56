// bench/kernel_bench.h: every kernel at every shape as a share of what the machine allows it. The
// ceilings are measured beside each call of a kernel, in turns, so that a neighbour's load moves
// both.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct BenchKernelsOptions {
  std::string kernels = "auto";
  std::vector<int> threads = {1};
  std::string filter;                                // cases whose name holds this
  int repeats = 9;                                   // the median is reported, with the spread
  std::function<void(const std::string&)> progress;  // a line per measurement; may be empty
};

// The time that a case needs at least is the longer of operations ÷ its arithmetic ceiling and
// bytes ÷ the ceiling of memory's read; its share is that time ÷ the time that it took.
// {"kernels", "runs": [{"threads", "ceilings": [{"name", "median", "lowest", "highest"}], "cases":
//  [{"kernel", "shape", "limit", "share", "lowest", "highest", "gflops",
//  "gigabytes_per_second"}]}]}
// Errors: those of SelectKernels; kInvalidArgument for the reference, for which there is no
// ceiling, and for threads or repeats below 1.
absl::StatusOr<nlohmann::ordered_json> RunBenchKernels(const BenchKernelsOptions& options);

}  // namespace switchyard

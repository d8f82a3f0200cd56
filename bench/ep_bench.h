// bench/ep_bench.h: how long a dispatch and its combine take between processes, and how near that
// is to what the lane can do. Experts compute nothing here. In turns with it the same with tokens
// of 8 bits, and with reduced outputs (EpDispatcher::Options).
//
//   efficiency η = (α + off-rank bytes ÷ β) ÷ time
// for an exchange of both: α counts twice (there and back), bytes are what one rank sends in both.
// α and β are those of the bare lane, measured in the same run (raw_lane.h).
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct BenchEpOptions {
  int ranks = 2, experts = 64, top_k = 8;
  std::vector<std::string> lanes = {"shm", "tcp"};
  std::vector<int> hidden = {1024, 7168};
  std::vector<int> tokens = {1, 8, 32, 128, 512, 4096};  // of each rank
  int low_latency_tokens = 128;
  double seconds = 1;  // of each way of each measurement, about; the median exchange counts
  std::function<void(const std::string&)> progress;  // a line per measurement; may be empty
};

// Forks: to be called before the process has threads. {"lanes": [{"lane", "alpha_us",
// "beta_gb_per_s", "exchanges": [{"hidden", "tokens", "path", "us", "bytes", "efficiency", "int8":
// {"us", "bytes"}, "reduced": {"us", "bytes"}}], "idle_cpu"}]}
absl::StatusOr<nlohmann::ordered_json> RunBenchEp(const BenchEpOptions& options);

}  // namespace switchyard

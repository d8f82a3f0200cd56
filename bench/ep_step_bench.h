// bench/ep_step_bench.h: whole steps of a model between processes: one micro-batch, two, and
// whichever the policy takes (moe/ep_overlap.h), in turns, so that all meet the same disturbances.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct BenchEpStepOptions {
  std::string model_dir;  // only config.json is read
  int ranks = 2, threads = 1;
  std::vector<std::string> lanes = {"shm", "tcp"};
  std::vector<int> tokens = {512};  // rows of each rank's step
  // 0: the rows are one prompt. Else each is a sequence of its own with so many tokens before it.
  int context = 0;
  int low_latency_tokens = 128;
  std::vector<std::string> namespaces;  // of the ranks' networks; empty: this process's
  std::string net_devices = "lo";       // of the tcp lane
  double seconds = 10;                  // of each measurement, about
  std::function<void(const std::string&)> progress;  // a line per measurement; may be empty
};

// Forks: to be called before the process has threads. {"lanes": [{"lane", "steps": [{"tokens",
// "rounds", "off": {"ms", "wait_ms"}, "on": …, "auto": …, "off_over_on": {"median", "lowest",
// "highest"}, "off_over_auto": …, "bytes"}]}]}; times and waits are medians of rank 0.
absl::StatusOr<nlohmann::ordered_json> RunBenchEpSteps(const BenchEpStepOptions& options);

}  // namespace switchyard

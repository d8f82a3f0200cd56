// bench/ep_skew.h: what redundant experts and the balancer are worth when some experts get far more
// tokens than others, by an account of ranks: each rank's experts are computed in turn, by one
// thread, and timed in that thread's CPU time. In each layer all ranks wait for the slowest, so
//   step = Σ over layers of max over ranks of its experts' time.
// Nothing travels here (ep_bench.h measures that), and ranks do not share caches or memory
// bandwidth: it is what N machines of this kind would spend on experts.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct BenchEpSkewOptions {
  int ranks = 4, experts = 64, top_k = 8;
  int redundant = 16;  // replicas beyond one of each expert
  double zipf = 1.2;   // the n-th most wanted expert is chosen in proportion to n^-zipf
  int hidden = 1024, intermediate = 512;
  int layers = 8;                                    // each with an order of experts of its own
  std::vector<int> tokens = {32, 512};               // of each rank
  std::function<void(const std::string&)> progress;  // a line per measurement; may be empty
};

// {"rows": [{"tokens", "placement", "balancedness", "step_ms", "busy_ms", "tokens_per_s"}]}:
// placements are even without replicas, even with them, and both as the balancer makes them from
// the loads of other tokens. busy_ms: the mean rank's.
absl::StatusOr<nlohmann::ordered_json> RunBenchEpSkew(const BenchEpSkewOptions& options);

}  // namespace switchyard

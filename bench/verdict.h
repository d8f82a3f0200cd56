// bench/verdict.h: whether a load test measured what it says, or why not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace switchyard {

// A request that left so much later than intended was sent late.
inline constexpr absl::Duration kLateAfter = absl::Milliseconds(10);

// What only the driver knows of a run.
struct RunFacts {
  int64_t wanted = 0;               // requests of the workload
  bool interrupted = false;         // ended before all of them
  absl::Duration clock_error = {};  // wall clock − monotonic clock over the run
};

struct VerdictInput {
  RunFacts run;
  bool paced = false;  // an open loop: sent at times of its own
  int64_t completed = 0, failed = 0;
  int64_t late = 0;       // by the driver's own fault: there was room for one more stream
  int64_t held_back = 0;  // were due while --max-concurrency streams were open
  double percentile_max = 99;
  absl::Duration duration;
  // Batch means over time of the whole run, in order.
  std::vector<double> ttft_means_ms, tpot_means_ms;
};

struct Verdict {
  std::vector<std::string> invalid;  // why the figures must not be used; empty: they may
  std::vector<std::string> notes;    // what to know beside them
};

Verdict Judge(const VerdictInput& input);

}  // namespace switchyard

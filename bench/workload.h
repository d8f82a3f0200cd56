// bench/workload.h: what a load test sends, and when: a pure function of its options and seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace switchyard {

struct WorkloadOptions {
  enum class Lengths {
    kRandom,  // uniform in [mean·(1 − range_ratio), mean·(1 + range_ratio)], as vLLM's `random`
    kShareGpt,  // log-normal with the medians and spread reported for ShareGPT conversations
  };
  Lengths lengths = Lengths::kRandom;
  int prompts = 100;
  int input_len = 256, output_len = 64;  // means of kRandom
  double range_ratio = 0;                // [0, 1)
  int prefix_len = 0;                    // leading tokens that all prompts share (kRandom)
  double request_rate = 0;               // per second; 0: all at once (vLLM's `inf`)
  double burstiness = 1;                 // shape of the gamma-distributed gaps; 1: Poisson arrivals
  int vocab_size = 0;
  int tokens_max = 0;  // input + output of one request; longer draws are cut
  uint64_t seed = 0;
};

struct WorkItem {
  absl::Duration send_at;  // from the start of the test, ascending
  std::vector<TokenId> prompt_ids;
  int output_len = 1;
  bool cut = false;  // drawn longer than tokens_max
};

// kInvalidArgument names option, value and limit.
absl::StatusOr<std::vector<WorkItem>> MakeWorkload(const WorkloadOptions& options);

}  // namespace switchyard

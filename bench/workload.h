// bench/workload.h: what a load test sends, and when: a pure function of its options and seed.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/dataset.h"
#include "common/ids.h"

namespace switchyard {

struct WorkloadOptions {
  enum class Lengths {
    kRandom,  // uniform in [mean·(1 − range_ratio), mean·(1 + range_ratio)], as vLLM's `random`
    kShareGpt,  // log-normal with the medians and spread reported for ShareGPT conversations
    kDataset,   // as `rows` say
  };
  enum class RampUp { kNone, kLinear, kExponential };

  Lengths lengths = Lengths::kRandom;
  int prompts = 100;                     // of kDataset: at most so many
  int input_len = 256, output_len = 64;  // means of kRandom
  double range_ratio = 0;                // [0, 1)
  int prefix_len = 0;                    // leading tokens that all prompts share (kRandom)
  double request_rate = 0;               // per second; 0: all at once (vLLM's `inf`)
  double burstiness = 1;                 // shape of the gamma-distributed gaps; 1: Poisson
  RampUp ramp_up = RampUp::kNone;        // of the rate over the requests, in place of request_rate
  double ramp_start_rps = 0, ramp_end_rps = 0;
  std::vector<DatasetRow> rows;  // of kDataset
  bool trace_times = false;      // send when the rows say, not at request_rate
  double time_scale = 1;         // of the rows' times; 0.5: twice as fast
  double length_scale = 1;       // of the rows' lengths and of their shared blocks
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

// Makes one request after the other: what has been sent takes no memory.
class Workload {
 public:
  // kInvalidArgument names option, value and limit.
  static absl::StatusOr<Workload> Create(WorkloadOptions options);
  // The same, but vocab_size and tokens_max may be 0: not known yet.
  static absl::Status Check(const WorkloadOptions& options);

  int total() const { return total_; }
  std::optional<WorkItem> Next();  // `total` times

 private:
  explicit Workload(WorkloadOptions options);
  absl::Duration Gap();
  void FillFromRow(const DatasetRow& row, WorkItem* item) const;
  void FillDrawn(WorkItem* item);

  WorkloadOptions options_;
  int total_ = 0, next_ = 0;
  std::mt19937_64 arrivals_, contents_;  // apart, so that a rate does not change the prompts
  std::vector<TokenId> prefix_;
  absl::Duration at_;
};

}  // namespace switchyard

// bench/serve.h: the load driver: sends a workload to a running router over gRPC and measures each
// stream.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "bench/report.h"
#include "bench/workload.h"

namespace switchyard {

struct BenchServeOptions {
  std::string address = "127.0.0.1:50051";  // the router's gRPC
  std::string api_key;                      // empty: none is sent
  WorkloadOptions workload;                 // vocab_size and tokens_max are asked from the router
  ReportOptions report;
  int max_concurrency =
      0;  // streams at once; 0: no limit. A held-back request counts as sent late.
  float temperature = 0;
  bool ignore_eos = true;                      // so that output lengths are as drawn
  absl::Duration timeout = absl::Minutes(30);  // of one request
  double drop_share = 0;  // [0, 1]: of the streams, cancelled midway (a robustness load)
  // Called about every 100 ms with completed and total. May be empty.
  std::function<void(int done, int total)> progress;
  // Asked often; true ends the test early with what it has.
  std::function<bool()> stop;
};

// Runs the test to its end. Errors: the router does not answer; an option is out of range. Failed
// requests are counted in the report, not an error.
absl::StatusOr<nlohmann::ordered_json> RunBenchServe(const BenchServeOptions& options);

}  // namespace switchyard

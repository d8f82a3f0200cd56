// bench/serve.h: the load driver: an open loop that sends a workload to a running server when the
// workload says, whatever the server does, and measures each stream from its intended send time.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "bench/backend.h"
#include "bench/report.h"
#include "bench/workload.h"

namespace switchyard {

// Streams open at once, whatever the options say; more wait, and count as held back.
inline constexpr int kInFlightMax = 1 << 14;

struct BenchProgress {
  int64_t ended = 0, total = 0, failed = 0;
  int in_flight = 0;
  double requests_per_second = 0, tokens_per_second = 0, median_ttft_ms = 0;
};

struct BenchServeOptions {
  bool openai = false;  // HTTP; else our gRPC
  BackendOptions backend;
  WorkloadOptions workload;  // vocab_size and tokens_max of 0 are asked from the server
  ReportOptions report;
  int max_concurrency = 0;  // streams at once; 0: kInFlightMax
  int warmups = 0;          // requests before the test, one after the other; not counted
  double drop_share = 0;    // [0, 1]: of the streams, cancelled midway (a robustness load)
  absl::Duration ready_limit = absl::Seconds(10);
  std::string metrics_address;  // host:port whose /metrics is read once a second; "": none
  std::function<void(const BenchProgress&)> progress;  // about every 100 ms; may be empty
  // What the user should know at once and the report repeats; on any thread; may be empty.
  std::function<void(const std::string&)> warn;
  // Asked often; true ends the test early: what is under way is cancelled, the report has the rest.
  std::function<bool()> stop;
};

// The backend that the options ask for. `clock` must outlive it.
std::unique_ptr<LoadBackend> MakeBackend(const BenchServeOptions& options, const Clock* clock);

// Runs the test to its end. Errors: the server does not answer; an option is out of range. Failed
// requests are counted in the report, not an error.
absl::StatusOr<nlohmann::ordered_json> RunBenchServe(const BenchServeOptions& options);
// The same on a backend that the caller made, with the backend's clock.
absl::StatusOr<nlohmann::ordered_json> RunBenchServe(const BenchServeOptions& options,
                                                     LoadBackend& backend, const Clock* clock);

}  // namespace switchyard

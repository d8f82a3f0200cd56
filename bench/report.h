// bench/report.h: from what each request saw to the figures of a load test. JSON keys are those of
// `vllm bench serve`, so that tools which read its files read ours.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace switchyard {

// One request as the driver saw it. Times are from its intended send time, so that a driver or
// server that stalls cannot hide the wait (no coordinated omission).
struct RequestRecord {
  int prompt_tokens = 0, output_tokens = 0;
  absl::Duration sent_late;          // actual − intended send time
  absl::Duration ttft, e2e;          // zero if it failed before
  std::vector<absl::Duration> itls;  // gaps between responses
  uint64_t kv_bytes_moved = 0;
  std::string error;     // empty: completed or dropped
  bool dropped = false;  // cancelled midway by the driver, on purpose
  bool cut = false;      // drawn longer than the model's context, sent shorter
};

struct ReportOptions {
  std::string backend, model_id, dataset;
  double request_rate = 0, burstiness = 1;
  int max_concurrency = 0;
  std::vector<double> percentiles = {50, 90, 95, 99};
  bool detailed = false;  // ttfts, itls, input_lens, output_lens, errors of each request too
};

// Linear interpolation between closest ranks, as numpy's default. `sorted` ascending; empty gives
// 0.
double Percentile(const std::vector<double>& sorted, double percent);

// `duration`: from the first intended send to the last end.
nlohmann::ordered_json MakeReport(const ReportOptions& options,
                                  const std::vector<RequestRecord>& records,
                                  absl::Duration duration);
// The same figures for people.
std::string ReportText(const nlohmann::ordered_json& report);

}  // namespace switchyard

// bench/report.h: from what each request saw to the figures of a load test, in constant memory.
// JSON keys are those of `vllm bench serve`, so that tools which read its files read ours.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/histogram.h"
#include "bench/verdict.h"

namespace switchyard {

// One request as the driver saw it. Times are from its intended send time, so that a driver or
// server that stalls cannot hide the wait (no coordinated omission).
struct RequestRecord {
  int prompt_tokens = 0, output_tokens = 0;
  absl::Duration intended;           // since the start of the test
  absl::Duration sent_late;          // actual − intended send time
  absl::Duration held_back;          // of it, before there was room for one more stream
  absl::Duration ttft, e2e;          // zero if it failed before
  std::vector<absl::Duration> itls;  // gaps between responses
  uint64_t kv_bytes_moved = 0;
  std::string error;         // empty: completed, dropped or interrupted
  bool dropped = false;      // cancelled midway by the driver, on purpose
  bool interrupted = false;  // cancelled when the test was ended early
  bool cut = false;          // drawn longer than the model's context, sent shorter
};

// What a request must keep to be good; absent: not asked for.
struct Goodput {
  std::optional<absl::Duration> ttft, tpot, e2el;
  bool asked() const { return ttft || tpot || e2el; }
};
// "ttft:500 tpot:50 e2el:2000" (milliseconds), one item per string. kInvalidArgument names the
// item.
absl::StatusOr<Goodput> ParseGoodput(const std::vector<std::string>& items);
// {"ttft": ms, …}, of those that are asked for.
nlohmann::ordered_json ToJson(const Goodput& goodput);

struct ReportOptions {
  std::string backend, model_id, dataset;
  double request_rate = 0, burstiness = 1;
  int max_concurrency = 0;
  bool paced = false;  // sent at times of its own: a rate, a ramp, a trace
  std::vector<double> percentiles = {50, 90, 95, 99};
  Goodput goodput;
  bool detailed = false;  // ttfts, itls, input_lens, output_lens, errors of each: memory grows
  // What else the test was asked for, by the names of the flags: so that two results can be told
  // apart.
  nlohmann::ordered_json parameters = nlohmann::ordered_json::object();
};

// What happened in one slice of the test's time.
struct Interval {
  int64_t sent = 0, completed = 0, failed = 0, output_tokens = 0, tpots = 0;
  int64_t ttfts = 0, itls = 0;
  double ttft_ms = 0, tpot_ms = 0, itl_ms = 0, e2el_ms = 0;  // sums
  double itl_max_ms = 0;
  void operator+=(const Interval& other);
};

// Not thread-safe.
class RunStatistics {
 public:
  explicit RunStatistics(const ReportOptions& options) : options_(options), intervals_(1) {}

  void Add(RequestRecord record);
  int64_t ended() const { return ended_; }
  int64_t failed() const { return failed_; }
  int64_t output_tokens() const { return output_; }
  double median_ttft_ms() const { return ttft_.PercentileMs(50); }

  // `duration`: from the first intended send to the last end. `run`: what only the driver knows.
  // A latency of which there is no sample is null.
  nlohmann::ordered_json Report(absl::Duration duration, const RunFacts& run) const;

 private:
  // The slice of a moment; widens all when there would be more than kIntervalsMax.
  Interval& At(absl::Duration moment);
  void AddCompleted(const RequestRecord& r);
  void AddDetails(RequestRecord record);
  // Counts what it misses. True: nothing.
  bool Good(const RequestRecord& r);
  nlohmann::ordered_json Series() const;
  Verdict Judge(absl::Duration duration, const RunFacts& run) const;

  const ReportOptions options_;
  LatencyHistogram ttft_, tpot_, itl_, e2e_, late_;
  std::vector<Interval> intervals_;
  absl::Duration width_ = absl::Milliseconds(100);
  int64_t ended_ = 0, completed_ = 0, failed_ = 0, dropped_ = 0, interrupted_ = 0, cut_ = 0,
          late_count_ = 0, own_late_count_ = 0, held_back_ = 0, good_ = 0, input_ = 0, output_ = 0;
  int64_t missed_ttft_ = 0, missed_tpot_ = 0, missed_e2el_ = 0;  // of the completed ones
  uint64_t kv_bytes_ = 0;
  std::vector<std::pair<std::string, int64_t>> errors_;  // the first few that differ
  nlohmann::ordered_json details_ = nlohmann::ordered_json::object();
};

// The same figures for people. `metrics`: "ttft", "tpot", "itl", "e2el", "sent_late".
std::string ReportText(const nlohmann::ordered_json& report,
                       const std::vector<std::string>& metrics = {"ttft", "tpot", "itl", "e2el",
                                                                  "sent_late"});

// A sweep's (bench/sweep.h): each rate, whether it kept the promise, and why not.
std::string SweepText(const nlohmann::ordered_json& sweep);

}  // namespace switchyard

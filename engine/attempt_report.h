// engine/attempt_report.h: what a rank tells of one attempt: its log lines, and its spans, which
// are children of the router's span of the attempt:
//
//   attempt N (router) ─┬─ prefill rank ─┬─ wait       until the engine computes it
//                       │                ├─ compute    until its first token
//                       │                ├─ reserve    the decode rank's answer
//                       │                ├─ send       the KV
//                       │                └─ commit     the decode rank's answer
//                       └─ decode rank ──┬─ receive    the KV
//                                        ├─ prompt     if it computes that itself
//                                        └─ generate   the tokens that follow
//
// Not thread-safe.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/telemetry/log.h"
#include "common/telemetry/trace.h"
#include "engine/worker_env.h"
#include "proto/cluster.pb.h"

namespace switchyard {

class AttemptReport {
 public:
  using Attributes = std::vector<std::pair<std::string, std::string>>;

  AttemptReport() = default;  // tells nothing
  // `env` must outlive it. `rank`: "prefill rank" or "decode rank".
  AttemptReport(WorkerEnv* env, const char* rank, const cluster::v1::Submit& submit);

  // One that began at `start` and ends now.
  void Stage(const char* name, absl::Time start, Attributes attributes = {});
  // The attempt's end, once. kCancelled is what others wanted; other errors are warnings.
  void End(const absl::Status& status);

 private:
  WorkerEnv* env_ = nullptr;
  const char* rank_ = "";
  std::string request_;
  int attempt_ = 0;
  uint64_t parent_ = 0;
  TraceContext span_;  // not valid: not traced
  absl::Time start_;
};

}  // namespace switchyard

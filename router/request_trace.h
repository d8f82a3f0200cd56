// router/request_trace.h: the spans of one request, as its router sees them:
//
//   request ─┬─ queue
//            ├─ attempt 1 ─┬─ prefill     until the first token
//            │             ├─ transfer    what the hand-off takes after the first token
//            │             └─ decode      the tokens that follow
//            └─ attempt 2 …
//
// An attempt without a prefill rank has no transfer. Not thread-safe.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/telemetry/trace.h"

namespace switchyard {

class RequestTrace {
 public:
  // `sink` (null: nothing is recorded) must outlive it. `parent`: the client's span, if any.
  RequestTrace(SpanSink* sink, const std::optional<TraceContext>& parent, absl::Time now);

  // 32 hex digits; "" if nothing is recorded.
  std::string trace_id() const { return sink_ == nullptr ? "" : TraceId(request_); }
  // Of the running attempt, for its workers; "" as above.
  std::string traceparent() const { return attempt_ ? Traceparent(attempt_->context) : ""; }

  void StartAttempt(int number, const std::string& prefill, const std::string& decode,
                    absl::Time now);
  void Token(absl::Time now);  // the attempt's first one counts
  void HandedOff(uint64_t bytes, const std::string& lane, absl::Time now);
  void EndAttempt(const absl::Status& status, absl::Time now);  // if one is running
  // The request's end, and its attempt's.
  void End(std::vector<std::pair<std::string, std::string>> attributes, const absl::Status& status,
           absl::Time now);

 private:
  struct Attempt {
    TraceContext context;
    int number = 0;
    std::string prefill, decode;
    absl::Time start;
    std::optional<absl::Time> first_token, handed_off;
    uint64_t kv_bytes = 0;
    std::string kv_lane;
  };
  void Child(const TraceContext& parent, std::string name, absl::Time start, absl::Time end,
             std::vector<std::pair<std::string, std::string>> attributes);

  SpanSink* sink_;
  uint64_t parent_ = 0;
  TraceContext request_;
  const absl::Time start_;
  bool dispatched_ = false;
  std::optional<Attempt> attempt_;
};

}  // namespace switchyard

// common/telemetry/trace.h: spans of requests, in W3C's trace context
// (www.w3.org/TR/trace-context).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace switchyard {

// A place in a trace: one span of it.
struct TraceContext {
  uint64_t trace_high = 0, trace_low = 0, span = 0;
  bool sampled = false;
  bool valid() const { return (trace_high | trace_low) != 0 && span != 0; }
};

// "00-<32 hex digits>-<16>-<2>", as the header `traceparent` has it. nullopt: nothing of the kind,
// which a server must take for "no header".
std::optional<TraceContext> ParseTraceparent(std::string_view header);
std::string Traceparent(const TraceContext& context);  // the header
std::string TraceId(const TraceContext& context);      // 32 hex digits
std::string SpanId(uint64_t span);                     // 16

struct Span {
  TraceContext context;  // its own
  uint64_t parent = 0;   // span; 0: the first of its trace
  std::string name;
  absl::Time start, end;  // of the process's Clock
  std::vector<std::pair<std::string, std::string>> attributes;
  std::string error;  // empty: it went well
};

class SpanSink {
 public:
  virtual ~SpanSink() = default;
  // A new span of `parent`'s trace, or of a new trace if it is not valid.
  virtual TraceContext Begin(const TraceContext& parent) = 0;
  // Never blocks. What is not sampled is ignored.
  virtual void Record(Span span) = 0;
  // Spans that came faster than they could be written, or that nobody took.
  virtual uint64_t lost() const { return 0; }
};

}  // namespace switchyard

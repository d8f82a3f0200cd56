// common/telemetry/trace.h: spans of requests in W3C's trace context (www.w3.org/TR/trace-context)
// and OpenTelemetry's JSON form (OTLP), one ExportTraceServiceRequest per line of a file: what
// OpenTelemetry's collector reads with its otlpjsonfile receiver.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mailbox.h"
#include "common/mutex.h"

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
std::string TraceId(const TraceContext& context);  // 32 hex digits

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
};

// Thread-safe. What is recorded is on disk within a second, and when it is destroyed.
class SpanFile final : public SpanSink {
 public:
  // Appends; a line is one write, so that processes may share a file. `service`: who records.
  // `clock` must outlive it. Errors name the file.
  static absl::StatusOr<std::unique_ptr<SpanFile>> Open(const std::string& path,
                                                        std::string service, const Clock* clock);
  ~SpanFile() override;

  TraceContext Begin(const TraceContext& parent) override;
  void Record(Span span) override;
  // Spans that came faster than the disk took them, or that it refused.
  uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }

 private:
  SpanFile(int fd, std::string service, const Clock* clock);
  void Run();

  const int fd_;
  const std::string service_;
  const absl::Duration since_1970_;  // of the clock's zero
  Mutex mu_;
  std::mt19937_64 rng_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> lost_{0};
  std::atomic<bool> stop_{false};
  Mailbox<Span> spans_;
  std::thread thread_;
};

}  // namespace switchyard

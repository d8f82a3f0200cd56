// common/telemetry/span_export.h: spans on their way out, in OpenTelemetry's protocol (OTLP,
// opentelemetry.io/docs/specs/otlp) and its JSON form: to a file, one ExportTraceServiceRequest per
// line, which a collector reads with its otlpjsonfile receiver, or to a collector's HTTP port.
#pragma once

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/telemetry/log.h"
#include "common/telemetry/trace.h"

namespace switchyard {

// Where requests go; used by one thread.
class SpanOutput {
 public:
  virtual ~SpanOutput() = default;
  // One ExportTraceServiceRequest. kUnavailable: another try may succeed. Returns within seconds.
  virtual absl::Status Write(const std::string& request) = 0;
  virtual const std::string& name() const = 0;  // for logs
};

// Appends; a line is one write, so that processes may share a file. Errors name the file.
absl::StatusOr<std::unique_ptr<SpanOutput>> OpenSpanFile(const std::string& path);
// POSTs to `url`: http://host[:port][/path]; without a path, /v1/traces. kInvalidArgument names it.
absl::StatusOr<std::unique_ptr<SpanOutput>> MakeOtlpOutput(const std::string& url);

// Thread-safe. What is recorded is written within a second, and when this is destroyed. Each output
// has a queue and a thread of its own: one that hangs holds up nobody.
class SpanExport final : public SpanSink {
 public:
  // `service`: who records, as service.name; `instance`: which of them. `clock` and `log` (null:
  // silent) must outlive it.
  SpanExport(std::string service, std::string instance, const Clock* clock, Logger* log,
             std::vector<std::unique_ptr<SpanOutput>> outputs);
  ~SpanExport() override;

  TraceContext Begin(const TraceContext& parent) override;
  void Record(Span span) override;
  uint64_t lost() const override { return lost_.load(std::memory_order_relaxed); }

 private:
  class Lane;

  std::atomic<uint64_t> lost_{0};
  Mutex mu_;
  std::mt19937_64 rng_ ABSL_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace switchyard

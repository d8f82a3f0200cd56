// prefill/handoff_metrics.h: the series of hand-offs as the prefill rank sees them.
#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/telemetry/metrics.h"

namespace switchyard {

// Thread-safe; lives no longer than the registry.
class HandoffMetrics {
 public:
  explicit HandoffMetrics(MetricRegistry& registry);

  // The decode rank has the whole of it, `took` after the reservation was asked for.
  void Committed(const std::string& lane, uint64_t bytes, absl::Duration took);
  // `reserve`: from the question to the decode rank's answer.
  void Reserved(absl::Duration took) { reserve_.Observe(absl::ToDoubleSeconds(took)); }
  // Ended otherwise: by us, the router or the decode rank.
  void Failed(const absl::Status& why);

 private:
  struct Lane {
    prometheus::Counter* bytes;
    prometheus::Counter* handoffs;
    prometheus::Histogram* seconds;
  };
  std::map<std::string, Lane> lanes_;
  std::map<std::string, prometheus::Counter*> failures_;
  prometheus::Histogram& reserve_;
};

}  // namespace switchyard

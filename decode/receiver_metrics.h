// decode/receiver_metrics.h: the series of hand-offs as the decode rank sees them.
#pragma once

#include "common/telemetry/metrics.h"
#include "kvtransfer/kv_transfer.h"

namespace switchyard {

// One thread at a time; lives no longer than the registry.
class ReceiverMetrics {
 public:
  explicit ReceiverMetrics(MetricRegistry& registry);
  void Update(const KvReceiverStats& stats);

 private:
  prometheus::Counter &bytes_, &blocks_, &frames_, &stale_frames_, &corrupt_blocks_;
  prometheus::Gauge &sessions_, &peers_, &tombstones_;
};

}  // namespace switchyard

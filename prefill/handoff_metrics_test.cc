#include "prefill/handoff_metrics.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(HandoffMetricsTest, EverySeriesIsThereFromTheStart) {
  MetricRegistry registry(MetricLabels{{"role", "prefill"}});
  HandoffMetrics m(registry);
  const auto has = [&](const std::string& line) {
    return registry.Text().find("switchyard_" + line) != std::string::npos;
  };
  for (const char* lane : {"shm", "tcp"}) {
    const std::string label = std::string("{lane=\"") + lane + "\",role=\"prefill\"} 0";
    EXPECT_TRUE(has("handoff_bytes_total" + label)) << registry.Text();
    EXPECT_TRUE(has("handoffs_total" + label));
    EXPECT_TRUE(has("handoff_seconds_count" + label));
  }
  EXPECT_TRUE(has("handoff_failures_total{reason=\"data_loss\",role=\"prefill\"} 0"));
  m.Committed("shm", 4096, absl::Milliseconds(3));
  m.Committed("a lane of tomorrow", 1, absl::Milliseconds(3));
  m.Failed(absl::DataLossError("x"));
  m.Failed(absl::InternalError("x"));
  EXPECT_TRUE(has("handoff_bytes_total{lane=\"shm\",role=\"prefill\"} 4096"));
  EXPECT_TRUE(has("handoff_seconds_bucket{lane=\"shm\",role=\"prefill\",le=\"0.005\"} 1"));
  EXPECT_TRUE(has("handoffs_total{lane=\"other\",role=\"prefill\"} 1"));
  EXPECT_TRUE(has("handoff_failures_total{reason=\"data_loss\",role=\"prefill\"} 1"));
  EXPECT_TRUE(has("handoff_failures_total{reason=\"other\",role=\"prefill\"} 1"));
}

}  // namespace
}  // namespace switchyard

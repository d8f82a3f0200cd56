#include "engine/worker_metrics.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(WorkerMetricsTest, ShowsTheSnapshotAndNeverCountsDown) {
  WorkerMetrics m("m", "decode");
  int scrapes = 0;
  prometheus::Gauge& own = m.registry().Gauge("of_the_role", "x");
  m.OnScrape([&] { own.Set(++scrapes); });
  WorkerSnapshot s;
  s.engine.running = 2;
  s.engine.prompt_tokens = 100;
  s.engine.blocks = {.free = 6, .owned = 1, .leased = 1, .quarantined = 0, .total = 8};
  s.steps = 7;
  m.Text(s);
  s.engine.prompt_tokens = 90;  // an older snapshot that came late
  const std::string text = m.Text(s);
  const std::string labels = "{model_name=\"m\",role=\"decode\"} ";
  for (const std::string& line :
       {"switchyard_num_requests_running" + labels + "2",
        "switchyard_num_requests_waiting" + labels + "0",
        "switchyard_kv_cache_usage_perc" + labels + "0.25",
        "switchyard_prompt_tokens_total" + labels + "100",
        "switchyard_engine_steps_total" + labels + "7", "switchyard_worker_healthy" + labels + "1",
        "switchyard_of_the_role" + labels + "2",
        std::string(
            "switchyard_worker_kv_blocks{model_name=\"m\",role=\"decode\",state=\"leased\"} 1")}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

TEST(WorkerMetricsTest, SharesAreOfTheTimeBetweenScrapes) {
  WorkerMetrics m("m", "decode");
  WorkEstimate work;
  work.token_flops = 1000;
  work.step_bytes = 500;
  m.SetWork(work, {.flops = 1e6, .read_bytes = 1e5});
  WorkerSnapshot s;
  s.at = absl::UnixEpoch() + absl::Seconds(10);
  m.Text(s);
  s.at += absl::Seconds(2);
  s.engine.prompt_tokens = 300;
  s.engine.generated_tokens = 100;
  s.engine.steps = 40;
  m.Text(s);
  s.at += absl::Milliseconds(10);  // too soon for another one
  s.engine.steps = 41;
  const std::string text = m.Text(s);
  const std::string labels = "{model_name=\"m\",role=\"decode\"} ";
  for (const std::string& line :
       {"switchyard_mfu" + labels + "0.2", "switchyard_memory_bandwidth_share" + labels + "0.1",
        "switchyard_estimated_flops_total" + labels + "400000",
        "switchyard_estimated_read_bytes_total" + labels + "20000"}) {
    EXPECT_NE(text.find(line + "\n"), std::string::npos) << line << "\n" << text;
  }
}

}  // namespace
}  // namespace switchyard

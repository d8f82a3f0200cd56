#include "router/metrics.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(RouterMetricsTest, EverySeriesIsThereFromTheStart) {
  const std::string text = RouterMetrics("m").Text();
  for (const char* series :
       {"switchyard_num_requests_running{model_name=\"m\"} 0",
        "switchyard_num_requests_waiting{model_name=\"m\"} 0",
        "switchyard_kv_cache_usage_perc{model_name=\"m\"} 0",
        "switchyard_prompt_tokens_total{model_name=\"m\"} 0",
        "switchyard_generation_tokens_total{model_name=\"m\"} 0",
        "switchyard_prefix_cache_queries_total{model_name=\"m\"} 0",
        "switchyard_prefix_cache_hits_total{model_name=\"m\"} 0",
        "switchyard_kv_blocks{model_name=\"m\",role=\"decode\",state=\"cached\"} 0",
        "switchyard_num_preemptions_total{model_name=\"m\"} 0",
        "switchyard_time_to_first_token_seconds_count{model_name=\"m\"} 0",
        "switchyard_time_per_output_token_seconds_count{model_name=\"m\"} 0",
        "switchyard_e2e_request_latency_seconds_count{model_name=\"m\"} 0",
        "switchyard_request_success_total{finished_reason=\"stop\",model_name=\"m\"} 0",
        "switchyard_request_success_total{finished_reason=\"length\",model_name=\"m\"} 0",
        "switchyard_request_success_total{finished_reason=\"abort\",model_name=\"m\"} 0",
        "switchyard_request_success_total{finished_reason=\"error\",model_name=\"m\"} 0",
        "switchyard_kv_bytes_moved_total{model_name=\"m\"} 0",
        "switchyard_request_retries_total{model_name=\"m\"} 0",
        "switchyard_workers_alive{model_name=\"m\",role=\"prefill\"} 0",
        "switchyard_workers_alive{model_name=\"m\",role=\"decode\"} 0"}) {
    EXPECT_NE(text.find(series), std::string::npos) << series << "\n" << text;
  }
}

TEST(RouterMetricsTest, TokensThatCameTogetherShareTheTime) {
  RouterMetrics m("m");
  m.FirstToken(10, absl::Milliseconds(3));
  m.LaterTokens(4, absl::Milliseconds(80));
  ClientUpdate end;
  end.finish = ClientUpdate::Finish::kLength;
  end.kv_bytes_moved = 77;
  end.prompt_tokens = 10;
  end.completion_tokens = 5;
  m.Ended(end,
          {.dispatched = absl::Milliseconds(400),
           .first_token = absl::Milliseconds(900),
           .last_token = absl::Milliseconds(980),
           .end = absl::Seconds(1)},
          64);
  const std::string text = m.Text();
  for (const char* line :
       {"switchyard_time_per_output_token_seconds_count{model_name=\"m\"} 4",
        "switchyard_time_per_output_token_seconds_bucket{model_name=\"m\",le=\"0.01\"} 0",
        "switchyard_time_per_output_token_seconds_bucket{model_name=\"m\",le=\"0.025\"} 4",
        "switchyard_request_success_total{finished_reason=\"length\",model_name=\"m\"} 1",
        "switchyard_kv_bytes_moved_total{model_name=\"m\"} 77",
        "switchyard_inter_token_latency_seconds_count{model_name=\"m\"} 4",
        "switchyard_request_queue_time_seconds_bucket{model_name=\"m\",le=\"0.3\"} 0",
        "switchyard_request_queue_time_seconds_bucket{model_name=\"m\",le=\"0.5\"} 1",
        "switchyard_request_prefill_time_seconds_sum{model_name=\"m\"} 0.5",
        "switchyard_request_decode_time_seconds_bucket{model_name=\"m\",le=\"0.3\"} 1",
        "switchyard_request_time_per_output_token_seconds_bucket{model_name=\"m\",le=\"0.025\"} 1",
        "switchyard_request_prompt_tokens_sum{model_name=\"m\"} 10",
        "switchyard_request_generation_tokens_sum{model_name=\"m\"} 5",
        "switchyard_request_params_max_tokens_sum{model_name=\"m\"} 64"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

// A request that never got a worker has an end, and no stages.
TEST(RouterMetricsTest, StagesThatWereNotReachedAreNotCounted) {
  RouterMetrics m("m");
  ClientUpdate end;
  end.finish = ClientUpdate::Finish::kError;
  m.Ended(end, {.end = absl::Seconds(60)}, 16);
  const std::string text = m.Text();
  for (const char* line : {"switchyard_e2e_request_latency_seconds_count{model_name=\"m\"} 1",
                           "switchyard_request_queue_time_seconds_count{model_name=\"m\"} 0",
                           "switchyard_request_prefill_time_seconds_count{model_name=\"m\"} 0",
                           "switchyard_request_decode_time_seconds_count{model_name=\"m\"} 0"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

}  // namespace
}  // namespace switchyard

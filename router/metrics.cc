#include "router/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>

namespace switchyard {
namespace {

using prometheus::Histogram;

// vLLM's buckets, in seconds.
Histogram::BucketBoundaries TtftBuckets() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
          1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
}
Histogram::BucketBoundaries TpotBuckets() {
  return {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,  0.3,  0.4, 0.5,
          0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0, 40.0, 80.0};
}
Histogram::BucketBoundaries E2eBuckets() {
  return {0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
          30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
}

constexpr const char* kReasons[] = {"stop", "length", "abort", "error"};

}  // namespace

struct RouterMetrics::Series {
  // Blocks of one role by what they are; they add up to the total.
  struct KvBlocks {
    prometheus::Gauge *free, *cached, *owned, *leased, *quarantined;
  };

  explicit Series(const std::string& model) : labels{{"model_name", model}} {
    for (const std::string role : {"prefill", "decode"}) {
      const auto gauge = [&](const std::string& state) {
        return &GaugeOf("kv_blocks", "KV blocks of live workers by role and state",
                        {{"role", role}, {"state", state}});
      };
      kv_blocks[role] = {gauge("free"), gauge("cached"), gauge("owned"), gauge("leased"),
                         gauge("quarantined")};
    }
    for (size_t i = 0; i < success.size(); ++i) {
      success[i] = &CounterOf("request_success_total", "Ended requests by reason",
                              {{"finished_reason", kReasons[i]}});
    }
  }
  prometheus::Labels With(prometheus::Labels more) const {
    more.insert(labels.begin(), labels.end());
    return more;
  }
  prometheus::Gauge& GaugeOf(const std::string& name, const std::string& help,
                             const prometheus::Labels& more = {}) {
    return prometheus::BuildGauge()
        .Name("switchyard_" + name)
        .Help(help)
        .Register(registry)
        .Add(With(more));
  }
  prometheus::Counter& CounterOf(const std::string& name, const std::string& help,
                                 const prometheus::Labels& more = {}) {
    return prometheus::BuildCounter()
        .Name("switchyard_" + name)
        .Help(help)
        .Register(registry)
        .Add(With(more));
  }
  Histogram& HistogramOf(const std::string& name, const std::string& help,
                         const Histogram::BucketBoundaries& buckets) {
    return prometheus::BuildHistogram()
        .Name("switchyard_" + name)
        .Help(help)
        .Register(registry)
        .Add(labels, buckets);
  }

  prometheus::Registry registry;
  const prometheus::Labels labels;
  prometheus::Gauge& running = GaugeOf("num_requests_running", "Requests on workers");
  prometheus::Gauge& waiting = GaugeOf("num_requests_waiting", "Requests that wait for a worker");
  prometheus::Gauge& kv_usage =
      GaugeOf("kv_cache_usage_perc", "Used part of the decode workers' KV blocks, 0 to 1");
  prometheus::Gauge& prefill_alive =
      GaugeOf("workers_alive", "Registered workers by role", {{"role", "prefill"}});
  prometheus::Gauge& decode_alive =
      GaugeOf("workers_alive", "Registered workers by role", {{"role", "decode"}});
  prometheus::Counter& prompt_tokens =
      CounterOf("prompt_tokens_total", "Prompt tokens of requests that got a token");
  prometheus::Counter& generation_tokens = CounterOf("generation_tokens_total", "Generated tokens");
  prometheus::Counter& preemptions =
      CounterOf("num_preemptions_total", "Sequences that workers put back for lack of KV blocks");
  prometheus::Counter& prefix_queries = CounterOf(
      "prefix_cache_queries_total", "Prompt tokens that were looked for in the prefix cache");
  prometheus::Counter& prefix_hits =
      CounterOf("prefix_cache_hits_total", "Prompt tokens that were found in the prefix cache");
  prometheus::Counter& kv_bytes =
      CounterOf("kv_bytes_moved_total", "KV bytes from prefill to decode workers");
  prometheus::Counter& retries =
      CounterOf("request_retries_total", "Attempts after the first one of a request");
  Histogram& ttft =
      HistogramOf("time_to_first_token_seconds", "Arrival to the first token", TtftBuckets());
  Histogram& tpot = HistogramOf("time_per_output_token_seconds",
                                "Between one token and the next of a request", TpotBuckets());
  Histogram& e2e = HistogramOf("e2e_request_latency_seconds", "Arrival to the end", E2eBuckets());
  std::array<prometheus::Counter*, std::size(kReasons)> success;
  std::map<std::string, KvBlocks> kv_blocks;  // by role
};

RouterMetrics::RouterMetrics(const std::string& model_name)
    : series_(std::make_unique<Series>(model_name)) {}
RouterMetrics::~RouterMetrics() = default;

void RouterMetrics::SetRequests(int running, int waiting) {
  series_->running.Set(running);
  series_->waiting.Set(waiting);
}
void RouterMetrics::SetWorkers(int prefill_alive, int decode_alive) {
  series_->prefill_alive.Set(prefill_alive);
  series_->decode_alive.Set(decode_alive);
}
void RouterMetrics::SetKvUsage(double fraction) { series_->kv_usage.Set(fraction); }
void RouterMetrics::SetKvBlocks(const std::vector<WorkerStatus>& workers) {
  for (auto& [role, gauges] : series_->kv_blocks) {
    int free = 0, cached = 0, leased = 0, quarantined = 0, total = 0;
    for (const WorkerStatus& w : workers) {
      if (w.role != role || !w.alive) continue;
      free += w.kv_blocks_free;
      cached += w.kv_blocks_cached;
      leased += w.kv_blocks_leased;
      quarantined += w.kv_blocks_quarantined;
      total += w.kv_blocks_total;
    }
    gauges.free->Set(free - cached);
    gauges.cached->Set(cached);
    gauges.owned->Set(total - free - leased - quarantined);
    gauges.leased->Set(leased);
    gauges.quarantined->Set(quarantined);
  }
}
void RouterMetrics::FirstToken(int prompt_tokens, absl::Duration ttft) {
  series_->prompt_tokens.Increment(prompt_tokens);
  series_->ttft.Observe(absl::ToDoubleSeconds(ttft));
}
void RouterMetrics::LaterTokens(int count, absl::Duration since) {
  for (int i = 0; i < count; ++i) series_->tpot.Observe(absl::ToDoubleSeconds(since) / count);
}
void RouterMetrics::GeneratedTokens(int count) { series_->generation_tokens.Increment(count); }
void RouterMetrics::Ended(ClientUpdate::Finish finish, absl::Duration e2e,
                          uint64_t kv_bytes_moved) {
  series_->success[static_cast<int>(finish) - 1]->Increment();
  series_->e2e.Observe(absl::ToDoubleSeconds(e2e));
  series_->kv_bytes.Increment(static_cast<double>(kv_bytes_moved));
}
void RouterMetrics::Retry() { series_->retries.Increment(); }
void RouterMetrics::Preemptions(uint64_t count) {
  series_->preemptions.Increment(static_cast<double>(count));
}
void RouterMetrics::PrefixCache(uint64_t queries, uint64_t hits) {
  series_->prefix_queries.Increment(static_cast<double>(queries));
  series_->prefix_hits.Increment(static_cast<double>(hits));
}
std::string RouterMetrics::Text() const {
  return prometheus::TextSerializer().Serialize(series_->registry.Collect());
}

}  // namespace switchyard

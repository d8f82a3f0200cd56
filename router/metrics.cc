#include "router/metrics.h"

#include <array>
#include <map>

#include "common/telemetry/metrics.h"

namespace switchyard {
namespace {
constexpr int kReasons = static_cast<int>(ClientUpdate::Finish::kError);  // kStop is 1
constexpr std::array kRefusals = {"full", "late", "draining", "not_ready"};
static_assert(kRefusals.size() == static_cast<size_t>(Refusal::kNotReady) + 1);
}  // namespace

struct RouterMetrics::Series {
  // Blocks of one role by what they are; they add up to the total.
  struct KvBlocks {
    prometheus::Gauge *free, *cached, *owned, *leased, *quarantined;
  };

  explicit Series(const std::string& model) : registry({{"model_name", model}}) {
    for (const std::string role : {"prefill", "decode"}) {
      const auto gauge = [&](const std::string& state) {
        return &registry.Gauge("kv_blocks", "KV blocks of live workers by role and state",
                               {{"role", role}, {"state", state}});
      };
      kv_blocks[role] = {gauge("free"), gauge("cached"), gauge("owned"), gauge("leased"),
                         gauge("quarantined")};
    }
    for (size_t i = 0; i < kRefusals.size(); ++i) {
      refused[i] = &registry.Counter("requests_refused_total", "Requests that were not taken",
                                     {{"reason", kRefusals[i]}});
    }
    for (int i = 0; i < kReasons; ++i) {
      const auto finish = static_cast<ClientUpdate::Finish>(i + 1);
      success[i] = &registry.Counter("request_success_total", "Ended requests by reason",
                                     {{"finished_reason", FinishName(finish)}});
    }
  }
  prometheus::Histogram& Seconds(const std::string& name, const std::string& help,
                                 const prometheus::Histogram::BucketBoundaries& buckets) {
    return registry.Histogram(name, help, buckets);
  }

  MetricRegistry registry;
  prometheus::Gauge& running = registry.Gauge("num_requests_running", "Requests on workers");
  prometheus::Gauge& waiting =
      registry.Gauge("num_requests_waiting", "Requests that wait for a worker");
  prometheus::Gauge& kv_usage =
      registry.Gauge("kv_cache_usage_perc", "Used part of the decode workers' KV blocks, 0 to 1");
  prometheus::Gauge& prefill_alive =
      registry.Gauge("workers_alive", "Registered workers by role", {{"role", "prefill"}});
  prometheus::Gauge& decode_alive =
      registry.Gauge("workers_alive", "Registered workers by role", {{"role", "decode"}});
  prometheus::Counter& prompt_tokens =
      registry.Counter("prompt_tokens_total", "Prompt tokens of requests that got a token");
  prometheus::Counter& generation_tokens =
      registry.Counter("generation_tokens_total", "Generated tokens");
  prometheus::Counter& preemptions = registry.Counter(
      "num_preemptions_total", "Sequences that workers put back for lack of KV blocks");
  prometheus::Counter& prefix_queries = registry.Counter(
      "prefix_cache_queries_total", "Prompt tokens that were looked for in the prefix cache");
  prometheus::Counter& prefix_hits = registry.Counter(
      "prefix_cache_hits_total", "Prompt tokens that were found in the prefix cache");
  prometheus::Counter& kv_bytes =
      registry.Counter("kv_bytes_moved_total", "KV bytes from prefill to decode workers");
  prometheus::Counter& retries =
      registry.Counter("request_retries_total", "Attempts after the first one of a request");
  prometheus::Counter& spans_lost =
      registry.Counter("trace_spans_lost_total", "Spans that nobody took in time");
  prometheus::Histogram& ttft =
      Seconds("time_to_first_token_seconds", "Arrival to the first token", buckets::FirstToken());
  prometheus::Histogram& tpot =
      Seconds("time_per_output_token_seconds", "Between one token and the next of a request",
              buckets::BetweenTokens());
  // vLLM's newer name of the same figure.
  prometheus::Histogram& itl =
      Seconds("inter_token_latency_seconds", "Between one token and the next of a request",
              buckets::BetweenTokens());
  prometheus::Histogram& mean_tpot =
      Seconds("request_time_per_output_token_seconds", "Mean time between tokens of one request",
              buckets::BetweenTokens());
  prometheus::Histogram& e2e =
      Seconds("e2e_request_latency_seconds", "Arrival to the end", buckets::Request());
  prometheus::Histogram& queue =
      Seconds("request_queue_time_seconds", "Arrival to the first attempt", buckets::Request());
  prometheus::Histogram& prefill =
      Seconds("request_prefill_time_seconds", "First attempt to first token", buckets::Request());
  prometheus::Histogram& decode =
      Seconds("request_decode_time_seconds", "First token to last token", buckets::Request());
  prometheus::Histogram& inference =
      Seconds("request_inference_time_seconds", "First attempt to last token", buckets::Request());
  prometheus::Histogram& prompt_lengths = registry.Histogram(
      "request_prompt_tokens", "Prompt tokens of ended requests", buckets::Tokens());
  prometheus::Histogram& answer_lengths = registry.Histogram(
      "request_generation_tokens", "Generated tokens of ended requests", buckets::Tokens());
  prometheus::Histogram& max_tokens = registry.Histogram(
      "request_params_max_tokens", "max_tokens of ended requests", buckets::Tokens());
  std::array<prometheus::Counter*, kReasons> success;
  std::array<prometheus::Counter*, kRefusals.size()> refused;
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
  const double each = absl::ToDoubleSeconds(since) / count;
  for (int i = 0; i < count; ++i) {
    series_->tpot.Observe(each);
    series_->itl.Observe(each);
  }
}
void RouterMetrics::GeneratedTokens(int count) { series_->generation_tokens.Increment(count); }

void RouterMetrics::Ended(const ClientUpdate& end, const RequestTimes& times, int max_tokens) {
  Series& s = *series_;
  const auto observe = [](prometheus::Histogram& histogram, absl::Duration d) {
    if (d < absl::InfiniteDuration()) histogram.Observe(absl::ToDoubleSeconds(d));
  };
  s.success[static_cast<int>(end.finish) - 1]->Increment();
  s.e2e.Observe(absl::ToDoubleSeconds(times.end));
  s.kv_bytes.Increment(static_cast<double>(end.kv_bytes_moved));
  s.prompt_lengths.Observe(end.prompt_tokens);
  s.answer_lengths.Observe(end.completion_tokens);
  s.max_tokens.Observe(max_tokens);
  observe(s.queue, times.dispatched);
  if (times.first_token == absl::InfiniteDuration()) return;
  observe(s.prefill, times.first_token - times.dispatched);
  observe(s.decode, times.last_token - times.first_token);
  observe(s.inference, times.last_token - times.dispatched);
  if (end.completion_tokens > 1) {
    observe(s.mean_tpot, (times.last_token - times.first_token) / (end.completion_tokens - 1));
  }
}
void RouterMetrics::Refused(Refusal why) const {
  series_->refused[static_cast<size_t>(why)]->Increment();
}
void RouterMetrics::Retry() { series_->retries.Increment(); }
void RouterMetrics::Preemptions(uint64_t count) {
  series_->preemptions.Increment(static_cast<double>(count));
}
void RouterMetrics::PrefixCache(uint64_t queries, uint64_t hits) {
  series_->prefix_queries.Increment(static_cast<double>(queries));
  series_->prefix_hits.Increment(static_cast<double>(hits));
}
std::string RouterMetrics::Text(uint64_t spans_lost) const {
  RaiseTo(series_->spans_lost, static_cast<double>(spans_lost));
  return series_->registry.Text();
}

}  // namespace switchyard

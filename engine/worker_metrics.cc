#include "engine/worker_metrics.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "common/status_macros.h"

namespace switchyard {

struct WorkerMetrics::Series {
  explicit Series(MetricRegistry& r) : registry(r) {}
  void ShowRebalances(const EpRebalanceStats& now);
  prometheus::Gauge& Blocks(const std::string& state) {
    return registry.Gauge("worker_kv_blocks", "KV blocks of this worker by state",
                          {{"state", state}});
  }

  MetricRegistry& registry;
  prometheus::Gauge& running =
      registry.Gauge("num_requests_running", "Sequences in the running batch");
  prometheus::Gauge& waiting =
      registry.Gauge("num_requests_waiting", "Sequences that wait for KV blocks or a turn");
  prometheus::Gauge& kv_usage =
      registry.Gauge("kv_cache_usage_perc", "Used part of the KV blocks, 0 to 1");
  prometheus::Gauge& free = Blocks("free");
  prometheus::Gauge& cached = Blocks("cached");
  prometheus::Gauge& owned = Blocks("owned");
  prometheus::Gauge& leased = Blocks("leased");
  prometheus::Gauge& quarantined = Blocks("quarantined");
  prometheus::Counter& prompt_tokens =
      registry.Counter("prompt_tokens_total", "Prompt tokens that were computed");
  prometheus::Counter& generation_tokens =
      registry.Counter("generation_tokens_total", "Tokens that were sampled");
  prometheus::Counter& preemptions = registry.Counter(
      "num_preemptions_total", "Sequences that were put back for lack of KV blocks");
  prometheus::Counter& prefix_queries = registry.Counter(
      "prefix_cache_queries_total", "Prompt tokens that were looked for in the prefix cache");
  prometheus::Counter& prefix_hits = registry.Counter(
      "prefix_cache_hits_total", "Prompt tokens that were found in the prefix cache");
  prometheus::Counter& steps = registry.Counter("engine_steps_total", "Steps of the engine");
  prometheus::Counter& flops = registry.Counter(
      "estimated_flops_total", "Floating-point operations of weights, attention left out");
  prometheus::Counter& read_bytes = registry.Counter(
      "estimated_read_bytes_total", "Bytes of weights that steps read, the KV cache left out");
  prometheus::Gauge& mfu = registry.Gauge(
      "mfu", "Share of the machine's floating-point peak since the last scrape, 0 to 1");
  prometheus::Gauge& bandwidth = registry.Gauge(
      "memory_bandwidth_share", "Share of the machine's read bandwidth since the last scrape");
  prometheus::Gauge& busy = registry.Gauge("engine_busy", "1: the engine has something to compute");
  prometheus::Gauge& draining = registry.Gauge("worker_draining", "1: takes nothing new");
  prometheus::Gauge& healthy = registry.Gauge("worker_healthy", "0: the rank has failed");
  prometheus::Gauge& routers = registry.Gauge("worker_routers", "Routers that are connected");
  prometheus::Gauge& attempts =
      registry.Gauge("worker_attempts", "Attempts that have not ended, hand-offs too");
  prometheus::Gauge& ep_epoch = registry.Gauge(
      "ep_epoch", "Epoch of the expert-parallel group; it grows when ranks are lost");
  prometheus::Gauge& ep_ranks = registry.Gauge("ep_ranks", "Ranks in this epoch; 0: no group");
  prometheus::Counter& ep_sent = registry.Counter(
      "ep_sent_bytes_total", "Payload that went to the experts of other ranks, and back");
  prometheus::Counter& spans_lost =
      registry.Counter("trace_spans_lost_total", "Spans that nobody took in time");
  prometheus::Gauge& ep_placement = registry.Gauge(
      "ep_placement_version", "Placement of experts in use; it grows when they are rebalanced");
  prometheus::Counter& Rebalances(const std::string& outcome) {
    return registry.Counter("ep_rebalances_total",
                            "Looks at the loads: done, kept (nothing to gain) or aborted",
                            {{"outcome", outcome}});
  }
  prometheus::Counter& rebalances_done = Rebalances("done");
  prometheus::Counter& rebalances_kept = Rebalances("kept");
  prometheus::Counter& rebalances_aborted = Rebalances("aborted");
  prometheus::Counter& ep_fetched = registry.Counter(
      "ep_rebalance_fetched_bytes_total", "Weights of experts that were loaded for a placement");
  prometheus::Counter& ep_fetch_seconds = registry.Counter(
      "ep_rebalance_fetch_seconds_total", "Time that it took to load them, beside the steps");
  prometheus::Gauge& Balancedness(const std::string& when) {
    return registry.Gauge("ep_balancedness",
                          "Mean / max of the ranks' loads at the last look, as they were and as "
                          "the placement that followed has them",
                          {{"when", when}});
  }
  prometheus::Gauge& balanced_before = Balancedness("before");
  prometheus::Gauge& balanced_after = Balancedness("after");
  prometheus::Counter& ep_overlapped =
      registry.Counter("ep_overlapped_steps_total",
                       "Steps of two micro-batches, one on the wire while one computes");
  prometheus::Counter& EpWaited(const char* phase) {
    return registry.Counter("ep_wait_seconds_total",
                            "Time within steps in which the engine waited for other ranks' rows",
                            {{"phase", phase}});
  }
  prometheus::Counter& waited_dispatch = EpWaited("dispatch");
  prometheus::Counter& waited_combine = EpWaited("combine");
  prometheus::Counter& waited_exchange = EpWaited("exchange");
  prometheus::Gauge& EpRows(int layer, size_t rank) {
    return registry.Gauge("ep_rows", "Rows for the experts of a rank, in the last 256 steps",
                          {{"layer", std::to_string(layer)}, {"to_rank", std::to_string(rank)}});
  }
  prometheus::Gauge& EpTokens(size_t expert) {
    return registry.Gauge("ep_expert_tokens",
                          "Tokens that chose an expert of any layer, in the last 256 steps",
                          {{"expert", std::to_string(expert)}});
  }
  void ShowLoads(const EpSnapshot& now);
};

void WorkerMetrics::Series::ShowLoads(const EpSnapshot& now) {
  std::vector<int64_t> tokens;  // of an expert, all layers
  for (size_t i = 0; i < now.rank_loads.size(); ++i) {
    for (size_t r = 0; r < now.rank_loads[i].size(); ++r) {
      EpRows(now.moe_layers[i], r).Set(now.rank_loads[i][r]);
    }
    tokens.resize(now.expert_loads[i].size());
    for (size_t e = 0; e < tokens.size(); ++e) tokens[e] += now.expert_loads[i][e];
  }
  for (size_t e = 0; e < tokens.size(); ++e) EpTokens(e).Set(static_cast<double>(tokens[e]));
}

void WorkerMetrics::Series::ShowRebalances(const EpRebalanceStats& now) {
  ep_placement.Set(static_cast<double>(now.placement));
  RaiseTo(rebalances_done, static_cast<double>(now.done));
  RaiseTo(rebalances_kept, static_cast<double>(now.kept));
  RaiseTo(rebalances_aborted, static_cast<double>(now.aborted));
  RaiseTo(ep_fetched, static_cast<double>(now.fetched_bytes));
  RaiseTo(ep_fetch_seconds, now.fetch_seconds);
  balanced_before.Set(now.before);
  balanced_after.Set(now.after);
}

WorkerMetrics::WorkerMetrics(const std::string& model_name, const std::string& role)
    : registry_({{"model_name", model_name}, {"role", role}}),
      series_(std::make_unique<Series>(registry_)) {}
WorkerMetrics::~WorkerMetrics() { Stop(); }

void WorkerMetrics::SetWork(const WorkEstimate& work, const MachinePeak& peak) {
  work_ = work;
  peak_ = peak;
}

// Shares over less than a second would say what a step or two did.
void WorkerMetrics::ShowWork(const WorkerSnapshot& now) {
  const EngineStats &e = now.engine, &b = before_;
  const double seconds = absl::ToDoubleSeconds(now.at - before_at_);
  if (seconds < 1 || e.steps < b.steps) return;
  const auto tokens = static_cast<double>(e.prompt_tokens + e.generated_tokens - b.prompt_tokens -
                                          b.generated_tokens);
  const double flops = tokens * work_.token_flops;
  const double bytes = work_.ReadBytes(tokens, static_cast<double>(e.steps - b.steps));
  series_->flops.Increment(flops);
  series_->read_bytes.Increment(bytes);
  if (peak_.flops > 0) series_->mfu.Set(flops / seconds / peak_.flops);
  if (peak_.read_bytes > 0) series_->bandwidth.Set(bytes / seconds / peak_.read_bytes);
  before_ = e;
  before_at_ = now.at;
}

std::string WorkerMetrics::Text(const WorkerSnapshot& now) {
  MutexLock lock(mu_);
  Series& s = *series_;
  const BlockPool::Counts& b = now.engine.blocks;
  s.running.Set(now.engine.running);
  s.waiting.Set(now.engine.waiting);
  s.kv_usage.Set(b.total == 0 ? 0 : 1 - static_cast<double>(b.available()) / b.total);
  s.free.Set(b.free);
  s.cached.Set(b.cached);
  s.owned.Set(b.owned);
  s.leased.Set(b.leased);
  s.quarantined.Set(b.quarantined);
  RaiseTo(s.prompt_tokens, static_cast<double>(now.engine.prompt_tokens));
  RaiseTo(s.generation_tokens, static_cast<double>(now.engine.generated_tokens));
  RaiseTo(s.preemptions, static_cast<double>(now.engine.preemptions));
  RaiseTo(s.prefix_queries, static_cast<double>(now.engine.prefix_queries));
  RaiseTo(s.prefix_hits, static_cast<double>(now.engine.prefix_hits));
  RaiseTo(s.steps, static_cast<double>(now.steps));
  s.busy.Set(now.busy);
  s.draining.Set(now.draining);
  s.healthy.Set(now.health.ok());
  s.routers.Set(now.routers);
  s.attempts.Set(static_cast<double>(now.attempts));
  s.ep_epoch.Set(static_cast<double>(now.ep.epoch));
  s.ep_ranks.Set(now.ep.ranks);
  RaiseTo(s.spans_lost, static_cast<double>(now.spans_lost));
  RaiseTo(s.ep_sent, static_cast<double>(now.ep.bytes_sent));
  s.ShowRebalances(now.ep.rebalance);
  RaiseTo(s.ep_overlapped, static_cast<double>(now.ep.overlapped_steps));
  RaiseTo(s.waited_dispatch, absl::ToDoubleSeconds(now.ep.waited.dispatch));
  RaiseTo(s.waited_combine, absl::ToDoubleSeconds(now.ep.waited.combine));
  RaiseTo(s.waited_exchange, absl::ToDoubleSeconds(now.ep.waited.exchange));
  s.ShowLoads(now.ep);
  ShowWork(now);
  update_();
  return registry_.Text();
}

absl::Status WorkerMetrics::Serve(const std::string& host, int port,
                                  std::function<WorkerSnapshot()> snapshot) {
  const auto get = [](const char* path, auto answer) {
    return HttpRoute{"GET", path,
                     [answer](const HttpRequest&, std::shared_ptr<HttpResponder> responder) {
                       responder->Send(answer());
                     }};
  };
  const auto said = [](std::string body) {
    HttpResponse response;
    response.body = std::move(body);
    return response;
  };
  HttpServerOptions options;
  options.host = host;
  options.port = port;
  options.io_threads = 1;
  options.connections_max = 64;
  options.body_bytes_max = 1 << 10;  // nothing is posted here
  ASSIGN_OR_RETURN(
      server_, HttpServer::Create(
                   options, {get("/health", [said] { return said("{\"status\":\"ok\"}"); }),
                             get("/readyz",
                                 [said, snapshot] {
                                   const WorkerSnapshot now = snapshot();
                                   if (!now.health.ok()) {
                                     return HttpError(503, now.health.ToString(),
                                                      "service_unavailable_error");
                                   }
                                   if (now.draining) {
                                     return HttpError(503, "draining", "service_unavailable_error");
                                   }
                                   return said("{\"status\":\"ready\"}");
                                 }),
                             get("/expert_loads",
                                 [said, snapshot] {
                                   return said(nlohmann::json(snapshot().ep.expert_loads).dump());
                                 }),
                             get("/metrics", [this, said, snapshot] {
                               HttpResponse response = said(Text(snapshot()));
                               response.content_type = kMetricsContentType;
                               return response;
                             })}));
  return absl::OkStatus();
}

void WorkerMetrics::Stop() {
  if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
}

}  // namespace switchyard

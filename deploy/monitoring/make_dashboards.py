#!/usr/bin/env python3
"""Writes dashboards/*.json for Grafana from the tables below. usage: make_dashboards.py [FOLDER]

A panel is (title, unit, [(expression, legend)], what it tells). tests/e2e/monitoring_test.py queries every expression against a live
cluster.
"""
import json
import pathlib
import sys

RATE = "[$__rate_interval]"


def rate(name, by=None, where=""):
    series = f"switchyard_{name}{{{where}}}" if where else f"switchyard_{name}"
    return f"sum{f' by ({by})' if by else ''} (rate({series}{RATE}))"


def quantile(q, name, by="", where=""):
    return f"histogram_quantile({q}, {rate(name + '_bucket', 'le' + (', ' + by if by else ''), where)})"


def mean(name):
    return f"{rate(name + '_sum')} / {rate(name + '_count')}"


def quantiles(name, by="", where=""):
    legend = f" {{{{{by}}}}}" if by else ""
    return [(quantile(q, name, by, where), f"p{round(q * 100)}{legend}") for q in (0.5, 0.9, 0.99)]


def hits(where, by=None):
    return f"{rate('prefix_cache_hits_total', by, where)} / {rate('prefix_cache_queries_total', by, where)}"


CLUSTER = [
    ("Ranks that are registered", "short",
     [("max by (role) (switchyard_workers_alive)", "{{role}}")], "As the routers see them."),
    ("Requests", "short",
     [('sum(switchyard_num_requests_running{role=""})', "on ranks"),
      ('sum(switchyard_num_requests_waiting{role=""})', "waiting for a rank")], "In the routers."),
    ("Requests that ended", "reqps",
     [(rate("request_success_total", "finished_reason"), "{{finished_reason}}")], ""),
    ("Tokens", "short",
     [(rate("generation_tokens_total", where='role=""'), "generated per second"),
      (rate("prompt_tokens_total", where='role=""'), "prompt tokens per second")], "Of clients' requests."),
    ("Time to first token", "s", quantiles("time_to_first_token_seconds"), "Arrival at the router to the first token."),
    ("Between tokens", "s", quantiles("inter_token_latency_seconds"), ""),
    ("Whole requests", "s", quantiles("e2e_request_latency_seconds"), ""),
    ("Where the time goes", "s",
     [(mean(f"request_{stage}_time_seconds"), stage) for stage in ("queue", "prefill", "decode")],
     "Means: waiting for a rank, first attempt to first token, first to last token."),
    ("KV blocks in use", "percentunit",
     [("max by (role, instance) (switchyard_kv_cache_usage_perc{role!=\"\"})", "{{role}} {{instance}}")], "By rank."),
    ("KV blocks by state", "short",
     [("max by (role, state) (switchyard_kv_blocks)", "{{role}} {{state}}")],
     "leased: a hand-off is under way; quarantined: a peer may still write."),
    ("Sequences in the batch", "short",
     [('sum by (role, instance) (switchyard_num_requests_running{role!=""})', "{{role}} {{instance}}")], "By rank."),
    ("Steps", "short", [(rate("engine_steps_total", "role, instance"), "{{role}} {{instance}}")], "Per second, by rank."),
    ("Prefix cache", "percentunit",
     [(hits('role=""'), "requests"), (hits('role!=""', "role"), "{{role}}")],
     "Share of prompt tokens whose KV was there."),
    ("Arithmetic", "flops", [(rate("estimated_flops_total", "role, instance"), "{{role}} {{instance}}")],
     "Of weights, by config.json; attention over the context left out."),
    ("Share of the machine", "percentunit",
     [("max by (role, instance) (switchyard_mfu)", "arithmetic {{role}} {{instance}}"),
      ("max by (role, instance) (switchyard_memory_bandwidth_share)", "memory reads {{role}} {{instance}}")],
     "Of peak-gflops and peak-read-gbps; 0 if they are not configured."),
    ("Refused at once", "reqps", [(rate("requests_refused_total", "reason"), "{{reason}}")],
     "late: the first token would have come too late; full: as many requests as a router may have."),
    ("Trouble", "short",
     [(rate("num_preemptions_total", where='role!=""'), "preemptions per second"),
      (rate("request_retries_total"), "retries per second")], ""),
    ("Trace spans that were lost", "short", [(rate("trace_spans_lost_total", "instance"), "{{instance}}")],
     "Per second: the collector is away, or slower than they come."),
    ("Lengths", "short",
     [(mean("request_prompt_tokens"), "prompt tokens"), (mean("request_generation_tokens"), "generated tokens")],
     "Means of requests that ended."),
]

HANDOFF = [
    ("KV that moved", "Bps", [(rate("handoff_bytes_total", "lane"), "{{lane}}")], "Of committed hand-offs, by lane."),
    ("Hand-offs", "ops", [(rate("handoffs_total", "lane"), "{{lane}}")], "Committed, by lane."),
    ("How long a hand-off takes", "s", quantiles("handoff_seconds", "lane"),
     "From asking for blocks to the decode rank's commit; it overlaps with computing the prompt."),
    ("How long the decode rank takes to answer", "s", quantiles("handoff_reserve_seconds"), "Reserve: blocks and a lease."),
    ("Failures", "ops", [(rate("handoff_failures_total", "reason"), "{{reason}}")],
     "aborted: the client or the router wanted no more of it."),
    ("Blocks under way", "short",
     [('sum by (instance) (switchyard_worker_kv_blocks{role="decode",state="leased"})', "leased {{instance}}"),
      ('sum by (instance) (switchyard_worker_kv_blocks{role="decode",state="quarantined"})', "quarantined {{instance}}")],
     "At rest both are 0."),
    ("Open hand-offs", "short",
     [("sum by (instance) (switchyard_handoff_sessions)", "{{instance}}")], "As the decode ranks see them."),
    ("Prefill ranks that are connected", "short", [("sum by (instance) (switchyard_handoff_peers)", "{{instance}}")], ""),
    ("What came in", "Bps", [(rate("kv_received_bytes_total", "instance"), "{{instance}}")], "Bytes that matched."),
    ("Stale and corrupt", "short",
     [(rate("kv_stale_frames_total"), "stale frames per second"),
      (rate("kv_corrupt_blocks_total"), "corrupt blocks per second")],
     "Stale: of hand-offs that had ended, not copied. Corrupt: never in a healthy network."),
    ("Tombstones", "short", [("sum by (instance) (switchyard_handoff_tombstones)", "{{instance}}")],
     "Cancelled attempts that are remembered for a minute."),
]

ROWS = "sum by (role, layer, to_rank) (switchyard_ep_rows)"

EXPERTS = [
    ("Ranks of a group", "short", [("max by (role, instance) (switchyard_ep_ranks)", "{{role}} {{instance}}")],
     "In this epoch; 0: a rank that has all experts."),
    ("Epoch", "short", [("max by (role, instance) (switchyard_ep_epoch)", "{{role}} {{instance}}")],
     "Grows when a rank is lost or comes back."),
    ("Rows of each rank", "short",
     [("sum by (role, to_rank) (switchyard_ep_rows)", "{{role}} to rank {{to_rank}}")],
     "Of all layers: where the tokens of the last 256 steps were computed."),
    ("How evenly rows are spread", "percentunit",
     [(f"min by (role) (avg by (role, layer) ({ROWS}) / max by (role, layer) ({ROWS}))", "worst layer, {{role}}"),
      (f"avg by (role) (avg by (role, layer) ({ROWS}) / max by (role, layer) ({ROWS}))", "mean of layers, {{role}}")],
     "Mean over busiest rank of a layer: 1 is perfect, 1 / ranks the worst. `switchyard balance` makes a better placement."),
    ("Tokens of each expert", "short",
     [("sum by (role, expert) (switchyard_ep_expert_tokens)", "{{role}} {{expert}}")],
     "All layers, in the last 256 steps: which experts are wanted. `/expert_loads` has them by layer."),
    ("Waiting for other ranks", "percentunit",
     [(rate("ep_wait_seconds_total", "role, instance, phase"), "{{role}} {{instance}} {{phase}}")],
     "Share of the time: of dispatches, of combines, of exchanges between tensor neighbours."),
    ("Changes of placement", "short",
     [("sum by (role, outcome) (increase(switchyard_ep_rebalances_total[$__rate_interval]))", "{{role}} {{outcome}}")],
     "Of all ranks. Kept: there was nothing to gain. Aborted: a rank was lost, or could not load experts."),
    ("Between ranks", "Bps", [(rate("ep_sent_bytes_total", "role, instance"), "{{role}} {{instance}}")],
     "Rows to the experts of other ranks, and back."),
    ("Steps", "short", [(rate("engine_steps_total", "role, instance"), "{{role}} {{instance}}")],
     "Per second; the ranks of a group make theirs together."),
]

SLO = [
    (title, "percentunit", [(f"switchyard:{name}:ratio_rate5m", "5 minutes"), (f"switchyard:{name}:ratio_rate1h", "1 hour")],
     what)
    for title, name, what in (
        ("First tokens later than 1 s", "ttft_bad", "The promise: at most 1 %."),
        ("Tokens more than 100 ms after the one before", "itl_bad", "The promise: at most 1 %."),
        ("Requests that end with an error", "errors", "The promise: at most 0.1 %."))
] + [
    (title, "short", [(f"switchyard:{name}:ratio_rate1h / {budget}", "1 hour")],
     "1: the budget lasts exactly as long as it is for; the alert is at 14.4.")
    for title, name, budget in (("Pace at which the first tokens' budget burns", "ttft_bad", 0.01),
                                ("Pace at which the tokens' budget burns", "itl_bad", 0.01),
                                ("Pace at which the errors' budget burns", "errors", 0.001))
]

DASHBOARDS = {"cluster": ("Switchyard: cluster", CLUSTER), "handoff": ("Switchyard: KV hand-off", HANDOFF),
              "experts": ("Switchyard: experts", EXPERTS), "slo": ("Switchyard: promises", SLO)}


def panel(index, title, unit, targets, what):
    return {
        "id": index + 1, "type": "timeseries", "title": title, "description": what,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "showPoints": "never"}},
                        "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend}
                    for i, (expression, legend) in enumerate(targets)],
    }


def dashboard(name, title, panels):
    return {
        "uid": f"switchyard-{name}", "title": title, "tags": ["switchyard"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "",
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus",
                                 "label": "Prometheus", "hide": 0}]},
        "panels": [panel(i, *p) for i, p in enumerate(panels)],
    }


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "dashboards"
    for name, (title, panels) in DASHBOARDS.items():
        text = json.dumps(dashboard(name, title, panels), indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

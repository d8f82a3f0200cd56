"""Good answers per second at each of some offered rates, and what share of a core client, router and rank took.

Prompts of 200 tokens, never the same, answers of 48; good: the first token within SLO_MS. Requests have a deadline of
TIMEOUT seconds. Only what was offered within the run's seconds counts, per second of them.

usage: overload.py BINARY MODEL SLO_MS TIMEOUT RATE:SECONDS,… [FLAGS of serve]
"""
import json
import math
import os
import resource
import subprocess
import sys
import time

import cluster as e2e

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(cluster):
    out = {}
    for process in cluster.processes:
        with open(f"/proc/{process['pid']}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        out[process["role"]] = out.get(process["role"], 0) + (int(fields[11]) + int(fields[12])) / TICKS
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    out["client"] = children.ru_utime + children.ru_stime
    return out


def main():
    binary, model, slo_ms, timeout, plan = sys.argv[1:6]
    with e2e.Cluster(binary, model, "--prefill", "0", *sys.argv[6:]) as cluster:
        for step in plan.split(","):
            rate, seconds = map(float, step.split(":"))
            before, begin = cpu_seconds(cluster), time.time()
            done = subprocess.run(
                [binary, "bench", "serve", "--grpc", cluster.grpc_address, "--num-prompts", str(int(rate * seconds)),
                 "--request-rate", str(rate), "--random-input-len", "200", "--random-output-len", "48", "--timeout", timeout,
                 "--seed", str(time.time_ns() % 1_000_000_007), "--goodput", f"ttft:{slo_ms}", "--json"],
                capture_output=True, text=True)
            report, wall, after = json.loads(done.stdout), time.time() - begin, cpu_seconds(cluster)
            good = report["request_goodput"] * report["duration"] / seconds
            shares = ", ".join(f"{role} {(after[role] - before[role]) / wall:.2f}" for role in sorted(after))
            print(f"{rate:6.0f}/s offered: {good:6.1f}/s good, {report['completed']} completed, {report['failed']} failed, "
                  f"TTFT {report['median_ttft_ms'] or math.nan:.0f} / {report['p99_ttft_ms'] or math.nan:.0f} ms (median, p99); "
                  f"cores: {shares}", flush=True)


if __name__ == "__main__":
    main()

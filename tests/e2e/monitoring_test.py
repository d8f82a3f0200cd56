#!/usr/bin/env python3
"""A real Prometheus scrapes a live cluster: every expression of every panel and every recorded series has values, no
alert fires. usage: monitoring_test.py SWITCHYARD MODEL deploy/monitoring

Needs Debian's `prometheus`; its unit tests of the alerts (promtool) run too.
"""
import contextlib
import json
import math
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

from cluster import Cluster

LOAD_SECONDS = 8
AWAIT_SECONDS = 120
METRIC = re.compile(r"\bswitchyard_[a-z0-9_]+\b")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_files(folder):
    for command in (["promtool", "check", "rules", "rules.yaml"], ["promtool", "check", "config", "prometheus.yaml"],
                    ["promtool", "test", "rules", "rules_test.yaml"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    alerts = re.findall(r"alert: (\w+)", (folder / "rules.yaml").read_text())
    tests = (folder / "rules_test.yaml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", tests))
    assert set(alerts) == fired, f"alerts without a unit test in which they fire: {set(alerts) - fired}"
    with tempfile.TemporaryDirectory() as fresh:
        subprocess.run([sys.executable, "-B", folder / "make_dashboards.py", fresh], check=True)
        for made in sorted(pathlib.Path(fresh).glob("*.json")):
            kept = folder / "dashboards" / made.name
            assert kept.read_text() == made.read_text(), f"run make_dashboards.py: {kept} is of another version"


class Prometheus:
    """Scrapes the cluster every second."""

    def __init__(self, cluster, folder, work):
        targets = {"router": [f"{cluster.host}:{cluster.port}"], "prefill": [], "decode": []}
        for process in cluster.processes:
            if "metrics_url" in process:
                targets[process["role"]].append(urllib.parse.urlsplit(process["metrics_url"]).netloc)
        assert all(targets.values()), targets
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                  "rule_files": [str((folder / "rules.yaml").resolve())],
                  "scrape_configs": [{"job_name": f"switchyard-{role}", "static_configs": [{"targets": hosts}]}
                                     for role, hosts in targets.items()]}
        path = pathlib.Path(work, "prometheus.json")  # JSON is YAML
        path.write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = open(pathlib.Path(work, "log"), "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={work}/data",
             f"--web.listen-address={self.url[7:]}", "--log.level=warn"], stdout=self.log, stderr=self.log)

    def query(self, expression):
        url = f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return [float(r["value"][1]) for r in json.load(answer)["data"]["result"]]
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{expression}: {e.read().decode()}") from e
        except OSError:
            assert self.process.poll() is None, pathlib.Path(self.log.name).read_text()
            return []

    def until(self, holds, *asked):
        """The one value of each expression, once that holds of them."""
        end = time.monotonic() + AWAIT_SECONDS
        while True:
            values = [self.query(e) for e in asked]
            if all(len(v) == 1 for v in values) and holds(*(v[0] for v in values)):
                return [v[0] for v in values]
            assert time.monotonic() < end, dict(zip(asked, values))
            time.sleep(0.2)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.log.close()


def load(cluster, stop):
    """Streams and drops, until told."""
    n = 0
    while not stop.is_set():
        n += 1
        with contextlib.closing(cluster.stream(prompt="Once upon a time there was a little " * 4, max_tokens=24,
                                               ignore_eos=True)) as events:
            for i, _ in enumerate(events):
                if n % 5 == 0 and i == 4:
                    break


def expressions(folder):
    for file in sorted((folder / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "20s")
    rules = (folder / "rules.yaml").read_text()
    for name in re.findall(r"record: (\S+)", rules):
        yield "rules.yaml", name
    for name in sorted(set(METRIC.findall(rules))):
        yield "rules.yaml", name


def main():
    binary, model, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    test_files(folder)
    with Cluster(binary, model, "--prefill", "1", "--decode", "1", "--decode-ep", "2", "--disaggregate", "always",
                 "--threads", "1") as cluster, \
            tempfile.TemporaryDirectory() as work:
        for process in cluster.processes:
            if process["role"] == "router":
                continue
            base = process["metrics_url"].removesuffix("/metrics")
            for path in ("/health", "/readyz"):
                with urllib.request.urlopen(base + path, timeout=10) as answer:
                    assert answer.status == 200, (base, path)
        prometheus = Prometheus(cluster, folder, work)
        stop = threading.Event()
        clients = [threading.Thread(target=load, args=(cluster, stop)) for _ in range(4)]
        try:
            for client in clients:
                client.start()
            time.sleep(LOAD_SECONDS)
            wanted = dict.fromkeys(expressions(folder))
            assert len(wanted) > 60, len(wanted)
            empty, end = wanted, time.monotonic() + AWAIT_SECONDS
            while empty and time.monotonic() < end:
                empty = [(w, e) for w, e in empty if not any(math.isfinite(v) for v in prometheus.query(e))]
            assert not empty, "no values:\n" + "\n".join(f"{where}: {e}" for where, e in empty)
            # What Prometheus has is what happened. A scrape that took longer than a second leaves a gap for a while.
            tokens, moved, _ = prometheus.until(
                lambda tokens, moved, received: tokens > 100 and moved > 0 and received > 0,
                'switchyard_generation_tokens_total{role=""}', "sum(switchyard_handoff_bytes_total)",
                "sum(switchyard_kv_received_bytes_total)")
            prometheus.until(lambda of_ranks, as_routed: of_ranks == as_routed > 0,
                             "sum(switchyard_worker_kv_blocks)", "sum(switchyard_kv_blocks)")
            assert prometheus.query('ALERTS{alertstate="firing",alertname!~".*BudgetBurns"}') == []
            print(f"{len(wanted)} expressions have values; {tokens:.0f} tokens, {moved / 1e6:.1f} MB handed off")
        finally:
            stop.set()
            for client in clients:
                client.join()
            prometheus.close()


if __name__ == "__main__":
    main()

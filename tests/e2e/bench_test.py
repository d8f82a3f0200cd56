#!/usr/bin/env python3
"""`bench serve` and `top` against a live cluster: both backends count what was sent, files are written, an interrupt
leaves a report. usage: bench_test.py SWITCHYARD MODEL
"""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cluster import Cluster


def main():
    binary, model = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory() as work, \
            Cluster(binary, model, "--disaggregate", "always", "--trace-file", f"{work}/spans") as cluster:
        def bench(*flags, code=0):
            done = subprocess.run([binary, "bench", "serve", *flags], capture_output=True, text=True, timeout=120,
                                  check=False)
            assert done.returncode == code, (flags, done.returncode, done.stdout, done.stderr)
            return done.stdout

        grpc = ("--grpc", cluster.grpc_address)
        http = ("--backend", "openai", "--base-url", cluster.http_url)
        load = ("--num-prompts", "60", "--request-rate", "30", "--random-input-len", "40", "--random-output-len", "8")
        reports = {}
        for name, backend in (("grpc", grpc), ("http", http)):
            path = pathlib.Path(work, f"{name}.json")
            html = pathlib.Path(work, f"{name}.html")
            text = bench(*backend, *load, "--num-warmups", "2", "--result-filename", str(path), "--html", str(html),
                         "--goodput", "ttft:60000", "--metrics-address", f"{cluster.host}:{cluster.port}",
                         "--metric-percentiles", "50,90")
            assert "goodput" in text, text
            report = reports[name] = json.loads(path.read_text())
            assert report["completed"] == 60 and report["failed"] == 0, report
            assert report["total_output_tokens"] == 480 and report["total_input_tokens"] == 2400, report
            assert report["goodput_share"] == 1 and report["p90_ttft_ms"] >= report["median_ttft_ms"] > 0, report
            assert report["server"]["seconds"], report["server"]
            assert html.read_text().count("<svg") >= 7
        compared = bench("--compare", f"{work}/grpc.json", f"{work}/http.json")
        assert "p99_ttft_ms" in compared, compared

        trace = pathlib.Path(work, "trace.jsonl")
        trace.write_text("".join(json.dumps({"timestamp": 50 * i, "input_length": 1000, "output_length": 100,
                                             "hash_ids": [7, i]}) + "\n" for i in range(20)))
        report = json.loads(bench(*grpc, "--dataset-name", "trace", "--dataset-path", str(trace), "--trace-length-scale",
                                  "0.05", "--json"))
        assert report["total_input_tokens"] == 20 * 50 and report["total_output_tokens"] == 20 * 5, report
        assert report["duration"] > 0.9, "sent at the trace's times"

        # Ctrl-C: what is open is cancelled, the rest is reported.
        endless = subprocess.Popen([binary, "bench", "serve", *grpc, "--num-prompts", "100000", "--request-rate", "20",
                                    "--json"], stdout=subprocess.PIPE, text=True)
        time.sleep(3)
        endless.send_signal(signal.SIGINT)
        out, _ = endless.communicate(timeout=30)
        report = json.loads(out)
        assert report["completed"] > 0 and report["verdict"] == "INVALID", report
        assert report["verdict_reasons"][0].startswith("interrupted"), report

        top = subprocess.run([binary, "top", *grpc, "--count", "2", "--interval", "0.2"], capture_output=True, text=True,
                             timeout=60, check=True).stdout
        assert top.count("requests: ") == 2 and top.count("decode") >= 2 and "KV blocks" in top, top
        print(top)

        # A request is seen while it runs, and leaves its spans under the client's trace.
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        events = cluster.stream(prompt="Once", max_tokens=400, ignore_eos=True,
                                headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "X-Request-Id": "seen"})
        next(events)
        _, listed = cluster.request("GET", "/debug/requests")
        [running] = [r for r in listed["requests"] if r["request_id"] == "seen"]
        assert running["trace_id"] == trace_id and running["tokens"] >= 1 and running["decode_worker"], running
        for _ in events:
            pass
        deadline = time.monotonic() + 10
        stages = {}
        while "request" not in stages:
            assert time.monotonic() < deadline, stages
            spans = [s for line in pathlib.Path(work, "spans").read_text().splitlines()
                     for r in json.loads(line)["resourceSpans"] for c in r["scopeSpans"] for s in c["spans"]]
            stages = {s["name"]: s for s in spans if s["traceId"] == trace_id}
            time.sleep(0.1)
        assert set(stages) == {"request", "queue", "attempt 1", "prefill", "transfer", "decode"}, stages
        assert stages["request"]["parentSpanId"] == "b7ad6b7169203331", stages


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""`bench serve` and `top` against a live cluster: both backends count what was sent, files are written, an interrupt
leaves a report. usage: bench_test.py SWITCHYARD MODEL
"""
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

from cluster import Cluster


# Under each service: its spans, with their parents.
STAGES = {
    "switchyard-router": {"request": "client", "queue": "request", "attempt 1": "request", "prefill": "attempt 1",
                          "transfer": "attempt 1", "decode": "attempt 1"},
    "switchyard-prefill": {"prefill rank": "attempt 1", "wait": "prefill rank", "compute": "prefill rank",
                           "reserve": "prefill rank", "send": "prefill rank", "commit": "prefill rank"},
    "switchyard-decode": {"decode rank": "attempt 1", "receive": "decode rank", "generate": "decode rank"},
}
SPAN = {"traceId": "[0-9a-f]{32}", "spanId": "[0-9a-f]{16}", "parentSpanId": "[0-9a-f]{16}", "name": ".+", "kind": "1",
        "startTimeUnixNano": r"\d{19}", "endTimeUnixNano": r"\d{19}"}


AWAIT_SECONDS = 120  # generous: sanitizer builds on two busy cores


class Collector:
    """What a collector's port is to an exporter: POST /v1/traces, JSON, OTLP's ExportTraceServiceRequest."""

    def __init__(self):
        self._requests = requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                good = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/json"
                requests.append(body if good else {"refused": self.path})
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()

    def requests(self):
        return list(self._requests)


def attributes(of):
    assert all(set(a) == {"key", "value"} and set(a["value"]) == {"stringValue"} for a in of["attributes"]), of
    return {a["key"]: a["value"]["stringValue"] for a in of["attributes"]}


def check_trace(requests, trace_id):
    """Waits until the trace is whole, and checks its shape. `requests`: gives all of them as JSON."""
    deadline = time.monotonic() + AWAIT_SECONDS
    while True:
        found = {}
        for request in requests():
            [resource] = request["resourceSpans"]
            service = attributes(resource["resource"])["service.name"]
            [scope] = resource["scopeSpans"]
            assert scope["scope"]["name"] == "switchyard" and len(scope["spans"]) <= 512, scope["scope"]
            for span in scope["spans"]:
                if span["traceId"] == trace_id:
                    found.setdefault(service, {})[span["name"]] = span
        if all(stages.keys() == found.get(service, {}).keys() for service, stages in STAGES.items()):
            break
        assert time.monotonic() < deadline, {s: list(stages) for s, stages in found.items()}
        time.sleep(0.1)
    spans = {"client": {"spanId": "b7ad6b7169203331"}, **{n: s for stages in found.values() for n, s in stages.items()}}
    for name, parent in (pair for stages in STAGES.values() for pair in stages.items()):
        span = spans[name]
        for key, pattern in SPAN.items():
            assert re.fullmatch(pattern, str(span[key])), (key, span)
        assert span.keys() - SPAN.keys() <= {"attributes", "status"} and attributes(span) is not None, span
        assert span["parentSpanId"] == spans[parent]["spanId"], (name, span)
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]), span
        if parent != "client":  # each process has a clock of its own
            assert int(span["startTimeUnixNano"]) > int(spans[parent]["startTimeUnixNano"]) - 10**7, (name, span)


def await_line(cluster, wanted):
    """Until a whole line of the log is `wanted`."""
    deadline = time.monotonic() + AWAIT_SECONDS
    while not any(wanted(json.loads(line)) for line in cluster.log().splitlines(keepends=True)
                  if line.startswith('{"time"') and line.endswith("\n")):
        assert time.monotonic() < deadline, cluster.log()
        time.sleep(0.05)


def watch_a_router_go(binary, model):
    """`top` outlives the router, and says so."""
    with tempfile.TemporaryFile() as shown:
        def await_text(wanted):
            deadline, text = time.monotonic() + AWAIT_SECONDS, ""
            while wanted not in text:
                assert time.monotonic() < deadline and top.poll() is None, text
                time.sleep(0.05)
                text = os.pread(shown.fileno(), 1 << 20, 0).decode()  # the place to write at is the child's too

        with Cluster(binary, model, "--prefill", "0") as cluster:
            top = subprocess.Popen([binary, "top", "--grpc", cluster.grpc_address, "--interval", "0.1"], stdout=shown)
            try:
                await_text("requests: ")
            except BaseException:
                top.kill()
                raise
        try:
            await_text(f"the router at {cluster.grpc_address}: unreachable since ")
        finally:
            top.kill()
            top.wait()


def main():
    binary, model = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory() as work, Collector() as collector, \
            Cluster(binary, model, "--disaggregate", "always", "--trace-file", f"{work}/spans",
                    "--otlp-traces-endpoint", collector.url, "--json-logs", "--log-level", "debug") as cluster:
        def bench(*flags, code=0):
            done = subprocess.run([binary, "bench", "serve", *flags], capture_output=True, text=True, timeout=120,
                                  check=False)
            assert done.returncode == code, (flags, done.returncode, done.stdout, done.stderr)
            return done.stdout

        grpc = ("--grpc", cluster.grpc_address)
        http = ("--backend", "openai", "--base-url", cluster.http_url)
        lengths = ("--random-input-len", "40", "--random-output-len", "8")
        load = ("--num-prompts", "60", "--request-rate", "30", *lengths)
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
        assert "p99_ttft_ms" in compared and "backend differs" in compared, compared
        assert reports["grpc"]["parameters"]["random_input_len"] == 40, reports["grpc"]["parameters"]

        trace = pathlib.Path(work, "trace.jsonl")
        trace.write_text("".join(json.dumps({"timestamp": 50 * i, "input_length": 1000, "output_length": 100,
                                             "hash_ids": [7, i]}) + "\n" for i in range(20)))
        report = json.loads(bench(*grpc, "--dataset-name", "trace", "--dataset-path", str(trace), "--trace-length-scale",
                                  "0.05", "--json"))
        assert report["total_input_tokens"] == 20 * 50 and report["total_output_tokens"] == 20 * 5, report
        assert report["duration"] > 0.9, "sent at the trace's times"

        # Ctrl-C: what is open is cancelled, the rest is reported.
        def ended():
            _, text = cluster.request("GET", "/metrics")
            return sum(float(v) for v in re.findall(r"^switchyard_request_success_total\{.*\} (\S+)$", text, re.M))

        before, deadline = ended(), time.monotonic() + AWAIT_SECONDS
        endless = subprocess.Popen([binary, "bench", "serve", *grpc, *lengths, "--num-prompts", "100000", "--request-rate", "30",
                                    "--json"],
                                   stdout=subprocess.PIPE, text=True)
        while ended() < before + 10:
            assert time.monotonic() < deadline and endless.poll() is None, "no request ends"
            time.sleep(0.05)
        endless.send_signal(signal.SIGINT)
        out, _ = endless.communicate(timeout=AWAIT_SECONDS)
        report = json.loads(out)
        assert report["completed"] > 0 and report["verdict"] == "INVALID", report
        assert report["verdict_reasons"][0].startswith("interrupted") and report["dropped"] == 0, report

        top = subprocess.run([binary, "top", *grpc, "--count", "2", "--interval", "0.2"], capture_output=True, text=True,
                             timeout=60, check=True).stdout
        assert top.count("requests: ") == 2 and top.count("decode") >= 2 and "KV blocks" in top, top
        print(top)

        # A request is seen while it runs, and leaves its spans under the client's trace: in the file and at the
        # collector, of the router and of both ranks.
        for n in range(100):  # one may have ended before anybody could look
            trace_id = f"0af7651916cd43dd8448eb211c8031{n:02x}"
            events = cluster.stream(prompt="Once", max_tokens=400, ignore_eos=True,
                                    headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01",
                                             "X-Request-Id": f"seen-{n}"})
            next(events)
            _, listed = cluster.request("GET", "/debug/requests")
            running = [r for r in listed["requests"] if r["request_id"] == f"seen-{n}"]
            for _ in events:
                pass
            if running:
                break
        [running] = running
        assert running["trace_id"] == trace_id and running["tokens"] >= 1 and running["decode_worker"], running
        check_trace(lambda: [json.loads(line) for line in pathlib.Path(work, "spans").read_text().splitlines()], trace_id)
        check_trace(collector.requests, trace_id)
        # Every process names the request in its lines.
        for logger, message in (("router", "attempt"), ("router", "request ended"), ("prefill-0", "attempt"),
                                ("prefill-0", "attempt ended"), ("decode-0", "attempt"), ("decode-0", "attempt ended")):
            await_line(cluster, lambda li: li["logger"] == logger and li["message"] == message and
                       li.get("request") == running["request_id"])
        # And so does the launcher, of its processes.
        os.kill(cluster.pids("decode")[0], signal.SIGKILL)
        await_line(cluster, lambda li: li["logger"] == "serve" and "starting it again" in li["message"])
    watch_a_router_go(binary, model)


if __name__ == "__main__":
    main()

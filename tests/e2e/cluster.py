"""Runs the real binary for the tests: a local cluster, requests to it, one-process generation. Standard library only."""
import contextlib
import http.client
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time

START_SECONDS = 120  # generous: sanitizer builds on two busy cores
REQUEST_SECONDS = 600  # the same, many requests at once


def alive(pid):
    """A process that has ended counts as gone, whether or not anybody has taken its exit code. Its first thread may
    have ended before the others, which still hold its files."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        zombie = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        return not zombie or len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


class Cluster:
    """`switchyard serve` as a child of the test. Use as a context manager: leaving it drains by SIGINT and checks
    exit code 0 and that no process of the cluster is left. No request is refused for the time that it would have to wait,
    unless a test says so: how long that is depends on the machine."""

    def __init__(self, binary, model, *flags, expect_clean=True):
        self._dir = tempfile.TemporaryDirectory(prefix="switchyard-test-")
        ready = pathlib.Path(self._dir.name, "ready.json")
        self._log = open(pathlib.Path(self._dir.name, "log"), "w+")
        self._expect_clean = expect_clean
        patience = () if "--max-queue-seconds" in flags else ("--max-queue-seconds", "3600")
        self.process = subprocess.Popen(
            [binary, "serve", model, "--port", "0", "--grpc-port", "0", "--ready-file", str(ready), *patience,
             *flags],
            stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError("the cluster did not start:\n" + self.log())
            time.sleep(0.05)
        info = json.loads(ready.read_text())
        self.http_url = info["http_url"]
        self.host, self.port = self.http_url.split("://")[1].rstrip("/").rsplit(":", 1)
        self.grpc_address = info["grpc_address"]
        self.processes = info["processes"]

    def log(self):
        self._log.flush()
        return pathlib.Path(self._log.name).read_text()

    def pids(self, role=None):
        return [p["pid"] for p in self.processes if role in (None, p["role"])]

    def request(self, method, path, body=None, timeout=REQUEST_SECONDS, headers=None):
        """(status, parsed JSON or text)."""
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=timeout)
        with contextlib.closing(connection):
            data = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            text = response.read()
            with contextlib.suppress(ValueError):
                return response.status, json.loads(text)
            return response.status, text.decode("utf-8", "replace")

    def complete(self, **fields):
        status, answer = self.request("POST", "/v1/completions", fields)
        assert status == 200, (status, answer)
        return answer

    def stream(self, headers=None, **fields):
        """The parsed SSE events of one streamed completion."""
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=REQUEST_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps({**fields, "stream": True}),
                               {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            assert response.status == 200, (response.status, response.read())
            for line in response:
                line = line.strip()
                if line == b"data: [DONE]":
                    return
                if line.startswith(b"data: "):
                    yield json.loads(line[len(b"data: "):])

    def metrics(self):
        """{series with labels: value} of /metrics."""
        _, text = self.request("GET", "/metrics")
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in text.splitlines() if line and not line.startswith("#")}

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        try:
            self.process.send_signal(signal.SIGINT)
            code = self.process.wait(timeout=60)
            left = [pid for pid in self.pids() if alive(pid)]
            if kind is None and self._expect_clean:
                assert code == 0, f"serve exited with {code}:\n{self.log()}"
                assert not left, f"processes left behind: {left}\n{self.log()}"
        finally:
            if self.process.poll() is None:
                self.process.kill()
            if kind is not None:
                sys.stderr.write("---- log of the cluster ----\n" + self.log())
            self._log.close()
            self._dir.cleanup()


def generate(binary, model, requests, *flags):
    """Runs `generate --requests`: one process, no network. Returns {id: result}."""
    with tempfile.TemporaryDirectory(prefix="switchyard-test-") as directory:
        path = pathlib.Path(directory, "requests.jsonl")
        out = pathlib.Path(directory, "results.jsonl")
        path.write_text("".join(json.dumps(r) + "\n" for r in requests))
        done = subprocess.run([binary, "generate", model, "--requests", str(path), "--output", str(out), *flags],
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in out.read_text().splitlines()]
        return {r["id"]: r for r in results}


def read_safetensors(path):
    """{name: (shape, flat list)} of a small file: I64, F32 and BF16."""
    data = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        raw = data[8 + size + begin:8 + size + end]
        if t["dtype"] == "BF16":
            halves = struct.unpack(f"<{len(raw) // 2}H", raw)
            values = struct.unpack(f"<{len(halves)}f", b"".join(struct.pack("<HH", 0, h) for h in halves))
        else:
            code, width = {"I64": ("q", 8), "F32": ("f", 4)}[t["dtype"]]
            values = struct.unpack(f"<{len(raw) // width}{code}", raw)
        tensors[name] = (t["shape"], values)
    return tensors

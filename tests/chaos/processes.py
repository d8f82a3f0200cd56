"""A cluster of real processes without a launcher, so that a test can stop, kill and restart each of them. Standard
library only."""
import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

READY_SECONDS = 120  # generous: sanitizer builds on two busy cores
# Small steps, one thread and slow kernels make the phases of a request long enough to hit.
ENGINE = ["--threads", "1", "--max-num-batched-tokens", "64", "--prefill-chunk", "32", "--kernels"]


def free_ports(n):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


class Process:
    def __init__(self, role, port, command, log):
        self.role, self.port, self.command, self.log = role, port, command, log
        self.child = self.drained = None  # drained: the child that has been told to leave

    def start(self):
        self.child = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)

    def signal(self, number):
        if self.child.poll() is None:
            self.child.send_signal(number)

    def end(self):
        """Kills it, even if it is stopped, and takes its exit code."""
        self.signal(signal.SIGKILL)
        self.child.wait()

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def cpu_ns(self):
        total = 0
        for task in pathlib.Path(f"/proc/{self.child.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
        return total


class Processes:
    """`prefill` + `decode` workers and a router, each worker on a host of its own if there is a network. With `ep` the ranks
    of each pool share the experts. kv_lane: shm or tcp; by default shm, and tcp over a network. Use as a context manager."""

    def __init__(self, binary, model, prefill=2, decode=2, drain_seconds=10, kernels="reference", network=None, ep=(),
                 engine=None, kv_lane=None):
        self._directory = tempfile.TemporaryDirectory(prefix="switchyard-chaos-")
        self.log_path = pathlib.Path(self._directory.name, "log")
        self._log = open(self.log_path, "w")
        self.network = network
        ports = free_ports(prefill + decode + 2)
        self.http, grpc = ports[-2:]
        self.workers = []
        for i in range(prefill + decode):
            role = "prefill" if i < prefill else "decode"
            command = [binary, role, model, "--port", str(ports[i]), "--drain-seconds", str(drain_seconds),
                       "--kv-lane", kv_lane or ("tcp" if network else "auto"), *(engine or [*ENGINE, kernels])]
            if ep:
                first, count = (0, prefill) if role == "prefill" else (prefill, decode)
                peers = ",".join(f"127.0.0.1:{p}" for p in ports[first:first + count])
                command += ["--ep-peers", peers, "--ep-rank", str(i - first), *ep]
            if network:
                command = [*network.command(i), *command, "--host", network.host(i), "--kv-net-devices", "eth0"]
            self.workers.append(Process(role, ports[i], command, self._log))
        addresses = [[f"--{w.role}-address", f"{network.host(i) if network else '127.0.0.1'}:{w.port}"]
                     for i, w in enumerate(self.workers)]
        self.router = Process("router", self.http, [
            binary, "router", model, "--port", str(self.http), "--grpc-port", str(grpc), "--drain-seconds", "10",
            "--disaggregate", "always", "--max-queue-seconds", "3600", *sum(addresses, [])], self._log)

    def all(self):
        return [*self.workers, self.router]

    def of(self, role):
        return [p for p in self.all() if p.role == role]

    def __enter__(self):
        for p in self.all():
            p.start()
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, value, traceback):
        for p in self.all():
            if p.child is not None:
                p.end()
        self._log.close()
        if kind is not None:
            print("---- log of the cluster ----\n" + self.log_path.read_text()[-6000:], flush=True)
        self._directory.cleanup()

    def metrics(self):
        """{series: value}; empty while the router is away."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in text.splitlines() if line and not line.startswith("#")}

    def requests(self):
        """Those that have not ended, as the router lists them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/debug/requests")
            return json.load(connection.getresponse())["requests"]

    def alive_workers(self):
        return sum(v for k, v in self.metrics().items() if k.startswith("switchyard_workers_alive"))

    def wait_ready(self):
        deadline = time.monotonic() + READY_SECONDS
        while self.alive_workers() != len(self.workers):
            dead = [p.role for p in self.all() if not p.alive()]
            assert not dead and time.monotonic() < deadline, f"not ready; gone: {dead}\n{self.log_path.read_text()[-3000:]}"
            time.sleep(0.05)

    def restore(self):
        """Continues what is stopped, starts what is gone, joins what is parted."""
        for i in range(len(self.workers)):
            if self.network:
                self.network.heal(i)
        for p in self.all():
            p.signal(signal.SIGCONT)
            if not p.alive():
                p.start()
        self.wait_ready()

    def wait_for_rest(self, seconds):
        """Seconds until no request is left anywhere and every KV block is free, or cached and free to be taken."""
        start = time.monotonic()
        while True:
            m = self.metrics()
            blocks = {k: v for k, v in m.items() if k.startswith("switchyard_kv_blocks{")}
            held = {k: v for k, v in blocks.items() if 'state="free"' not in k and 'state="cached"' not in k and v}
            requests = sum(v for k, v in m.items() if k.startswith("switchyard_num_requests_"))
            if blocks and not held and not requests:
                return time.monotonic() - start
            assert time.monotonic() - start < seconds, f"not at rest after {seconds} s: {held}, {requests} requests"
            time.sleep(0.05)

    def busiest(self, role):
        """The process of that role that computes now."""
        candidates = [p for p in self.of(role) if p.alive()]
        before = {p: p.cpu_ns() for p in candidates}
        time.sleep(0.01)
        return max(candidates, key=lambda p: p.cpu_ns() - before[p])


class Stream:
    """One streamed completion; next() gives the ids of the next event, in their order. Raises OSError or http errors if the
    router dies, AssertionError if it says an error."""

    def __init__(self, http_port, prompt, max_tokens, **sampling):
        self.connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=90)
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "return_token_ids": True, **sampling}
        self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        self.response = None
        self.tokens, self.done, self.left = [], False, False
        self._times = [time.monotonic()]  # of the request and of each event

    def __iter__(self):
        if self.response is None:
            self.response = self.connection.getresponse()
            assert self.response.status == 200, (self.response.status, self.response.read())
        for line in self.response:
            line = line.strip()
            if line == b"data: [DONE]":
                self.done = True
                return
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[len(b"data: "):])
            assert "error" not in event, event
            ids = [i for c in event["choices"] for i in c.get("token_ids") or []]
            self._times.append(time.monotonic())
            self.tokens += ids
            yield ids

    def gap(self, since=0.0):
        """The longest time without a token, that before the first one included; what lies before `since` does not count."""
        return max((b - max(a, since) for a, b in zip(self._times, self._times[1:]) if b > since), default=0.0)

    def leave(self):
        """The client goes away, while another thread reads."""
        self.left = True
        if self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.connection.close()
        if self.response is not None:
            self.response.close()

#!/usr/bin/env python3
"""Kills, stops and restarts real processes in every phase of a request, and looks at what the client gets.

A cell is (phase, fault, role). While its request, and two others, are in that phase, the fault strikes the process of the
role that computes it. Promised: every client gets exactly the tokens of the undisturbed run (of a killed router: a
closed connection, and after its restart a clean cluster), all blocks are free soon after, and a new request succeeds.

usage: kill_matrix.py BINARY MODEL_DIR [--part] [--pauses] [--network] [--markdown FILE]
--part: a few cells, for CI. --network: partitions and slow links, by network namespaces (root)."""
import argparse
import contextlib
import http.client
import random
import signal
import sys
import threading
import time

from network import Network
from processes import Processes, Stream

PHASES = {
    "queued": "others are computed first",
    "first chunk": "a prefill rank has begun, blocks are being reserved",
    "mid prompt": "half of the prompt is computed, its KV is on its way",
    "last chunk": "nearly all of the prompt is computed",
    "first token": "the client has the first token, the KV is being committed",
    "first decode": "the client has the first token of the decode rank",
    "mid decode": "half of the answer is there",
    "cancelling": "the client goes away at the same moment",
    "draining": "the process has been asked to leave",
}
FAULTS = ("SIGKILL", "SIGSTOP+CONT", "SIGSTOP", "restart")
NETWORK_FAULTS = ("partition", "partition+heal", "slow link")
ROLES = ("prefill", "decode", "both", "router")
PART = [("mid prompt", "SIGKILL", "prefill"), ("first token", "SIGKILL", "decode"), ("mid decode", "SIGKILL", "both"),
        ("mid decode", "SIGSTOP", "decode"), ("first chunk", "SIGSTOP+CONT", "prefill"), ("mid decode", "SIGKILL", "router")]

PROMPT, ANSWER = 250, 60
STOPPED_SECONDS = 1.0
# Until the loss is noticed and another rank has the request; computing it again comes on top.
PAUSE_MAX = {"SIGKILL": 1.0, "SIGSTOP+CONT": STOPPED_SECONDS + 1.0, "SIGSTOP": 3.5, "restart": 1.0,
             "partition": 3.5, "partition+heal": STOPPED_SECONDS + 1.0, "slow link": 6.0}
REST_SECONDS = 30  # a hand-off whose prefill rank died holds its blocks until the lease of 10 s ends


class Cell:
    def __init__(self, cluster, phase, fault, role, want, rng):
        self.cluster, self.phase, self.fault, self.role = cluster, phase, fault, role
        self.want, self.rng = want, rng
        self.prefill_seconds = want["prefill_seconds"]
        self.struck = threading.Event()
        self.failures = []

    def run(self):
        """Seconds: the longest pause of a client, until all blocks were free; and how many attempts were repeated."""
        retries = self.retries()
        streams = [Stream(self.cluster.http, self.want["prompts"][i], ANSWER) for i in range(3)]
        threads = [threading.Thread(target=self.read, args=(i, s)) for i, s in enumerate(streams)]
        start = time.monotonic()
        self.arrived = [0, 0, 0]
        self.read_until = {"first token": 1, "first decode": 2, "mid decode": ANSWER // 2,
                           "draining": ANSWER // 2, "cancelling": ANSWER // 2}.get(self.phase)
        self.reached = threading.Event()
        for t in threads:
            t.start()
        if self.read_until is None:
            part = {"queued": 0.0, "first chunk": 0.05, "mid prompt": 0.5, "last chunk": 0.9}[self.phase]
            time.sleep(max(0.002, part * self.prefill_seconds * self.rng.uniform(0.9, 1.1)))
        else:
            assert self.reached.wait(60), "the phase was never reached"
        victims = self.strike(streams)
        for t in threads:
            t.join(120)
            assert not t.is_alive(), "a client still waits"
        self.total = time.monotonic() - start
        pause = max(s.gap for s in streams)
        retries = self.retries() - retries
        self.mend(victims)
        if self.failures:
            raise AssertionError("; ".join(self.failures))
        rest = self.cluster.wait_for_rest(REST_SECONDS)
        self.check_new_request()
        return pause, rest, retries

    def retries(self):
        return int(sum(v for k, v in self.cluster.metrics().items() if k.startswith("switchyard_request_retries_total")))

    def read(self, i, stream):
        expected = self.want["tokens"][i]
        try:
            for _ in stream:
                self.arrived[i] = len(stream.tokens)
                if stream.tokens != expected[:len(stream.tokens)]:
                    return self.failures.append(f"client {i}: wrong token {len(stream.tokens)}")
                if self.read_until is not None and len(stream.tokens) >= self.read_until and i == 0:
                    self.reached.set()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as e:
            if self.router_dies() or (self.phase == "cancelling" and self.struck.is_set() and i == 0):
                return  # a closed connection is what was promised
            return self.failures.append(f"client {i}: {e!r}")
        except AssertionError as e:
            return self.failures.append(f"client {i}: {e}")
        if self.phase == "cancelling" and i == 0:
            return
        if not stream.done or stream.tokens != expected:
            if self.router_dies() and self.struck.is_set():
                return
            self.failures.append(f"client {i}: {len(stream.tokens)} of {len(expected)} tokens, done {stream.done}")

    def router_dies(self):
        return self.role == "router" and self.fault in ("SIGKILL", "restart")

    def strike(self, streams):
        roles = {"both": ("prefill", "decode")}.get(self.role, (self.role,))
        victims = [self.cluster.router if r == "router" else self.cluster.busiest(r) for r in roles]
        if self.phase == "draining":
            for v in victims:
                v.signal(signal.SIGTERM)
            time.sleep(0.03)
        self.struck.set()
        if self.fault in NETWORK_FAULTS:
            self.strike_network(victims)
            if self.phase == "cancelling":
                streams[0].connection.sock.shutdown(2)
            return victims
        for v in victims:
            v.signal({"SIGKILL": signal.SIGKILL, "restart": signal.SIGTERM}.get(self.fault, signal.SIGSTOP))
        if self.phase == "cancelling":
            streams[0].connection.sock.shutdown(2)
        if self.fault == "SIGSTOP+CONT":
            time.sleep(STOPPED_SECONDS)
            for v in victims:
                v.signal(signal.SIGCONT)
        elif self.fault != "SIGSTOP":
            for v in victims:
                v.child.wait(20)
                v.start()
        return victims

    def strike_network(self, victims):
        """A victim alone is cut off from everybody; both are cut off from each other only; the router from all."""
        network = self.cluster.network
        hosts = [i for i, w in enumerate(self.cluster.workers) if w in victims or self.role == "router"]
        strike = network.slow if self.fault == "slow link" else network.part if self.role == "both" else network.cut
        for i in hosts:
            strike(i)
        if self.fault == "partition+heal" or self.role == "router":
            time.sleep(STOPPED_SECONDS if self.fault == "partition+heal" else 3.0)
            for i in hosts:
                network.heal(i)

    def mend(self, victims):
        if self.fault == "SIGSTOP":
            for v in victims:
                v.end()
        self.cluster.restore()

    def check_new_request(self):
        stream = Stream(self.cluster.http, self.want["prompts"][0], 4)
        for _ in stream:
            pass
        assert stream.tokens == self.want["tokens"][0][:4], "a new request gets other tokens"


def impossible(phase, fault, role):
    if role == "router" and fault == "SIGSTOP":
        return "the only router stands still: its clients' own timeouts end it"
    if phase == "draining" and fault == "restart":
        return "a restart is a drain"
    return None


def undisturbed(cluster, rng):
    prompts = [[rng.randrange(4, 4096) for _ in range(PROMPT)] for _ in range(3)]
    tokens, seconds = [], []
    for p in prompts:
        start = time.monotonic()
        stream = Stream(cluster.http, p, ANSWER)
        for _ in stream:
            if len(seconds) == len(tokens):
                seconds.append(time.monotonic() - start)
        assert len(stream.tokens) == ANSWER
        tokens.append(stream.tokens)
    # Three at once share the ranks of their role.
    return {"prompts": prompts, "tokens": tokens, "prefill_seconds": 1.5 * min(seconds)}


def table(results, faults):
    lines = ["| phase | role | " + " | ".join(faults) + " |", "|---|---|" + "---|" * len(faults)]
    for phase in PHASES:
        for role in ROLES:
            cells = [results.get((phase, f, role)) for f in faults]
            if any(cells):
                lines.append(f"| {phase} | {role} | " + " | ".join(c or "" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--part", action="store_true")
    parser.add_argument("--markdown")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="a phase")
    parser.add_argument("--kernels", default="reference", help="of the engines; a sanitizer build is slow enough with others")
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--pauses", action="store_true", help="bound the pauses too: on a quiet machine")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    faults = NETWORK_FAULTS if args.network else FAULTS
    cells = PART if args.part else [(p, f, r) for p in PHASES for f in faults for r in ROLES
                                    if args.only in (None, p)]
    results, broken, pauses = {}, 0, {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no process stays behind
    with contextlib.ExitStack() as stack:
        network = None
        if args.network:
            network = Network(4)
            stack.callback(network.remove)
        cluster = stack.enter_context(Processes(args.binary, args.model, kernels=args.kernels, network=network))
        want = undisturbed(cluster, rng)
        print(f"undisturbed: first token after {want['prefill_seconds'] / 1.5:.2f} s", flush=True)
        for phase, fault, role in cells:
            why = impossible(phase, fault, role)
            if why:
                results[phase, fault, role] = f"– ({why})"
                continue
            try:
                pause, rest, retries = Cell(cluster, phase, fault, role, want, rng).run()
                results[phase, fault, role] = f"✓ {pause:.1f} s" + (f", {retries}" if role != "router" else "")
                if role != "router":
                    pauses.setdefault(fault, []).append(pause)
                print(f"{phase}, {fault}, {role}: longest pause {pause:.2f} s, {max(0, retries)} attempts repeated, "
                      f"at rest after {rest:.2f} s", flush=True)
            except AssertionError as e:
                broken += 1
                results[phase, fault, role] = "✗"
                print(f"{phase}, {fault}, {role}: BROKEN: {e}", flush=True)
                for p in cluster.all():
                    p.end()
                cluster.restore()
    for fault, values in pauses.items():
        print(f"{fault}: longest pauses: median {sorted(values)[len(values) // 2]:.2f} s, worst {max(values):.2f} s")
    slow = []
    if args.pauses:
        slow = [f for f, values in pauses.items() if max(values) > PAUSE_MAX[f] + 2 * want["prefill_seconds"]]
        print(f"pauses that are too long: {slow or 'none'}")
    tried = sum(1 for v in results.values() if not v.startswith("–"))
    print(f"{tried - broken} of {tried} cells kept their promises", flush=True)
    if args.markdown:
        with open(args.markdown, "w", encoding="utf-8") as f:
            f.write(table(results, faults))
    return 1 if broken or slow else 0


if __name__ == "__main__":
    sys.exit(main())

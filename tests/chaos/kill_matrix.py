#!/usr/bin/env python3
"""Kills, stops and restarts real processes, cuts, slows and damages what is between them, at exact points of a request's life.

A cell is (phase, fault, role). A trap (bpf.py) stops the process that takes the request into the phase at the very call; the
processes know nothing of it. Then the fault strikes the process of the role that serves the request, and what stood
still goes on. Promised: every client gets exactly the tokens of the undisturbed run (of a killed router: a closed connection),
all blocks are free soon after, and a new request succeeds.

usage: kill_matrix.py BINARY MODEL_DIR [--part] [--faults A,B…] [--phases A,B…] [--pauses] [--markdown FILE]
--part: a few cells, for CI. Without root, or a Linux with BPF (6.6), phases are hit by time, and faults of the network are left out."""
import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

from bpf import Flipper, Symbols, Trap, available, wait_stopped
from matrix_report import summary, table
from network import Network
from processes import Processes, Stream

PROMPT, ANSWER, LAYERS = 120, 200, 6
# Prompts are cut into four chunks.
ENGINE = ["--threads", "1", "--max-num-batched-tokens", "64", "--prefill-chunk", "32"]
KV_BLOCKS, KV_BLOCKS_TO_PREEMPT = "120", "30"  # two requests of one decode rank outgrow 30
# phase: (the role that takes the request there, the function that does, which call of it, what it means)
PHASES = {
    "queued": ("prefill", "PrefillAttempts::OnSubmit", 1, "the prefill rank has heard of the request, its engine has not"),
    "reserving": ("decode", "DecodeAttempts::Lease", 1, "the decode rank has been asked for blocks"),
    "reserved": ("decode", "DecodeAttempts::AnswerReserve", 1, "the blocks are leased, the prefill rank does not know yet"),
    "first layer": ("prefill", "KvFeed::OnProgress", 1, "the first layer of the first chunk is written"),
    "mid-layer": ("prefill", "KvFeed::OnProgress", 2 * LAYERS, "half of the prompt is computed"),
    "last layer": ("prefill", "KvFeed::OnProgress", 4 * LAYERS, "the last layer of the last chunk is written"),
    "pushing": ("prefill", "SendLane::Stage", 3, "two frames have left"),
    "pushed": ("prefill", "PrefillAttempts::OnSent", 1, "all frames have left"),
    "committing": ("decode", "DecodeAttempts::CommitKv", 1, "the decode rank has been told that all was sent"),
    "verifying": ("decode", "ReceiveSessions::Finish", 1, "every block is there, the digest is about to be compared"),
    "first decode": ("decode", "DecodeAttempts::OnOutput", 1, "the decode rank has computed its first token"),
    "mid-decode": ("decode", "DecodeAttempts::OnOutput", ANSWER // 2, "half of the answer is there"),
    "preempted": ("decode", "Scheduler::Preempt", 1, "a sequence is about to lose its blocks to another"),
    "cancelling": ("decode", "DecodeAttempts::OnOutput", ANSWER // 2, "a client has gone, its sequence is about to end"),
    "draining": ("decode", "DecodeAttempts::OnOutput", ANSWER // 2, "the process has been asked to leave (SIGTERM) midway"),
}
FAULTS = ("SIGKILL", "SIGSTOP+CONT", "SIGSTOP", "restart", "partition", "slow link", "bit flip")
NETWORK_FAULTS = FAULTS[4:]
ROLES = ("prefill", "decode", "both", "router")
PART = [("mid-layer", "SIGKILL", "prefill"), ("verifying", "SIGKILL", "decode"), ("mid-decode", "SIGKILL", "both"),
        ("committing", "SIGSTOP", "decode"), ("first layer", "SIGSTOP+CONT", "prefill"), ("mid-decode", "SIGKILL", "router"),
        ("preempted", "restart", "decode")]

# Until here the attempt needs both ranks: who loses one of them has to begin again.
NEEDS_BOTH = list(PHASES)[:list(PHASES).index("committing")]

STOPPED_SECONDS = 1.0
REST_SECONDS = 10
GONE = (OSError, http.client.HTTPException, ValueError, AttributeError)  # what a reader sees of a connection that is closed


class Cell:
    def __init__(self, cluster, symbols, phase, fault, role, want, salt, leased_max):
        self.cluster, self.symbols, self.want, self.salt, self.leased_max = cluster, symbols, want, salt, leased_max
        self.phase, self.fault, self.role = phase, fault, role
        self.marker_role, self.function, self.nth, _ = PHASES[phase]
        self.failures, self.flippers = [], []
        self.struck, self.struck_at = threading.Event(), 0.0
        self.over, self.leased_at = threading.Event(), 0.0
        self.streams, self.threads = [], []

    def run(self):
        """{pause: of a client since the fault, leased: after the fault, the last time a block was; rest: after the last token, until
        all blocks of living ranks were free; retries, crashed, damaged}."""
        retries = self.retries()
        with contextlib.ExitStack() as stack:
            traps, counts = self.set_traps(stack) if self.symbols else ([], {})
            marker, victims = self.reach(traps, counts)
        watcher = threading.Thread(target=self.watch_leases)
        watcher.start()
        try:
            self.strike(marker, victims)
            for t in self.threads:
                t.join(90)
                assert not t.is_alive(), "a client still waits"
        finally:
            self.over.set()
            watcher.join()
        if self.failures:
            raise AssertionError("; ".join(self.failures))
        result = {"pause": max(s.gap(self.struck_at) for s in self.streams), "damaged": sum(f.damaged() for f in self.flippers)}
        result["leased"] = max(0.0, self.leased_at - self.struck_at)
        if self.fault != "slow link":
            assert result["leased"] <= self.leased_max, f"blocks were leased until {result['leased']:.1f} s after the fault"
        if self.router_serves():
            result["rest"] = self.cluster.wait_for_rest(REST_SECONDS)
        result["crashed"] = self.mend(victims)
        rest = self.cluster.wait_for_rest(REST_SECONDS)
        result.setdefault("rest", rest)
        result["retries"] = max(0, self.retries() - retries) if self.router_serves() else None
        if self.symbols and self.phase in NEEDS_BOTH and self.fault in ("SIGKILL", "SIGSTOP") and self.role != "router":
            assert result["retries"] > 0, "the fault cost nothing: it struck another rank"
        self.check_new_request()
        return result

    def watch_leases(self):
        """The last time that a block was promised to a hand-off: of the dead, or of those that took their place."""
        while not self.over.wait(0.1):
            if any(v for k, v in self.cluster.metrics().items() if 'state="leased"' in k or 'state="quarantined"' in k):
                self.leased_at = time.monotonic()

    def retries(self):
        return int(sum(v for k, v in self.cluster.metrics().items() if k.startswith("switchyard_request_retries_total")))

    def router_serves(self):
        return self.role != "router" or not (self.phase == "draining" or self.fault in ("SIGKILL", "restart", "SIGSTOP"))

    def start(self, *indices, salt=""):
        for i in indices:
            stream = Stream(self.cluster.http, self.want["prompts"][i], ANSWER, cache_salt=self.salt + salt,
                            request_id=f"{self.salt}{salt}-{i}")
            self.streams.append(stream)
            self.threads.append(threading.Thread(target=self.read, args=(i, stream)))
            self.threads[-1].start()

    def read(self, i, stream):
        expected = self.want["tokens"][i]
        try:
            for _ in stream:
                if stream.tokens != expected[:len(stream.tokens)]:
                    return self.failures.append(f"client {i}: wrong token {len(stream.tokens)}")
        except GONE as e:
            if not stream.left and (self.router_serves() or not self.struck.is_set()):
                self.failures.append(f"client {i}: {e!r}")
            return None  # a closed connection is what was promised
        except AssertionError as e:
            return self.failures.append(f"client {i}: {e}")
        if not stream.left and stream.tokens != expected and (self.router_serves() or not self.struck.is_set()):
            self.failures.append(f"client {i}: {len(stream.tokens)} of {len(expected)} tokens, done {stream.done}")
        return None

    def set_traps(self, stack):
        traps = [Trap(self.symbols, p.child.pid, self.function, self.nth) for p in self.cluster.of(self.marker_role)]
        counts = {}
        for role, function in (("prefill", "PrefillAttempts::OnSubmit"), ("decode", "DecodeAttempts::OnSubmit")):
            for p in self.cluster.of(role):
                counts[p] = Trap(self.symbols, p.child.pid, function, 0)
                stack.callback(counts[p].close)
        return traps, counts

    def reach(self, traps, counts):
        """The process that stands still in the phase, while all clients wait or are served by others, and who is to be struck."""
        crowd = self.phase in ("preempted", "cancelling", "draining")
        self.start(*range(3 if crowd else 1))
        marker = self.stopped_by(traps) if self.symbols else self.stop_by_time()
        if self.phase == "cancelling":
            marker = self.cancel(marker)
        time.sleep(0.03)  # the other rank hears of the request too
        victims = self.victims(marker, counts)  # before others have requests
        if not crowd:
            self.start(1, 2)
            time.sleep(0.03)
        return marker, victims

    def stopped_by(self, traps):
        trap = wait_stopped(traps, 60)
        for t in traps:
            t.close()
        assert trap is not None, "the phase was never reached"
        for t in traps:  # another rank may have got there too
            if t is not trap and t.stopped():
                os.kill(t.pid, signal.SIGCONT)
        return next(p for p in self.cluster.workers if p.child.pid == trap.pid)

    def cancel(self, marker):
        """The clients of that rank's sequences go; it goes on until it is about to end the first of them."""
        there = {r["request_id"] for r in self.cluster.requests() if r["decode_worker"].endswith(f":{marker.port}")}
        leaving = [s for i, s in enumerate(self.streams) if f"{self.salt}-{i}" in there][:2] or self.streams[:1]
        for stream in leaving:
            stream.leave()
        if not self.symbols:
            return marker
        deadline = time.monotonic() + 30
        while len(self.cluster.requests()) > 3 - len(leaving) and time.monotonic() < deadline:  # the router has not noticed
            time.sleep(0.01)
        time.sleep(0.05)  # its aborts are on their way
        trap = Trap(self.symbols, marker.child.pid, "Scheduler::Abort")
        marker.signal(signal.SIGCONT)
        return self.stopped_by([trap])

    def stop_by_time(self):
        """Without traps: somewhere near the phase."""
        tokens = self.nth if self.function == "DecodeAttempts::OnOutput" else 0
        deadline = time.monotonic() + (60 if tokens else random.uniform(0.002, 0.06))
        while time.monotonic() < deadline and (not tokens or len(self.streams[0].tokens) < tokens):
            time.sleep(0.001)
        marker = self.cluster.busiest(self.marker_role)
        marker.signal(signal.SIGSTOP)
        return marker

    def victims(self, marker, counts):
        def of(role):
            if role == "router":
                return self.cluster.router
            if role == marker.role:
                return marker
            return max(self.cluster.of(role), key=lambda p: counts[p].hits()) if counts else self.cluster.busiest(role)

        return [of(r) for r in ({"both": ("prefill", "decode")}.get(self.role, (self.role,)))]

    def strike(self, marker, victims):
        if self.phase == "draining":
            for v in victims:
                v.signal(signal.SIGTERM)
                v.drained = v.child
            marker.signal(signal.SIGCONT)
            time.sleep(0.02)
        self.struck_at = time.monotonic()
        self.struck.set()
        if self.fault in NETWORK_FAULTS:
            self.strike_network(marker, victims)
            return
        for v in victims:
            v.signal({"SIGKILL": signal.SIGKILL, "restart": signal.SIGTERM}.get(self.fault, signal.SIGSTOP))
        if marker not in victims or self.fault == "restart":
            marker.signal(signal.SIGCONT)
        if self.fault == "SIGSTOP+CONT":
            time.sleep(STOPPED_SECONDS)
            for v in victims:
                v.signal(signal.SIGCONT)
        elif self.fault != "SIGSTOP":
            for v in victims:
                v.child.wait(20)
                v.start()
        elif self.role == "router":
            time.sleep(5)  # by then the workers have given it up
            self.cluster.router.end()
            self.cluster.router.start()

    def strike_network(self, marker, victims):
        """A victim alone is cut off from everybody; both are cut off from each other only; the router from all."""
        network, workers = self.cluster.network, self.cluster.workers
        hosts = [i for i, w in enumerate(workers) if w in victims or self.role == "router"]
        if self.fault == "bit flip":
            ports = [w.port for w in workers]
            for i in hosts:
                if self.role == "router":  # nothing but TCP's checksum protects its streams: who fails it is dropped
                    self.flippers += [Flipper(network.port(i), e, only_port=workers[i].port, every=10, limit=10, drop=True)
                                      for e in (False, True)]
                else:  # what goes from a prefill to a decode rank, beside the calls
                    self.flippers.append(Flipper(network.port(i), workers[i].role == "decode", spared_ports=ports))
            marker.signal(signal.SIGCONT)
            return self.feed_flippers()
        for i in hosts:
            (network.slow if self.fault == "slow link" else network.part if self.role == "both" else network.cut)(i)
        marker.signal(signal.SIGCONT)
        if self.role == "router":
            time.sleep(3)
            for i in hosts:
                network.heal(i)
        return None

    def feed_flippers(self):
        """More requests until each has found something to damage: in late phases the first one's KV has long passed."""
        deadline = time.monotonic() + 20
        for n in range(0 if self.phase == "draining" and self.role == "router" else 8):
            while len(self.threads) >= 6 and all(t.is_alive() for t in self.threads[-3:]):
                time.sleep(0.01)
            if time.monotonic() > deadline or all(f.damaged() for f in self.flippers):
                break
            self.start(1 + n % 2, salt=f"+{n}")
            time.sleep(0.2)
        if self.role != "router" and self.phase != "draining":  # who drains gets no more KV
            assert all(f.damaged() for f in self.flippers), "nothing was damaged"

    def mend(self, victims):
        """Returns how many processes died of themselves. Damage may make UCX, below every check of ours, give up."""
        for f in self.flippers:
            f.close()
        if self.fault == "SIGSTOP":
            for v in victims:
                v.end()
        if self.phase == "draining":
            for v in victims:
                self.end_drained(v)
        deadly = self.fault in ("SIGSTOP", "SIGKILL", "restart") or self.phase == "draining"
        crashed = [p for p in self.cluster.all() if not p.alive() and not (deadly and p in victims)]
        assert self.fault == "bit flip" or not crashed, f"died of themselves: {[p.role for p in crashed]}"
        self.cluster.restore()
        return len(crashed)

    @staticmethod
    def end_drained(process):
        """It leaves by itself, unless it has been started anew since."""
        if process.drained is not process.child:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.child.wait(15)
        process.end()

    def check_new_request(self):
        stream = Stream(self.cluster.http, self.want["prompts"][0], 4, cache_salt=self.salt)
        for _ in stream:
            pass
        assert stream.tokens == self.want["tokens"][0][:4], "a new request gets other tokens"


def undisturbed(cluster, rng):
    prompts = [[rng.randrange(4, 4096) for _ in range(PROMPT)] for _ in range(3)]
    tokens = []
    for p in prompts:
        stream = Stream(cluster.http, p, ANSWER)
        for _ in stream:
            pass
        assert len(stream.tokens) == ANSWER
        tokens.append(stream.tokens)
    return {"prompts": prompts, "tokens": tokens}


def run_cells(cluster, symbols, cells, want, seed, leased_max, record):
    for number, (phase, fault, role) in enumerate(cells):
        try:
            r = Cell(cluster, symbols, phase, fault, role, want, f"{seed}-{number}", leased_max).run()
            print(f"{phase}, {fault}, {role}: longest pause {r['pause']:.2f} s, {r['retries']} attempts repeated, leases until "
                  f"{r['leased']:.2f} s, at rest after {r['rest']:.2f} s" + (f", {r['damaged']} packets damaged, {r['crashed']} processes died"
                                          if fault == "bit flip" else ""), flush=True)
        except (AssertionError, OSError, http.client.HTTPException, subprocess.TimeoutExpired) as e:
            r = {"broken": str(e)}
            print(f"{phase}, {fault}, {role}: BROKEN: {e}", flush=True)
            for p in cluster.all():
                p.end()
            cluster.restore()
        record((phase, fault, role), r)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--part", action="store_true")
    parser.add_argument("--faults", type=lambda s: s.split(","), default=FAULTS)
    parser.add_argument("--phases", type=lambda s: s.split(","), default=list(PHASES))
    parser.add_argument("--roles", type=lambda s: s.split(","), default=ROLES)
    parser.add_argument("--markdown")
    parser.add_argument("--results", help="a file of JSON lines: read first, what succeeded there is not run again")
    parser.add_argument("--repeat", type=int, default=1, help="each cell so many times")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kernels", default="avx2", help="of the engines")
    parser.add_argument("--leased-seconds", type=float, default=5, help="that a fault may keep blocks leased or in quarantine")
    parser.add_argument("--pauses", action="store_true", help="bound the pauses too: on a quiet machine")
    args = parser.parse_args()
    symbols = available(args.binary)
    if symbols is None:
        print("skipped: exact moments of the kill matrix: no traps without root and BPF, phases are hit by time, the network stays whole")
    cells = PART if args.part else [(p, f, r) for f in args.faults for p in args.phases for r in args.roles
                                    if symbols or f not in NETWORK_FAULTS]
    runs = {}  # cell: what came of each run
    if args.results:
        with contextlib.suppress(FileNotFoundError), open(args.results, encoding="utf-8") as f:
            for r in map(json.loads, f):
                runs.setdefault(tuple(r["cell"]), []).append(r)
    cells = [c for n in range(args.repeat) for c in cells if sum("pause" in r for r in runs.get(c, [])) <= n]

    def record(cell, r):
        runs.setdefault(cell, []).append(r)
        if args.results:
            with open(args.results, "a", encoding="utf-8") as f:
                f.write(json.dumps({"cell": cell, **r}) + "\n")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no process stays behind
    # Network faults need hosts, and there the lane is tcp; all others strike the shm lane.
    for network_faults, preempts in itertools.product((False, True), (False, True)):
        mine = [c for c in cells if (c[1] in NETWORK_FAULTS) == network_faults and (c[0] == "preempted") == preempts]
        if not mine:
            continue
        with contextlib.ExitStack() as stack:
            network = None
            if network_faults:
                network = Network(4)
                stack.callback(network.remove)
            engine = [*ENGINE, "--kernels", args.kernels, "--kv-blocks", KV_BLOCKS_TO_PREEMPT if preempts else KV_BLOCKS]
            cluster = stack.enter_context(Processes(args.binary, args.model, engine=engine, network=network))
            want = undisturbed(cluster, random.Random(args.seed))
            run_cells(cluster, symbols, mine, want, args.seed, args.leased_seconds, record)
    slow = summary(runs, FAULTS)
    if args.pauses:
        print(f"pauses that are too long: {slow or 'none'}")
    broken = sum(any("broken" in r for r in rs) for rs in runs.values())
    print(f"{len(runs) - broken} of {len(runs)} cells kept their promises each time", flush=True)
    if args.markdown:
        with open(args.markdown, "w", encoding="utf-8") as f:
            f.write(table(runs, PHASES, FAULTS, ROLES))
    return 1 if broken or (args.pauses and slow) else 0


if __name__ == "__main__":
    sys.exit(main())

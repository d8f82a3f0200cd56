#!/usr/bin/env python3
"""Mixed faults for a long time, and what they leave behind: clients stream from a cluster whose workers are killed, stopped,
restarted, cut off and slowed down at random, and who go away midway themselves. Every token is compared with the undisturbed run.

One rank of each role (and the router) is never started anew: their memory and open files are measured every 10 s, and
how they grow after the first quarter is reported.

usage: soak.py BINARY MODEL_DIR [--minutes 10] [--network] [--kv-lane auto] [--clients 6] [--think 0.5] [--samples FILE]"""
import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

from network import Network
from processes import Processes, Stream

PROMPTS, WARM_PART = 64, 0.25
# A pool that a few long requests fill: hand-offs wait for blocks, sequences are preempted, cached blocks are evicted.
WORKER = ["--threads", "1", "--max-num-batched-tokens", "128", "--prefill-chunk", "64", "--kv-blocks", "192"]
FAULTS = ("SIGKILL", "SIGSTOP", "hang", "restart", "calm")
NETWORK_FAULTS = ("partition", "long partition", "apart", "slow link")
GROWTH_MAX = 1 << 20  # bytes per hour


class Soak:
    def __init__(self, cluster, rng, think):
        self.cluster, self.rng, self.think = cluster, rng, think
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.counts = {"tokens": 0, "requests": 0, "dropped by the client": 0, "refused": 0, "faults": {}}
        self.failures, self.gaps = [], []
        shared = [rng.randrange(4, 4096) for _ in range(96)]
        self.requests = []
        for i in range(PROMPTS):
            head = shared[:rng.choice((0, 0, 48, 96))]
            prompt = head + [rng.randrange(4, 4096) for _ in range(rng.choice((8, 40, 150, 400)))]
            self.requests.append([prompt, rng.choice((8, 60, 200)), {"temperature": 0.8, "seed": i} if i % 2 else {}, None])

    def undisturbed(self):
        for r in self.requests:
            stream = Stream(self.cluster.http, r[0], r[1], **r[2])
            for _ in stream:
                pass
            assert stream.done and len(stream.tokens) == r[1], f"undisturbed: {len(stream.tokens)} of {r[1]}"
            r[3] = stream.tokens

    def client(self, seed):
        rng = random.Random(seed)
        while not self.stop.is_set():
            prompt, answer, sampling, expected = rng.choice(self.requests)
            drop_at = rng.randrange(answer) if rng.random() < 0.15 else None
            dropped, why = False, None
            stream = Stream(self.cluster.http, prompt, answer, **sampling)
            try:
                for _ in stream:
                    if stream.tokens != expected[:len(stream.tokens)]:
                        why = f"wrong token {len(stream.tokens)}"
                        break
                    if drop_at is not None and len(stream.tokens) > drop_at:
                        dropped = True
                        break
                if why is None and not dropped and stream.tokens != expected:
                    why = f"{len(stream.tokens)} of {answer} tokens, done {stream.done}"
            except (OSError, http.client.HTTPException, ValueError, AttributeError, AssertionError) as e:
                why = repr(e)
            stream.close()
            with self.lock:
                self.counts["tokens"] += len(stream.tokens)
                self.counts["requests"] += 1
                self.counts["dropped by the client"] += dropped
                self.gaps.append(stream.gap())
                if why is not None:
                    self.failures.append(why)
                    print(f"FAILED: {why}", flush=True)
            self.stop.wait(rng.uniform(0, 2 * self.think))

    def strike(self):
        """One fault. The first rank of each role lives through all of them; the second one may die."""
        rng, network = self.rng, self.cluster.network
        fault = rng.choice(FAULTS + (NETWORK_FAULTS if network else ()))
        role = rng.choice(("prefill", "decode"))
        victim = rng.choice(self.cluster.of(role))
        deadly = fault in ("SIGKILL", "restart")
        if deadly:
            victim = self.cluster.of(role)[-1]
        i = self.cluster.workers.index(victim)
        if fault == "SIGKILL":
            victim.end()
        elif fault == "restart":
            victim.signal(signal.SIGTERM)
            victim.child.wait(60)
        elif fault in ("SIGSTOP", "hang"):
            victim.signal(signal.SIGSTOP)
            time.sleep(rng.uniform(0.05, 1.5) if fault == "SIGSTOP" else rng.uniform(3.5, 8))
        elif fault in ("partition", "long partition"):
            network.cut(i)
            time.sleep(rng.uniform(0.2, 1.5) if fault == "partition" else rng.uniform(3, 12))
        elif fault == "apart":
            for j in range(len(self.cluster.workers)):
                network.part(j)
            time.sleep(rng.uniform(1, 8))
        elif fault == "slow link":
            network.slow(i)
            time.sleep(rng.uniform(1, 8))
        self.counts["faults"][fault] = self.counts["faults"].get(fault, 0) + 1
        self.cluster.restore()


def sample(process):
    """What one process holds: bytes of private and of shared memory, open files."""
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{process.child.pid}/status").read_text().splitlines())
    return {"private": int(status["RssAnon"].split()[0]) * 1024, "shared": int(status["RssShmem"].split()[0]) * 1024,
            "files": len(os.listdir(f"/proc/{process.child.pid}/fd")), "threads": int(status["Threads"])}


def slope(points):
    """Least squares; per hour."""
    n = len(points)
    mean_t, mean_v = sum(t for t, _ in points) / n, sum(v for _, v in points) / n
    square = sum((t - mean_t) ** 2 for t, _ in points)
    return 3600 * sum((t - mean_t) * (v - mean_v) for t, v in points) / square if square else 0.0


def watch(cluster, soak, seconds, samples_file):
    """Samples until the time is over; {name: [(t, sample)]} of the processes that live all the time."""
    lasting = {"router": cluster.router, "prefill": cluster.of("prefill")[0], "decode": cluster.of("decode")[0]}
    samples, start, pids = {name: [] for name in lasting}, time.monotonic(), {n: p.child.pid for n, p in lasting.items()}
    next_note = 0.0
    while (now := time.monotonic() - start) < seconds:
        for name, process in lasting.items():
            assert process.alive() and process.child.pid == pids[name], f"the {name} that should last has died"
            samples[name].append((now, sample(process)))
        if samples_file:
            line = {"t": round(now, 1), **{n: s[-1][1] for n, s in samples.items()}, **soak.counts, "failed": len(soak.failures)}
            samples_file.write(json.dumps(line) + "\n")
            samples_file.flush()
        if now >= next_note:
            print(f"{now / 60:.0f} min: {soak.counts}, {len(soak.failures)} failed", flush=True)
            next_note += 300
        time.sleep(min(10.0, max(0.0, seconds - now)))
    return samples


def report(samples):
    """Prints how each process grew; the worst growth of private memory, per hour, and of open files."""
    worst, files = 0.0, 0
    for name, points in samples.items():
        late = points[int(len(points) * WARM_PART):]
        growth = {k: slope([(t, s[k]) for t, s in late]) for k in ("private", "shared")}
        opened = [s["files"] for _, s in late]
        half = len(opened) // 2
        worst, files = max(worst, growth["private"]), max(files, min(opened[half:]) - min(opened[:half]))
        print(f"{name}: private {late[0][1]['private'] >> 10} KiB then {late[-1][1]['private'] >> 10} KiB "
              f"({growth['private'] / 1024:+.0f} KiB/h), shared {growth['shared'] / 1024:+.0f} KiB/h, "
              f"files {min(opened)} to {max(opened)}, at the end {opened[-1]}", flush=True)
    return worst, files


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--think", type=float, default=0.5, help="seconds between two requests of a client, in the middle")
    parser.add_argument("--calm", type=float, default=8, help="seconds between two faults, in the middle")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--kv-lane", default="auto")
    parser.add_argument("--network", action="store_true", help="partitions and slow links too (root)")
    parser.add_argument("--bound-growth", action="store_true", help="fail above 1 MiB/h; needs half an hour to mean anything")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", help="a file of JSON lines")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no process stays behind
    with contextlib.ExitStack() as stack:
        network = None
        if args.network:
            network = Network(4)
            stack.callback(network.remove)
        samples_file = stack.enter_context(open(args.samples, "w", encoding="utf-8")) if args.samples else None
        cluster = stack.enter_context(Processes(args.binary, args.model, engine=[*WORKER, "--kernels", args.kernels],
                                                network=network, kv_lane=args.kv_lane))
        soak = Soak(cluster, rng, args.think)
        soak.undisturbed()
        threads = [threading.Thread(target=soak.client, args=(args.seed * 1000 + i,)) for i in range(args.clients)]

        def faults():
            while not soak.stop.wait(soak.rng.uniform(0, 2 * args.calm)):
                try:
                    soak.strike()
                except Exception as e:  # e.g. the cluster did not become ready again: not to be overlooked
                    soak.failures.append(f"fault: {e!r}")
                    raise

        threads.append(threading.Thread(target=faults))
        for t in threads:
            t.start()
        try:
            samples = watch(cluster, soak, args.minutes * 60, samples_file)
        finally:
            soak.stop.set()
            for t in threads:
                t.join(150)
        assert not any(t.is_alive() for t in threads), "a client still waits"
        rest = cluster.wait_for_rest(30)
        retries = sum(v for k, v in cluster.metrics().items() if k.startswith("switchyard_request_retries_total"))
        worst, files = report(samples)
    gaps = sorted(soak.gaps)
    print(f"{args.minutes:g} min: {soak.counts}; {int(retries)} attempts repeated, {len(soak.failures)} requests failed; "
          f"longest pause of a request: p99 {gaps[int(len(gaps) * 0.99)]:.2f} s, worst {gaps[-1]:.2f} s; "
          f"at rest after {rest:.2f} s", flush=True)
    print("failures:", soak.failures[:5], flush=True)
    if args.bound_growth and (worst > GROWTH_MAX or files > 0):
        print(f"growth: {worst / 1024:.0f} KiB/h, {files} files: too much", flush=True)
        return 1
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())

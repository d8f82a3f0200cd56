#!/usr/bin/env python3
"""Kills and stops random ranks of expert-parallel groups at random moments under load. Promised: every request ends with
exactly the tokens of the undisturbed run, and the others go on soon.

A killed rank is started again at once. A stopped one is continued after a while, or killed while it is stopped and started
again. usage: ep_ranks.py [--kills N] [--hangs N] [--prefill N] [--decode N] [--seed N] [--pauses] BINARY MODEL_DIR [-- EP flags…]"""
import argparse
import http.client
import random
import signal
import statistics
import sys
import threading
import time

from processes import Processes, Stream

CLIENTS, PROMPTS, PROMPT, ANSWER = 10, 8, 100, 60
GAP_MIN = 0.05  # a pause that can be seen
NEXT_STEP_MAX = {"kill": 2.0, "hang": 3.0}


class Load:
    """Clients that stream all the time, and when tokens came: a stream's first event is of a prefill rank, others are of a decode rank."""

    def __init__(self, cluster, prompts):
        self.cluster, self.stop, self.done, self.failures = cluster, threading.Event(), 0, []
        self.arrived = {"prefill": [time.monotonic()], "decode": [time.monotonic()]}
        self.expected = {p: self.answer(p, None) for p in prompts}
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(CLIENTS)]

    def answer(self, prompt, expected):
        stream = Stream(self.cluster.http, list(prompt), ANSWER)
        for i, _ in enumerate(stream):
            self.arrived["decode" if i > 0 else "prefill"].append(time.monotonic())
            assert expected is None or stream.tokens == expected[:len(stream.tokens)], "a wrong, doubled or missing token"
        assert stream.done and len(stream.tokens) == ANSWER, f"{len(stream.tokens)} tokens"
        stream.close()
        return stream.tokens

    def run(self, seed):
        rng = random.Random(seed)
        while not self.stop.is_set():
            prompt = rng.choice(list(self.expected))
            try:
                self.answer(prompt, self.expected[prompt])
                self.done += 1
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as e:
                self.failures.append(f"{time.monotonic():.2f}: {e!r}")

    def next_step_after(self, role, moment, until):
        """Seconds from `moment` to the end of the longest pause behind it in which that pool told no token."""
        times = [t for t in self.arrived[role] if moment - 1 < t < until]
        gaps = [(b - max(a, moment), b) for a, b in zip(times, times[1:]) if b > moment]
        gap, end = max(gaps, default=(0, moment))
        return end - moment if gap > GAP_MIN else 0.0


def strike(cluster, load, kind, rng):
    time.sleep(rng.uniform(0.1, 1.0))
    victim = rng.choice(cluster.workers)
    moment = time.monotonic()
    if kind == "kill":
        victim.end()
        victim.start()
    else:
        victim.signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.3, 4.0))
        if rng.random() < 0.5:
            victim.signal(signal.SIGCONT)
        else:
            victim.end()
            victim.start()
    cluster.wait_ready()
    deadline = time.monotonic() + 60
    while load.arrived[victim.role][-1] < moment + 0.3:
        assert time.monotonic() < deadline, f"no token of the {victim.role} ranks"
        time.sleep(0.05)
    return victim, load.next_step_after(victim.role, moment, time.monotonic())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    for name, default in (("kills", 20), ("hangs", 10), ("prefill", 2), ("decode", 2), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pauses", action="store_true", help="bound the pauses too: on a quiet machine")
    parser.add_argument("ep", nargs="*", default=["--ep-lane", "auto"])
    args = parser.parse_args()
    rng = random.Random(args.seed)
    strikes = ["kill"] * args.kills + ["hang"] * args.hangs
    rng.shuffle(strikes)
    prompts = [tuple(rng.randrange(4, 4096) for _ in range(PROMPT)) for _ in range(PROMPTS)]
    seconds = {"kill": [], "hang": []}
    with Processes(args.binary, args.model, args.prefill, args.decode, kernels="auto", ep=args.ep) as cluster:
        load = Load(cluster, prompts)
        for t in load.threads:
            t.start()
        try:
            for i, kind in enumerate(strikes):
                victim, pause = strike(cluster, load, kind, rng)
                seconds[kind].append(pause)
                print(f"{i + 1}/{len(strikes)} {kind} {victim.role} {victim.port}: next step after {pause:.2f} s, "
                      f"{load.done} requests, {len(load.failures)} failures", flush=True)
                assert not load.failures, load.failures
        finally:
            load.stop.set()
            for t in load.threads:
                t.join(120)
        assert not load.failures, load.failures
        moves = cluster.log_path.read_text().count("experts are rebalanced")
    for kind, pauses in seconds.items():
        if pauses:
            pauses.sort()
            print(f"{len(pauses)} x {kind}: seconds to the next step: median {statistics.median(pauses):.2f}, p95 "
                  f"{pauses[int(len(pauses) * 0.95)]:.2f}, longest {pauses[-1]:.2f}; promised {NEXT_STEP_MAX[kind]}")
            assert not args.pauses or pauses[-1] <= NEXT_STEP_MAX[kind], f"{kind}: too long"
    print(f"{load.done} requests, all with the tokens of the undisturbed run")
    if moves:
        print(f"{moves} times a rank changed its placement meanwhile")


if __name__ == "__main__":
    sys.exit(main())

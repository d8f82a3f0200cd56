#!/usr/bin/env python3
"""All workers are restarted one after the other under load: no request fails, and every token is that of the undisturbed
run. Once with time to finish, once with a notice so short that running requests go to other workers.

usage: rolling_restart.py BINARY MODEL_DIR [KERNELS]"""
import http.client
import random
import signal
import sys
import threading
import time

from processes import Processes, Stream

CLIENTS, PROMPT, ANSWER = 6, 60, 40


def load(cluster, requests, stop, done, failures):
    rng = random.Random(threading.get_ident())
    while not stop.is_set():
        prompt, expected = rng.choice(requests)
        stream = Stream(cluster.http, prompt, ANSWER)
        try:
            for _ in stream:
                pass
            if stream.tokens != expected:
                failures.append(f"{len(stream.tokens)} tokens, not the expected {len(expected)}")
        except (OSError, http.client.HTTPException, AssertionError) as e:
            failures.append(repr(e))
        done.append(stream.gap())


def roll(binary, model, kernels, notice_seconds, rounds=1):
    rng = random.Random(5)
    with Processes(binary, model, drain_seconds=notice_seconds, kernels=kernels) as cluster:
        requests = []
        for _ in range(4):
            prompt = [rng.randrange(4, 4096) for _ in range(PROMPT)]
            stream = Stream(cluster.http, prompt, ANSWER)
            for _ in stream:
                pass
            requests.append((prompt, stream.tokens))
        stop, done, failures = threading.Event(), [], []
        threads = [threading.Thread(target=load, args=(cluster, requests, stop, done, failures)) for _ in range(CLIENTS)]
        for t in threads:
            t.start()
        slowest = 0.0
        try:
            for _ in range(rounds):
                for worker in cluster.workers:
                    time.sleep(0.5)
                    start = time.monotonic()
                    worker.signal(signal.SIGTERM)
                    code = worker.child.wait(60)
                    assert code == 0, f"a drained {worker.role} rank exits with {code}"
                    slowest = max(slowest, time.monotonic() - start)
                    worker.start()
                    cluster.wait_ready()
        finally:
            stop.set()
            for t in threads:
                t.join()
        retries = sum(v for k, v in cluster.metrics().items() if k.startswith("switchyard_request_retries_total"))
        cluster.wait_for_rest(15)
    print(f"notice {notice_seconds} s: {rounds * 4} restarts, {len(done)} requests, {len(failures)} failed, "
          f"{int(retries)} attempts repeated, slowest exit {slowest:.2f} s, longest pause {max(done):.2f} s", flush=True)
    assert not failures, failures[:3]
    return int(retries)


def main():
    binary, model, *kernels = sys.argv[1:]
    kernels = kernels[0] if kernels else "reference"
    roll(binary, model, kernels, notice_seconds=10)
    assert roll(binary, model, kernels, notice_seconds=0.1) > 0, "nothing was handed over: the test did not test"


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Many streams at once, some of them dropped midway: the others see no error, and at the end every block is free, memory
has not grown and no file is left open. usage: churn_test.py BINARY MODEL_DIR SECONDS [STREAMS [GROWTH_MIB_MAX]]"""
import os
import random
import sys
import threading
import time

from bad_input_test import wait_for_rest
from cluster import Cluster

DROPPED = 0.3


def rss(pid):
    """Resident bytes but for shared memory: a ring's pages count once they are written to, late on a slow machine."""
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) << 10


def client(cluster, number, deadline, errors, counts):
    rng = random.Random(number)
    while time.monotonic() < deadline:
        length, output = rng.randint(1, 400), rng.randint(2, 60)
        dropped = rng.random() < DROPPED
        try:
            seen, finish = 0, None
            events = cluster.stream(prompt=[rng.randrange(4, 4096) for _ in range(length)], max_tokens=output,
                                    ignore_eos=True, return_token_ids=True)
            for event in events:
                if "error" in event:
                    raise AssertionError(event)
                for choice in event["choices"]:
                    seen += len(choice.get("token_ids") or [])
                    finish = choice["finish_reason"] or finish
                if dropped and seen >= output // 2:
                    events.close()
                    break
            if not dropped and (seen != output or finish != "length"):
                raise AssertionError(f"{seen} of {output} tokens, finish {finish}")
            counts["dropped" if dropped else "whole"] += 1
        except Exception as e:  # every failure of any kind is a failure of the test
            errors.append(repr(e))
            return


def main():
    binary, model, seconds, *rest = sys.argv[1:]
    seconds, streams, growth_mib_max = float(seconds), *(int(given) for given in (rest + ["200", "16"][len(rest):]))
    # So few blocks that all have been written to when memory is first looked at, on a slow machine too.
    with Cluster(binary, model, "--prefill", "1", "--decode", "1", "--disaggregate", "always",
                 "--kv-blocks", "512") as cluster:
        cluster.complete(prompt="Once", max_tokens=2, ignore_eos=True)  # the ranks connect at the first hand-off
        files = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in cluster.pids()}
        errors, counts = [], {"dropped": 0, "whole": 0}
        deadline = time.monotonic() + seconds
        threads = [threading.Thread(target=client, args=(cluster, i, deadline, errors, counts)) for i in range(streams)]
        for t in threads:
            t.start()
        time.sleep(seconds / 3)
        early = {pid: rss(pid) for pid in cluster.pids()}
        for t in threads:
            t.join()
        assert not errors, errors[:3]
        wait_for_rest(cluster, "churn")
        growth = {pid: rss(pid) - early[pid] for pid in cluster.pids()}
        time.sleep(1)
        opened = {pid: len(os.listdir(f"/proc/{pid}/fd")) - files[pid] for pid in cluster.pids()}
        print(f"{streams} streams for {seconds:.0f} s: {counts}, RSS growth since a third of it "
              f"{[f'{g / 2**20:.1f} MiB' for g in growth.values()]}, open files {list(opened.values())}")
        assert counts["whole"] > streams // 2 and counts["dropped"] > 0, counts
        assert max(growth.values()) <= growth_mib_max << 20, growth
        assert max(opened.values()) <= 2, opened


if __name__ == "__main__":
    main()

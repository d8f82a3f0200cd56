#!/usr/bin/env python3
"""How steady decode steps are while experts move: gaps between the tokens of streams, inside and outside of the times in which
ranks fetch experts. usage: ep_pace.py BINARY MODEL_DIR SECONDS STREAMS [serve flags…]"""
import datetime
import json
import pathlib
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
from cluster import Cluster  # noqa: E402


def stream(cluster, seed, end, gaps):
    """One request after the other; gaps: (time of the later token, seconds since the one before)."""
    while time.time() < end:
        last = None
        for _ in cluster.stream(prompt=[5 + seed, 7, 11 + seed], max_tokens=400, temperature=1.0, seed=seed, ignore_eos=True):
            now = time.time()
            if last is not None:
                gaps.append((now, now - last))
            last = now
            if now > end:
                break
        seed += 100


def fetches(log):
    """(begin, end, line) of each rank's part in each change of placement."""
    out = []
    for line in log.splitlines():
        if "experts are rebalanced" in line:
            fields = json.loads(line[line.index("{"):])
            at = datetime.datetime.fromisoformat(fields["time"].replace("Z", "+00:00")).timestamp()
            out.append((at - float(fields["seconds"]), at, fields))
    return out


def main():
    binary, model, seconds, streams, *flags = sys.argv[1:]
    gaps = []
    with Cluster(binary, model, "--prefill", "0", "--disaggregate", "never", "--json-logs", *flags) as cluster:
        end = time.time() + float(seconds)
        threads = [threading.Thread(target=stream, args=(cluster, i, end, gaps)) for i in range(int(streams))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        moves = fetches(cluster.log())
    begin = end - float(seconds) + 2  # prompts come first
    during, outside = [], []
    for at, gap in gaps:
        if at > begin:
            (during if any(a - gap <= at - gap / 2 <= b + gap for a, b, _ in moves) else outside).append(gap)
    for name, some in (("during", during), ("outside", outside)):
        some.sort()
        print(f"{name}: {len(some)} gaps, median {statistics.median(some) * 1e3:.1f} ms, p99 {some[int(len(some) * 0.99)] * 1e3:.1f} ms")
    print(f"p99 during / outside: {during[int(len(during) * 0.99)] / outside[int(len(outside) * 0.99)]:.2f}; median: "
          f"{statistics.median(during) / statistics.median(outside):.2f}")
    for a, b, f in moves:
        print(f"placement {f['placement']}: {f['fetched']} experts, {int(f['bytes']) / 1e6:.0f} MB in {b - a:.2f} s, balancedness "
              f"{float(f['balancedness_before']):.2f} to {float(f['balancedness']):.2f}")


if __name__ == "__main__":
    main()

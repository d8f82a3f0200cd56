#!/usr/bin/env python3
"""Same request, same bits: a set of mixed requests gives the same tokens and log-probabilities, to the last bit, in one
process at concurrency 1 and in every layout below. usage: bits_test.py BINARY MODEL_DIR [--kernels K]… LAYOUT…"""
import concurrent.futures
import random
import struct
import sys

from cluster import Cluster, generate

REQUESTS = 24
LENGTH_MAX = 700


def make_requests(count, length_max, vocabulary=4096, seed=20):
    """Lengths from 1 to length_max; every other one sampled, with truncation of all kinds."""
    rng = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, length_max] + [rng.randint(1, length_max) for _ in range(count - 6)]
    requests = []
    for i, length in enumerate(lengths):
        request = {"prompt": [rng.randrange(4, vocabulary) for _ in range(length)],
                   "max_tokens": rng.randint(2, 24), "logprobs": 3, "ignore_eos": True, "temperature": 0}
        if i % 2:
            request.update(temperature=rng.choice([0.7, 1.0, 1.5]), seed=rng.getrandbits(60),
                           top_k=rng.choice([0, 5, 50]), top_p=rng.choice([1.0, 0.9, 0.5]))
        requests.append(request)
    return requests


def bits(x):
    return struct.pack("<f", x)


def one_process(binary, model, requests, *flags):
    lines = [{**r, "id": str(i), "prompt_ids": r["prompt"]} for i, r in enumerate(requests)]
    for line in lines:
        del line["prompt"]
    results = generate(binary, model, lines, *flags)
    return [(results[str(i)]["token_ids"], [bits(x) for x in results[str(i)]["logprobs"]])
            for i in range(len(requests))]


def served(binary, model, requests, concurrency, expect_moved, *flags):
    with Cluster(binary, model, *flags) as cluster:
        def run(request):
            answer = cluster.complete(**request, return_token_ids=True)
            choice = answer["choices"][0]
            moved = answer["switchyard"]["kv_bytes_moved"]
            assert (moved > 0) == expect_moved, f"KV bytes moved: {moved}"
            return choice["token_ids"], [bits(x) for x in choice["logprobs"]["token_logprobs"]]
        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(run, requests))


def compare(name, want, got):
    wrong = [i for i, (w, g) in enumerate(zip(want, got)) if w != g]
    assert len(want) == len(got) and not wrong, f"{name}: requests {wrong} differ: {[(want[i], got[i]) for i in wrong[:1]]}"
    print(f"{name}: {len(got)} requests, {sum(len(t) for t, _ in got)} tokens, equal to the last bit")


def main():
    binary, model, *flags = sys.argv[1:]
    requests = make_requests(REQUESTS, LENGTH_MAX)
    want = one_process(binary, model, requests, "--max-num-seqs", "1", *flags)
    assert len({tuple(t) for t, _ in want}) > len(want) // 2, "the requests do not differ"
    for name, extra in {
            "one process, all at once": ("--max-num-seqs", "64"),
            "one process, prefill chunk 16": ("--prefill-chunk", "16"),
            "one process, prefill chunk 512": ("--prefill-chunk", "512", "--max-num-batched-tokens", "1024"),
    }.items():
        compare(name, want, one_process(binary, model, requests, *flags, *extra))
    always = ("--prefill", "1", "--decode", "1", "--disaggregate", "always")
    compare("P1D1, one at a time", want, served(binary, model, requests, 1, True, *always, *flags))
    compare("P1D1, all at once", want, served(binary, model, requests, len(requests), True, *always, *flags))
    compare("P1D1, all at once, prefill chunk 16", want,
            served(binary, model, requests, len(requests), True, *always, "--prefill-chunk", "16", *flags))


if __name__ == "__main__":
    main()

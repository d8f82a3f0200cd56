#!/usr/bin/env python3
"""Same request, same bits: mixed requests give the same tokens and log-probabilities, to the last bit, in one process at
concurrency 1 and in every layout below, one factor varied at a time and one combination of the worst.
usage: bits_test.py BINARY MODEL_DIR REQUESTS KERNEL_PATH,… [engine flags…]"""
import concurrent.futures
import random
import struct
import subprocess
import sys
import time

from cluster import Cluster, generate

LENGTH_MAX = 900
# Room for the longest request and little else.
SMALL_POOL = ("--kv-blocks", "62")
# Short prompts with long answers outgrow this one, so that requests are preempted.
TINY_POOL = ("--kv-blocks", "24")

ALWAYS = ("--disaggregate", "always")
P1D1 = ("--prefill", "1", "--decode", "1", *ALWAYS)
P2D2 = ("--prefill", "2", "--decode", "2", *ALWAYS)
NO_PREFILL = ("--prefill", "0", "--decode", "1", "--disaggregate", "never")

ONE_PROCESS = {
    "all at once": ("--max-num-seqs", "64"),
    "prefill chunk 16": ("--prefill-chunk", "16"),
    "prefill chunk 64": ("--prefill-chunk", "64"),
    "prefill chunk 512": ("--prefill-chunk", "512", "--max-num-batched-tokens", "1024"),
    "two threads or more": ("--threads", "3"),
    "small pool": SMALL_POOL,
}
# name: (concurrency, KV must have moved, flags)
SERVED = {
    "P1D1, one at a time": (1, True, P1D1),
    "P1D1, TCP": (64, True, (*P1D1, "--kv-lane", "tcp")),
    "P1D1, shared memory": (64, True, (*P1D1, "--kv-lane", "shm")),
    "P2D2": (64, True, P2D2),
    "P1D2": (64, True, ("--prefill", "1", "--decode", "2", *ALWAYS)),
    "P2D1": (64, True, ("--prefill", "2", "--decode", "1", *ALWAYS)),
    "no prefill rank": (64, False, NO_PREFILL),
    "P2D2, TCP, chunk 16, small pool": (
        64, True, (*P2D2, "--kv-lane", "tcp", "--prefill-chunk", "16", *SMALL_POOL)),
}


def make_requests(count, length_max=LENGTH_MAX, output=(2, 40), vocabulary=4096, seed=20):
    """Lengths from 1 to length_max; every other one sampled, with truncation of all kinds."""
    rng = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, length_max] + [rng.randint(1, length_max) for _ in range(count - 6)]
    requests = []
    for i, length in enumerate(lengths):
        request = {"prompt": [rng.randrange(4, vocabulary) for _ in range(length)],
                   "max_tokens": rng.randint(*output), "logprobs": 3, "ignore_eos": True, "temperature": 0}
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


def served(binary, model, requests, concurrency, expect_moved, *flags, check=None):
    with Cluster(binary, model, *flags) as cluster:
        def run(request):
            answer = cluster.complete(**request, return_token_ids=True)
            choice = answer["choices"][0]
            moved = answer["switchyard"]["kv_bytes_moved"]
            # A second attempt, after a wait that a loaded machine made too long, does without the prefill rank.
            again = answer["switchyard"]["attempts"] > 1
            assert (moved > 0) == expect_moved or again, f"KV bytes moved: {moved}"
            return choice["token_ids"], [bits(x) for x in choice["logprobs"]["token_logprobs"]]
        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            answers = list(pool.map(run, requests))
        if TINY_POOL[1] in flags:
            time.sleep(0.5)  # a heartbeat
            preempted = sum(v for k, v in cluster.metrics().items() if "num_preemptions_total" in k)
            assert preempted > 0, "nothing was preempted: the pool is not small enough to test it"
            print(f"preempted {preempted:.0f} times:", end=" ")
        if check is not None:
            check(cluster)
        return answers


def compare(name, want, got):
    wrong = [i for i, (w, g) in enumerate(zip(want, got)) if w != g]
    assert len(want) == len(got) and not wrong, (
        f"{name}: requests {wrong} differ, the first: {want[wrong[0]]} {got[wrong[0]]}" if wrong else name)
    print(f"{name}: {len(got)} requests, {sum(len(t) for t, _ in got)} tokens, equal to the last bit", flush=True)


def runnable(binary, model, wanted):
    """The kernel paths that this machine can run; the others are refused by name."""
    paths = []
    for path in wanted:
        done = subprocess.run([binary, "generate", model, "--prompt-ids", "5", "--max-tokens", "1", "--kernels", path],
                              capture_output=True, text=True)
        if done.returncode == 0:
            paths.append(path)
        else:
            print(f"skipped: {done.stderr.strip()}")
    return paths


def main():
    binary, model, count, paths, *flags = sys.argv[1:]
    requests = make_requests(int(count))
    alone = ("--max-num-seqs", "1")
    want = one_process(binary, model, requests, *alone, *flags)
    assert len({tuple(t) for t, _ in want}) > len(want) // 2, "the requests do not differ"
    for name, extra in ONE_PROCESS.items():
        compare(f"one process, {name}", want, one_process(binary, model, requests, *flags, *extra))
    for name, (concurrency, moved, extra) in SERVED.items():
        compare(name, want, served(binary, model, requests, concurrency, moved, *flags, *extra))
    growing = make_requests(24, length_max=60, output=(100, 200))
    want = one_process(binary, model, growing, *alone, *flags)
    for name, layout in {"P1D1": P1D1, "no prefill rank": NO_PREFILL}.items():
        compare(f"{name}, tiny pool", want,
                served(binary, model, growing, 24, layout is P1D1, *layout, *TINY_POOL, *flags))
    few = requests[:10]
    for path in runnable(binary, model, paths.split(",")):
        numbers = [("--dtype", "bfloat16"), ("--dtype", "float32")]
        if path != "reference":  # the model's own test has the slow one
            numbers += [("--quantization", "int8"), ("--quantization", "int4")]
        for flag, name in numbers:
            path_flags = ("--kernels", path, flag, name, *flags)
            want = one_process(binary, model, few, *alone, *path_flags)
            compare(f"{path} {name}, P1D1", want, served(binary, model, few, 10, True, *P1D1, *path_flags))


if __name__ == "__main__":
    main()

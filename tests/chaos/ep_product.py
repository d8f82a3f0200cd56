#!/usr/bin/env python3
"""Every layout of expert parallelism against one process, to the last bit: ranks and replicas x ranks that compute attention
together x lane x path x placement (even, random, moving every 50 ms) x overlap, each in the prefill and the decode pool of one
cluster, and the payloads. ep_test.py runs pairs of these; this is the whole product, for the record.
usage: ep_product.py BINARY MODEL_DIR REQUESTS [PART]   PART: only layouts whose name contains it"""
import itertools
import json
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
from bits_test import compare, make_requests, one_process, served  # noqa: E402
from ep_test import ALWAYS, MOVE, experts_moved  # noqa: E402

SHAPES = [(1, 0), (2, 0), (2, 2), (2, 4), (4, 0), (4, 4)]
# How tokens travel: the default, and so that one process rounds them too, or quantises weights, whose ranks then send 8 bits.
PAYLOADS = {"": (), ", tokens of 8 bits": ("--ep-payload", "int8"), ", weights of 8 bits": ("--quantization", "int8")}


def random_placement(model, ranks, redundant, path):
    """Any expert anywhere, each at least once."""
    config = json.loads(pathlib.Path(model, "config.json").read_text())
    experts = config.get("n_routed_experts") or config["num_experts"]
    dense = config.get("first_k_dense_replace", 0)
    rng, rows = random.Random(ranks * 100 + redundant), []
    for _ in range(config["num_hidden_layers"] - dense):
        row = list(range(experts)) + [rng.randrange(experts) for _ in range(redundant)]
        rng.shuffle(row)
        rows.append(row)
    path.write_text(json.dumps({"phy2log": rows}))


def layouts(model, directory):
    """name, numbers, flags, whether experts move."""
    for (ranks, redundant), tensor_ranks, lane, path, placement, overlap in itertools.product(
            SHAPES, (1, 2), ("shm", "tcp"), ("both paths", "throughput path"), ("even", "random", "moving"), ("on", "off")):
        if ranks == 1 and (tensor_ranks, lane, path, placement, overlap) != (1, "shm", "both paths", "even", "on"):
            continue  # all experts are here: nothing travels
        name = f"EP{ranks} R{redundant} TP{tensor_ranks}, {lane}, {path}, {placement}, overlap {overlap}"
        flags = ["--prefill-ep", str(ranks), "--prefill-tp", str(tensor_ranks), "--decode-ep", str(ranks), "--ep-lane", lane,
                 "--ep-overlap", overlap]
        flags += ["--ep-low-latency-tokens", "0"] if path == "throughput path" else []
        if placement == "random":
            file = pathlib.Path(directory, f"{ranks}-{redundant}.json")
            random_placement(model, ranks, redundant, file)
            flags += ["--expert-placement", str(file)]
        else:
            flags += ["--redundant-experts", str(redundant)]
        moving = placement == "moving"
        yield name, "", [*flags, *(MOVE if moving else ())], moving
        if (tensor_ranks, placement, overlap) == (1, "even", "on") and redundant == 0:
            for payload in list(PAYLOADS)[1:]:
                yield name + payload, payload, flags, False


def main():
    binary, model, count, *part = sys.argv[1:]
    requests = make_requests(int(count), length_max=300)
    want = {payload: one_process(binary, model, requests, "--max-num-seqs", "1", *flags) for payload, flags in PAYLOADS.items()}
    done, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="switchyard-test-") as directory:
        for name, payload, flags, moving in layouts(model, directory):
            if part and part[0] not in name:
                continue
            compare(name, want[payload], served(binary, model, requests, 32, True, *ALWAYS, *flags, *PAYLOADS[payload],
                                                check=experts_moved if moving else None))
            done += 1
    print(f"{done} layouts, all with the bits of one process, {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()

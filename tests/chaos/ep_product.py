#!/usr/bin/env python3
"""Every layout of expert parallelism against one process, to the last bit: ranks and replicas x lane x path x placement (even,
random, moving every 50 ms) x pool, and tensor parallelism x overlap for prefill. ep_test.py runs pairs of these; this is the whole product, for the record.
usage: ep_product.py BINARY MODEL_DIR REQUESTS [PART]   PART: only layouts whose name contains it"""
import itertools
import json
import pathlib
import random
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
from bits_test import compare, make_requests, one_process, served  # noqa: E402
from ep_test import ALWAYS, MOVE, NEVER, experts_moved  # noqa: E402

SHAPES = [(1, 0), (2, 0), (2, 2), (2, 4), (4, 0), (4, 4)]
TENSOR_SHAPES = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]  # ranks, of which so many compute attention together


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


def main():
    binary, model, count, *part = sys.argv[1:]
    requests = make_requests(int(count), length_max=300)
    want = one_process(binary, model, requests, "--max-num-seqs", "1")
    done = 0
    with tempfile.TemporaryDirectory(prefix="switchyard-test-") as directory:
        for (ranks, redundant), lane, path, placement, pool in itertools.product(
                SHAPES, ("shm", "tcp"), ("both paths", "throughput path"), ("even", "random", "moving"), ("prefill", "decode")):
            if ranks == 1 and placement != "even":
                continue  # all experts are here
            name = f"{pool} EP{ranks} R{redundant}, {lane}, {path}, {placement}"
            if part and part[0] not in name:
                continue
            flags = [*(ALWAYS if pool == "prefill" else NEVER), f"--{pool}-ep", str(ranks), "--ep-lane", lane]
            flags += ["--ep-low-latency-tokens", "0"] if path == "throughput path" else []
            if placement == "random":
                file = pathlib.Path(directory, "placement.json")
                random_placement(model, ranks, redundant, file)
                flags += ["--expert-placement", str(file)]
            else:
                flags += ["--redundant-experts", str(redundant)]
            flags += MOVE if placement == "moving" else []
            compare(name, want, served(binary, model, requests, 32, pool == "prefill", *flags,
                                       check=experts_moved if placement == "moving" else None))
            done += 1
        for (ranks, tensor_ranks), lane, path, overlap in itertools.product(
                TENSOR_SHAPES, ("shm", "tcp"), ("both paths", "throughput path"), ("on", "off")):
            name = f"prefill EP{ranks} TP{tensor_ranks}, {lane}, {path}, overlap {overlap}"
            if part and part[0] not in name:
                continue
            flags = [*ALWAYS, "--prefill-ep", str(ranks), "--prefill-tp", str(tensor_ranks), "--ep-lane", lane,
                     "--ep-overlap", overlap]
            flags += ["--ep-low-latency-tokens", "0"] if path == "throughput path" else []
            compare(name, want, served(binary, model, requests, 32, True, *flags))
            done += 1
    print(f"{done} layouts, all with the bits of one process")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The served cluster (one prefill, one decode process) against transformers' logits: echoed log-probabilities of
the given tokens within 2e-3. usage: serving_goldens_test.py BINARY MODEL_DIR…"""
import math
import sys

from cluster import Cluster, read_safetensors

TOLERANCE = 2e-3


def reference_logprobs(golden, case):
    (rows, vocabulary), logits = golden[f"logits.{case}"]
    ids = golden[f"input_ids.{case}"][1]
    for row in range(rows - 1):
        values = logits[row * vocabulary:(row + 1) * vocabulary]
        top = max(values)
        yield values[ids[row + 1]] - top - math.log(math.fsum(math.exp(v - top) for v in values))


def check(binary, model):
    golden = read_safetensors(f"{model}/golden.safetensors")
    worst, compared = 0.0, 0
    with Cluster(binary, model, "--prefill", "1", "--decode", "1", "--disaggregate", "always",
                 "--kernels", "reference", "--dtype", "float32") as cluster:
        for case in (0, 1, 2):
            ids = list(golden[f"input_ids.{case}"][1])
            answer = cluster.complete(prompt=ids, max_tokens=2, temperature=0, echo=True, logprobs=0,
                                      ignore_eos=True)
            got = answer["choices"][0]["logprobs"]["token_logprobs"]
            assert len(got) == len(ids) + 2 and got[0] is None, (case, len(got))
            for g, w in zip(got[1:], reference_logprobs(golden, case)):
                worst, compared = max(worst, abs(g - w)), compared + 1
            assert answer["switchyard"]["kv_bytes_moved"] > 0, "the prompt's KV did not cross processes"
        ids = list(golden["input_ids.1"][1])
        answer = cluster.complete(prompt=ids, max_tokens=32, temperature=0, ignore_eos=True, return_token_ids=True)
        got = answer["choices"][0]["token_ids"]
        margins = golden["greedy_margin"][1]
        sure = next((i for i, m in enumerate(margins) if m <= 1e-3), len(margins))
        assert got[:sure] == list(golden["greedy_ids"][1][:sure]), "greedy tokens differ"
    print(f"{model}: {compared} log-probabilities, worst difference {worst:.2e}, {sure} greedy tokens equal")
    assert compared > 150 and worst <= TOLERANCE, worst


if __name__ == "__main__":
    for directory in sys.argv[2:]:
        check(sys.argv[1], directory)

"""An urgent request does not wait for those that fill the KV blocks: the least urgent give way, and all get the tokens that they
would have got alone.

usage: priority_test.py BINARY MODEL [alone]     alone: without a prefill rank, which a slow build takes long to answer from
"""
import random
import sys
import threading

import cluster as e2e

BLOCKS, LOW_TOKENS = 100, 1200
FULL = 1500  # characters, more than 300 tokens: two answers so long leave less than the urgent one needs


def fields(seed, prompt_tokens, max_tokens):
    rng = random.Random(seed)
    return dict(prompt=[rng.randrange(4, 4000) for _ in range(prompt_tokens)], max_tokens=max_tokens, ignore_eos=True, seed=seed,
                return_token_ids=True)


LOW = [fields(seed, 40, LOW_TOKENS) for seed in (1, 2)]
URGENT = fields(3, 1000, 6)


def tokens(cluster, request):
    return cluster.complete(**request)["choices"][0]["token_ids"]


class Stream(threading.Thread):
    """A request of low priority whose answer comes piece by piece, its token ids with the last."""

    def __init__(self, cluster, request):
        super().__init__()
        self.cluster, self.request, self.text, self.tokens, self.full = cluster, request, "", [], threading.Event()

    def run(self):
        try:
            for event in self.cluster.stream(**self.request, priority=5):
                for choice in event["choices"]:
                    self.text += choice["text"]
                    self.tokens += choice.get("token_ids", [])
                if len(self.text) >= FULL:
                    self.full.set()
        finally:
            self.full.set()


def preemptions(cluster):
    return sum(v for k, v in cluster.metrics().items() if k.startswith("switchyard_num_preemptions_total"))


def test(cluster):
    alone = [tokens(cluster, r) for r in LOW + [URGENT]]
    before = preemptions(cluster)
    low = [Stream(cluster, r) for r in LOW]
    for stream in low:
        stream.start()
    for stream in low:
        assert stream.full.wait(120), "no tokens"
    urgent = tokens(cluster, URGENT)
    running = sum(stream.is_alive() for stream in low)
    for stream in low:
        stream.join()
    assert running > 0, "the urgent one waited until the others had ended"
    assert urgent == alone[2], "the urgent one's tokens"
    assert [s.tokens for s in low] == alone[:2], "tokens of those that gave way"
    for _ in range(600):  # heartbeats bring the count
        if preemptions(cluster) > before:
            return running
        threading.Event().wait(0.1)
    raise AssertionError("nobody gave way")


def main():
    binary, model, *alone = sys.argv[1:]
    for flags in [["--prefill", "0"]] + ([] if alone else [["--disaggregate", "always"]]):
        with e2e.Cluster(binary, model, "--kv-blocks", str(BLOCKS), "--max-model-len", str(BLOCKS * 16 - 16), *flags) as cluster:
            print(f"{flags}: {test(cluster)} of the others ran on when the urgent one had ended")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Expert parallelism in whole clusters: the bits of one process, own experts only in each rank's memory, no CPU while idle,
and answers that stay right when a rank dies or hangs. usage: ep_test.py BINARY MODEL_DIR REQUESTS"""
import concurrent.futures
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

from bits_test import compare, make_requests, one_process, served
from cluster import START_SECONDS, Cluster
from supervision_test import children_of

ALWAYS = ("--disaggregate", "always")
NEVER = ("--prefill", "0", "--disaggregate", "never")
# Experts move all the time.
MOVE = ("--ep-rebalance-interval-seconds", "0.05", "--ep-rebalance-threshold", "0")

# name: (KV must have moved, flags). Every value of every factor (roles, ranks, replicas, lane, path, moving experts,
# micro-batches) at least once, and each pair that shares code.
LAYOUTS = {
    "decode EP2, shared memory": (False, (*NEVER, "--decode-ep", "2", "--ep-lane", "shm", "--ep-overlap", "on")),
    "decode EP2, 2 redundant, TCP": (
        False, (*NEVER, "--decode-ep", "2", "--redundant-experts", "2", "--ep-lane", "tcp", "--ep-overlap", "off")),
    "decode EP4, 4 redundant, shared memory, experts move": (
        False, (*NEVER, "--decode-ep", "4", "--redundant-experts", "4", "--ep-lane", "shm", *MOVE)),
    "prefill EP2 in two micro-batches, decode alone": (True, (*ALWAYS, "--prefill-ep", "2", "--ep-overlap", "on")),
    "prefill alone, decode EP2, throughput path only": (
        True, (*ALWAYS, "--decode-ep", "2", "--ep-low-latency-tokens", "0", "--ep-overlap", "off")),
    "prefill EP2, decode EP2, 4 redundant, all TCP, experts move": (
        True, (*ALWAYS, "--prefill-ep", "2", "--decode-ep", "2", "--redundant-experts", "4", "--ep-lane", "tcp",
               "--kv-lane", "tcp", "--ep-overlap", "on", *MOVE)),
    "prefill TP2 x DP2 x EP4, decode alone": (
        True, (*ALWAYS, "--prefill-ep", "4", "--prefill-tp", "2", "--ep-overlap", "on")),
}


def check_bits(binary, model, count):
    requests = make_requests(count, length_max=400)
    want = one_process(binary, model, requests, "--max-num-seqs", "1")
    for name, (moved, flags) in LAYOUTS.items():
        compare(name, want, served(binary, model, requests, 32, moved, *flags,
                                   check=experts_moved if MOVE[0] in flags else None))


def check_numbers(binary, model, count):
    """Flags that change bits: those of one process with the same flag. Tokens of 8 bits, weights of 8 bits, prompts expanded.
    Reduced outputs: one layout, one answer."""
    requests = make_requests(count, length_max=400)
    for name, moved, flags, layout in (
            ("tokens of 8 bits, prefill EP2, decode alone", True, ("--ep-payload", "int8"), (*ALWAYS, "--prefill-ep", "2")),
            ("weights of 8 bits, decode EP2", False, ("--quantization", "int8"), (*NEVER, "--decode-ep", "2")),
            ("prompts expanded, prefill TP2 x DP2 x EP4 in two micro-batches, decode alone", True, ("--mla", "auto"),
             (*ALWAYS, "--prefill-ep", "4", "--prefill-tp", "2", "--ep-overlap", "on"))):
        want = one_process(binary, model, requests, "--max-num-seqs", "1", *flags)
        compare(name, want, served(binary, model, requests, 32, moved, *layout, *flags))
    reduced = (*NEVER, "--decode-ep", "2", "--ep-combine", "reduced")
    want = served(binary, model, requests, 4, False, *reduced, "--ep-lane", "tcp", "--ep-overlap", "off")
    compare("reduced outputs, decode EP2, twice", want,
            served(binary, model, requests, 32, False, *reduced, "--ep-low-latency-tokens", "0", "--ep-overlap", "on"))


def experts_moved(cluster):
    moves = cluster.log().count("experts are rebalanced")
    assert moves > 0, "no expert moved"
    print(f"{moves} changes of placement:", end=" ")


def resident_bytes(pid):
    """Of a process's own memory: what it maps of files is not counted."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check_memory_and_rest(binary):
    """A model that is nearly all experts: each of 4 ranks holds about a quarter. Then nobody asks for anything."""
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
              "vocab_size": 512, "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512, "moe_intermediate_size": 1024,
              "num_experts": 32, "num_experts_per_tok": 4, "norm_topk_prob": True, "decoder_sparse_step": 1,
              "mlp_only_layers": [], "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
              "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1}
    experts = 2 * 32 * 3 * 512 * 1024 * 2  # bytes, in BF16
    used = {}
    with tempfile.TemporaryDirectory(prefix="switchyard-test-") as model:
        pathlib.Path(model, "config.json").write_text(json.dumps(config))
        for ranks in (1, 4):
            with Cluster(binary, model, *NEVER, "--decode-ep", str(ranks), "--load-format", "dummy",
                         "--kv-blocks", "64") as cluster:
                cluster.complete(prompt=[5, 6, 7], max_tokens=3, return_token_ids=True)
                pids = cluster.pids("decode")
                assert len(pids) == ranks, cluster.processes
                used[ranks] = max(resident_bytes(pid) for pid in pids)
                before = [cpu_seconds(pid) for pid in pids]
                time.sleep(3)
                spent = [cpu_seconds(pid) - b for pid, b in zip(pids, before)]
                assert max(spent) < 0.3, f"EP{ranks}: idle ranks used {spent} s of CPU in 3 s"
                print(f"EP{ranks}: {used[ranks] >> 20} MiB in the largest rank, {max(spent):.2f} s of CPU in 3 s idle",
                      flush=True)
    saved, owed = used[1] - used[4], experts * 3 // 4
    assert saved > owed * 0.8, f"{saved >> 20} MiB less in each rank, {owed >> 20} MiB of experts are elsewhere"


def tokens_out(cluster):
    return sum(v for k, v in cluster.metrics().items() if k.startswith("switchyard_generation_tokens_total"))


def strike_midway(cluster, submit, pid, number, tokens):
    """The answers that submit() begins. The process is struck once there have been so many tokens, while some wait for more."""
    for _ in range(5):  # a busy machine may look too late
        before, answers = tokens_out(cluster), submit()
        while tokens_out(cluster) < before + tokens and not all(a.done() for a in answers):
            time.sleep(0.005)
        if not all(a.done() for a in answers):
            os.kill(pid, number)
            return answers
    raise AssertionError("all had ended before the fault, each time")


def decode_ranks(cluster, count):
    deadline = time.monotonic() + START_SECONDS
    while True:  # one that was lost is started again
        ranks = {pid for pid, role in children_of(cluster.process.pid).items() if role == "decode"}
        if len(ranks) == count:
            return ranks
        assert time.monotonic() < deadline, ranks
        time.sleep(0.05)


def check_lost_ranks(binary, model, count):
    """Ranks are killed and stopped under load: every request ends with the tokens of one process."""
    requests = make_requests(count, length_max=100, output=(100, 160))
    want = [tokens for tokens, _ in one_process(binary, model, requests, "--max-num-seqs", "1")]
    with Cluster(binary, model, *NEVER, "--decode-ep", "2") as cluster:
        def run(request):
            return cluster.complete(**request, return_token_ids=True)["choices"][0]["token_ids"]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for number, lost in ((signal.SIGKILL, 1), (signal.SIGSTOP, 0)):
                ranks = decode_ranks(cluster, 2)
                victim = {pid for pid in ranks if b"--ep-rank=%d" % lost in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()}
                answers = strike_midway(cluster, lambda: [pool.submit(run, r) for r in requests], *victim, number, tokens=50)
                start = time.monotonic()
                got = [a.result() for a in answers]
                assert got == want, f"other tokens after {number.name}"
                assert ranks - victim <= set(children_of(cluster.process.pid)), "the other rank ended too"
                print(f"{number.name}: {len(got)} requests whole, {time.monotonic() - start:.1f} s after it", flush=True)
        cluster.processes = [{"pid": pid, "role": role} for pid, role in children_of(cluster.process.pid).items()]


def check_lost_neighbour(binary, model, count):
    """A rank that computes attention with another is killed: the other's requests start anew, with the same tokens."""
    requests = make_requests(count + 6, length_max=800, output=(10, 40))[6:]  # no short ones
    want = [tokens for tokens, _ in one_process(binary, model, requests, "--max-num-seqs", "1")]
    with Cluster(binary, model, *ALWAYS, "--prefill-ep", "2", "--prefill-tp", "2") as cluster:
        def run(request):
            return cluster.complete(**request, return_token_ids=True)["choices"][0]["token_ids"]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = strike_midway(cluster, lambda: [pool.submit(run, r) for r in requests], cluster.pids("prefill")[1],
                                    signal.SIGKILL, tokens=1)
            got = [a.result() for a in answers]
        assert got == want, "other tokens after the loss of a neighbour"
        print(f"a neighbour in attention killed: {len(got)} requests whole", flush=True)
        cluster.processes = [{"pid": pid, "role": role} for pid, role in children_of(cluster.process.pid).items()]


if __name__ == "__main__":
    BINARY, MODEL, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])
    check_bits(BINARY, MODEL, COUNT)
    check_numbers(BINARY, MODEL, COUNT)
    check_memory_and_rest(BINARY)
    check_lost_ranks(BINARY, MODEL, COUNT)
    check_lost_neighbour(BINARY, MODEL, COUNT)

#!/usr/bin/env python3
"""Hostile and careless clients: each gets a clear error, and the cluster serves on. usage: bad_input_test.py BINARY MODEL_DIR"""
import concurrent.futures
import json
import os
import socket
import sys
import time

from cluster import Cluster

OK = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}

# name: (changed fields, what the message must name)
REFUSED = {
    "prompt too long": ({"prompt": [5] * 5000}, ["prompt", "5000", "2048"]),
    "empty prompt ids": ({"prompt": []}, ["prompt"]),
    "no tokens": ({"max_tokens": 0}, ["max_tokens", "0"]),
    "negative tokens": ({"max_tokens": -5}, ["max_tokens", "-5"]),
    "huge tokens": ({"max_tokens": 10**30}, ["max_tokens"]),
    "tokens as text": ({"max_tokens": "many"}, ["max_tokens"]),
    "id past the vocabulary": ({"prompt": [1, 4096]}, ["4096"]),
    "negative id": ({"prompt": [-1]}, ["-1"]),
    "temperature below 0": ({"temperature": -0.5}, ["temperature"]),
    "temperature too large": ({"temperature": 1e9}, ["temperature"]),
    "top_p above 1": ({"top_p": 1.5}, ["top_p", "1.5"]),
    "top_p 0": ({"top_p": 0}, ["top_p"]),
    "top_k below -1": ({"top_k": -7}, ["top_k", "-7"]),
    "100,000 stop strings": ({"stop": ["x"] * 100_000}, ["stop"]),
    "long stop string": ({"stop": "x" * 5000}, ["stop"]),
    "stop as number": ({"stop": 3}, ["stop"]),
    "logprobs too many": ({"logprobs": 1000}, ["logprobs", "1000"]),
    "n = 0": ({"n": 0}, ["n"]),
    "n = 1000": ({"n": 1000}, ["n", "1000"]),
    "best_of = 3": ({"best_of": 3}, ["best_of"]),
    "presence penalty": ({"presence_penalty": 3.0}, ["presence_penalty"]),
    "logit bias": ({"logit_bias": {"5": 1000}}, ["logit_bias"]),
    "suffix": ({"suffix": "the end"}, ["suffix"]),
    "another model": ({"model": "gpt-4"}, ["gpt-4"]),
    "prompt is an object": ({"prompt": {"a": 1}}, ["prompt"]),
    "prompt mixes types": ({"prompt": [1, "a"]}, ["prompt"]),
}
NEUTRAL = {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": None, "suffix": None,
           "user": "someone", "stop": None, "top_p": 1, "seed": None, "logprobs": None, "stream_options": None,
           "a_field_of_tomorrow": None}


def raw(cluster, data, read=True, timeout=20):
    with socket.create_connection((cluster.host, int(cluster.port)), timeout=timeout) as s:
        try:
            s.sendall(data)
            return s.recv(65536) if read else b""
        except (BrokenPipeError, ConnectionResetError):  # it closed before it had read all
            return b""


def post(body):
    return (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)) + body


def check_refusals(cluster):
    for name, (fields, names) in REFUSED.items():
        status, answer = cluster.request("POST", "/v1/completions", {**OK, **fields})
        assert status in (400, 404), (name, status, answer)
        message = answer["error"]["message"]
        assert all(n in message for n in names), (name, message)
    for name, body in {"NaN": b'{"prompt": "x", "temperature": NaN}', "not JSON": b'{"prompt": ', "a list": b"[1]",
                       "invalid UTF-8": b'{"prompt": "\xff\xfe"}', "empty": b"",
                       "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"}.items():
        status, answer = cluster.request("POST", "/v1/completions", body)
        assert status == 400 and answer["error"]["message"], (name, status, answer)
    status, _ = cluster.request("POST", "/v1/completions", {**OK, **NEUTRAL})
    assert status == 200, "null and neutral values must be accepted"
    assert cluster.request("GET", "/nowhere")[0] == 404
    assert cluster.request("GET", "/v1/completions")[0] == 405


def check_raw_sockets(cluster):
    answer = raw(cluster, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n")
    assert b" 413 " in answer.split(b"\r\n")[0], answer[:200]
    answer = raw(cluster, b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
    assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0] or b" 400 " in answer.split(b"\r\n")[0], answer[:200]
    raw(cluster, b"\x16\x03\x01\x02\x00\x01\x00", read=False)  # TLS to a plain port
    raw(cluster, post(b'{"prompt": "x"')[:-3], read=False)  # hung up in the middle
    # A half-closed stream: the client has no more to say, but reads its answer.
    with socket.create_connection((cluster.host, int(cluster.port)), timeout=30) as s:
        s.sendall(post(json.dumps(OK).encode()))
        s.shutdown(socket.SHUT_WR)
        s.recv(65536)
    slow = [socket.create_connection((cluster.host, int(cluster.port)), timeout=60) for _ in range(50)]
    for s in slow:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
    cluster.complete(**OK)  # slow-loris clients do not keep others out
    closed = 0
    for s in slow:
        try:
            while s.recv(65536):
                pass
            closed += 1
        except ConnectionResetError:
            closed += 1
        s.close()
    assert closed == len(slow), "slow clients were not closed"


def check_dropped_streams(cluster):
    def drop(i):
        events = cluster.stream(prompt=[7 + i] * 50, max_tokens=1000, ignore_eos=True)
        for _ in range(i % 5 + 1):
            next(events)
        events.close()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(drop, range(64)))


def wait_for_rest(cluster, what):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        metrics = cluster.metrics()
        busy = {k: v for k, v in metrics.items()
                if v and ("num_requests" in k or "kv_blocks" in k and 'state="free"' not in k and 'state="cached"' not in k)}
        assert any("kv_blocks" in k for k in metrics)
        if not busy:
            return
        time.sleep(0.1)
    raise AssertionError(f"after {what}: not at rest: {busy}")


def main():
    binary, model = sys.argv[1:]
    with Cluster(binary, model, "--prefill", "1", "--decode", "1", "--disaggregate", "always") as cluster:
        want = cluster.complete(**OK)["choices"][0]["text"]
        files = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in cluster.pids()}
        for check in (check_refusals, check_raw_sockets, check_dropped_streams):
            check(cluster)
            wait_for_rest(cluster, check.__name__)
            assert cluster.complete(**OK)["choices"][0]["text"] == want
            print(check.__name__, "ok", flush=True)
        for _ in range(600):
            now = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in files}
            if all(now[pid] <= files[pid] + 2 for pid in files):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"open files by process: {now}, had {files}")


if __name__ == "__main__":
    main()

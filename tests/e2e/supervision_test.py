#!/usr/bin/env python3
"""Children of `serve` that die or hang come back, the cluster serves on, and nothing is left behind at the end, however it
ends. usage: supervision_test.py BINARY MODEL_DIR KILLS [SECONDS]
SECONDS: bounds the time until the cluster serves again (3 s more after a hang): on a quiet machine."""
import http.client
import os
import pathlib
import signal
import socket
import sys
import threading
import time

from cluster import Cluster, alive

OK = {"prompt": "The rabbit put on his", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
FLAGS = ("--prefill", "1", "--decode", "1", "--disaggregate", "always")
GONE = (OSError, http.client.HTTPException)  # what a client sees of a router that is killed


def children_of(pid):
    found = {}
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            stat = (p / "stat").read_text().rsplit(")", 1)[1].split()
            if int(stat[1]) == pid and stat[0] != "Z":
                arguments = (p / "cmdline").read_bytes().split(b"\0")
                found[int(p.name)] = arguments[1].decode() if len(arguments) > 1 else ""
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass
    return found


def pid_of(cluster, role):
    return next((pid for pid, r in children_of(cluster.process.pid).items() if r == role), None)


def answers(cluster, timeout=30):
    try:
        status, answer = cluster.request("POST", "/v1/completions", OK, timeout=timeout)
        return answer["choices"][0]["text"] if status == 200 else None
    except GONE:
        return None


def load(cluster, stop, unclear):
    """Requests until told to stop. A request that is lost must get a clear error."""
    while not stop.is_set():
        try:
            status, answer = cluster.request("POST", "/v1/completions", {**OK, "max_tokens": 40}, timeout=60)
            if status != 200 and not (isinstance(answer, dict) and answer["error"]["message"]):
                unclear.append((status, answer))
        except GONE:
            time.sleep(0.05)  # the router itself was killed: the connection says so


def kill_each(cluster, want, kills, signal_number):
    """The longest time until the cluster served again, by role."""
    worst = {}
    for i in range(kills):
        for role in ("prefill", "decode", "router"):
            old = pid_of(cluster, role)
            os.kill(old, signal_number)
            start = time.monotonic()
            while pid_of(cluster, role) in (None, old) or answers(cluster) != want:
                assert time.monotonic() - start < 120, f"no service after {signal_number} to {role}\n{cluster.log()}"
                time.sleep(0.02)
            worst[role] = max(worst.get(role, 0), time.monotonic() - start)
    return worst


def check_restarts(binary, model, kills, seconds):
    with Cluster(binary, model, *FLAGS) as cluster:
        want = answers(cluster)
        stop, unclear = threading.Event(), []
        threads = [threading.Thread(target=load, args=(cluster, stop, unclear)) for _ in range(4)]
        for t in threads:
            t.start()
        try:
            worst = kill_each(cluster, want, kills, signal.SIGKILL)
            hung = kill_each(cluster, want, 1, signal.SIGSTOP)
            assert all(t.is_alive() for t in threads), "there was no load"
        finally:
            stop.set()
            for t in threads:
                t.join()
        assert not unclear, unclear[:3]
        print(f"{kills} kills of each kind under load: served again after at most",
              {r: f"{s:.2f} s" for r, s in worst.items()}, "| hangs:", {r: f"{s:.2f} s" for r, s in hung.items()},
              flush=True)
        cluster.processes = [{"pid": pid, "role": role} for pid, role in children_of(cluster.process.pid).items()]
        assert max(worst.values()) < seconds, worst
        assert max(hung.values()) < seconds + 3, hung


def shared_memory():
    """UCX's segments: other programs have theirs there."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("ucx_shm_")}


def check_no_orphans(binary, model):
    shm = shared_memory()
    cluster = Cluster(binary, model, *FLAGS, expect_clean=False)
    with cluster:
        answers(cluster)
        pids = list(children_of(cluster.process.pid))
        os.kill(cluster.process.pid, signal.SIGKILL)
        cluster.process.wait()
        deadline = time.monotonic() + 60
        while any(map(alive, pids)):
            assert time.monotonic() < deadline, "children outlive their launcher"
            time.sleep(0.05)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((cluster.host, int(cluster.port)))
        left = shared_memory() - shm
        assert not left, f"left in /dev/shm: {left}"
    print("no process, port or shared memory left after SIGKILL of the launcher", flush=True)


def check_second_interrupt(binary, model):
    nice = {"prefill": 2, "decode": 5}
    with Cluster(binary, model, *FLAGS, *(f"--{role}-nice={n}" for role, n in nice.items()), expect_clean=False) as cluster:
        for role, n in nice.items():
            assert all(os.getpriority(os.PRIO_PROCESS, pid) == n for pid in cluster.pids(role)), role
        events = cluster.stream(prompt=[9] * 10, max_tokens=2000, ignore_eos=True)
        next(events)
        pids = list(children_of(cluster.process.pid))
        cluster.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        cluster.process.send_signal(signal.SIGINT)
        cluster.process.wait(timeout=10)
        assert not any(map(alive, pids))
    print("a second interrupt stops at once", flush=True)


def check_hang_up(binary, model):
    """A terminal that closes, while a child hangs: an end in order, not after the whole time to drain."""
    with Cluster(binary, model, *FLAGS, expect_clean=False) as cluster:
        pids = children_of(cluster.process.pid)
        os.kill(next(pid for pid, role in pids.items() if role == "decode"), signal.SIGSTOP)
        for pid in [cluster.process.pid, *pids]:
            os.kill(pid, signal.SIGHUP)
        assert cluster.process.wait(timeout=15) == 0
        assert not any(map(alive, pids))
    print("ends when its terminal does, though a child hangs", flush=True)


if __name__ == "__main__":
    check_restarts(sys.argv[1], sys.argv[2], int(sys.argv[3]), float((sys.argv[4:] or ["inf"])[0]))
    check_no_orphans(sys.argv[1], sys.argv[2])
    check_second_interrupt(sys.argv[1], sys.argv[2])
    check_hang_up(sys.argv[1], sys.argv[2])

#!/usr/bin/env python3
"""An overlay's pods as processes of this machine: each container's command, with the configuration that it would find,
in a network namespace of its own under its pod's name. The readiness probes must pass and the Service's port must answer.
usage: pods_test.py README.md SWITCHYARD

Needs kubectl with Kustomize 4.1 or later, and root with iproute2 for the namespaces; without them it is skipped, and the
output says so. README.md only says where the checkout is.
"""
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos"))

from network import Network  # noqa: E402
from overlays import can_kustomize, config_text, pod_template, pods, render, service_of  # noqa: E402

OVERLAYS = ("overlays/single-node", "overlays/pools", "overlays/expert-parallel")
READY_SECONDS = 240  # generous: sanitizer builds on two busy cores
# Beside `ip netns exec`, which makes a mount namespace: the names of all pods are found in this one only.
WITH_HOSTS = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']


def get(url, body=None):
    request = urllib.request.Request(url, data=body and json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError as e:
        return 0, str(e)


class Running:
    """One pod of a workload."""

    def __init__(self, workload, pod):
        self.workload, self.pod = workload, pod
        [self.container] = pod_template(workload)["spec"]["containers"]
        self.process = None

    def names(self):
        service = service_of(self.workload)
        return f"{self.pod.ip} {self.pod.name} {self.pod.name}.{service}"

    def start(self, binary, model, objects, prefix, work, log):
        args = self.pod.args(self.workload)
        at = args.index("--config") + 1
        # The model of the claim or of the image is here.
        text, count = re.subn(r"^model: .*$", f"model: {model}", config_text(objects, self.workload, args[at]), flags=re.M)
        assert count == 1, f"{self.pod.name}: a configuration has one line `model: `"
        config = work / f"{self.pod.name}.yaml"
        config.write_text(text)
        args[at] = str(config)
        self.process = subprocess.Popen([*prefix, *WITH_HOSTS, str(work / "hosts"), binary, *args],
                                        stdout=log, stderr=log)

    def probe(self, name):
        handler = self.container[name]["httpGet"]
        ports = {p["name"]: p["containerPort"] for p in self.container["ports"]}
        return f"http://{self.pod.ip}:{ports.get(handler['port'], handler['port'])}{handler['path']}"


def await_ready(running):
    end = time.monotonic() + READY_SECONDS
    for pod in running:
        while get(pod.probe("readinessProbe"))[0] != 200:
            assert pod.process.poll() is None, f"{pod.pod.name} ended with {pod.process.returncode}"
            assert time.monotonic() < end, f"{pod.pod.name}: not ready within {READY_SECONDS} s"
            time.sleep(0.05)


def ask(objects, running):
    """A request to the Service that clients use; what it says."""
    [service] = [o for o in objects if o["kind"] == "Service" and o["metadata"]["name"] == "switchyard"]
    selector = service["spec"]["selector"]
    [front] = [r for r in running if selector.items() <= r.pod.labels.items()]
    [port] = [p["port"] for p in service["spec"]["ports"] if p["name"] == "http"]
    status, text = get(f"http://{front.pod.ip}:{port}/v1/completions",
                       {"prompt": "Once upon a time " * 40, "max_tokens": 8, "temperature": 0})
    assert status == 200, (status, text)
    answer = json.loads(text)
    assert answer["usage"]["completion_tokens"] == 8, answer
    return answer["choices"][0]["text"]


def run(root, overlay, binary, work):
    objects = render(root, overlay)
    workloads = [o for o in objects if o["kind"] in ("Deployment", "StatefulSet", "LeaderWorkerSet")]
    running = [Running(w, pod) for w in workloads for pod in pods(w, 1)]
    network = Network(len(running))
    log = open(work / "log", "w+")
    try:
        for i, r in enumerate(running):
            r.pod.ip = network.host(i)
        (work / "hosts").write_text("127.0.0.1 localhost\n" + "".join(r.names() + "\n" for r in running))
        for i, r in enumerate(running):
            r.start(binary, root / "models/fables-7m", objects, network.command(i), work, log)
        await_ready(running)
        text = ask(objects, running)
        print(f"{overlay}: {', '.join(r.pod.name for r in running)}: {text!r}")
        for r in running:
            r.process.terminate()
        for r in running:
            code = r.process.wait(pod_template(r.workload)["spec"]["terminationGracePeriodSeconds"])
            assert code == 0, f"{r.pod.name} ended with {code}"
        return text
    except BaseException:
        sys.stderr.write((work / "log").read_text())
        raise
    finally:
        for r in running:
            if r.process is not None and r.process.poll() is None:
                r.process.kill()
                r.process.wait()
        log.close()
        network.remove()


def may_make_namespaces():
    name = f"sy{os.getpid()}probe"
    with contextlib.suppress(OSError):
        if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0:
            return subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False).returncode == 0
    return False


def main():
    root = pathlib.Path(sys.argv[1]).resolve().parent
    assert (root / "WORKSPACE").exists(), f"{root} is not a checkout"
    if not can_kustomize() or not may_make_namespaces():
        print("skipped: no kubectl with Kustomize 4.1 or later, or no right to make network namespaces")
        return
    texts = []
    for overlay in OVERLAYS:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as work:
            texts.append(run(root, overlay, os.path.abspath(sys.argv[2]), pathlib.Path(work)))
    assert len(set(texts)) == 1, f"the same request, another answer: {texts}"


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""An overlay's pods as processes of this machine: each container's command, with the configuration that it would find,
in a network namespace of its own under its pod's name. The readiness probes must pass and the Service's port must answer.
usage: pods_test.py README.md SWITCHYARD

Needs kubectl with Kustomize 4.2 or later, and root with iproute2 for the namespaces; without them it is skipped, and the
output says so. README.md only says where the checkout is.
"""
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "chaos")]

from asking import get  # noqa: E402
from certificates import Authority  # noqa: E402
from network import Network  # noqa: E402
from overlays import can_kustomize, config_text, pod_template, pods, render, service_of  # noqa: E402

OVERLAYS = ("overlays/single-node", "overlays/pools", "overlays/expert-parallel", "overlays/mtls")
READY_SECONDS = 240  # generous: sanitizer builds on two busy cores
# Beside `ip netns exec`, which makes a mount namespace: the names of all pods are found in this one only.
WITH_HOSTS = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']


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
        for path, secret in self.secrets().items():
            args = [a.replace(f"={path}/", f"={work}/{secret}/") for a in args]
        self.process = subprocess.Popen([*prefix, *WITH_HOSTS, str(work / "hosts"), binary, *args],
                                        stdout=log, stderr=log)

    def secrets(self):
        """Their names, by where they are mounted."""
        volumes = {v["name"]: v["secret"]["secretName"] for v in pod_template(self.workload)["spec"]["volumes"]
                   if "secret" in v}
        return {m["mountPath"]: volumes[m["name"]] for m in self.container["volumeMounts"] if m["name"] in volumes}

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


def make_secrets(running, work):
    """As cert-manager makes them: tls.crt for the names of the pods that mount it, tls.key, ca.crt. For a client that
    is one of them: a TLS context of each, by name."""
    contexts = {}
    for secret in {s for r in running for s in r.secrets().values()}:
        folder = work / secret
        authority = Authority(folder)
        authority.sign(folder / "tls.crt", folder / "tls.key",
                       [f"DNS:{name}" for r in running if secret in r.secrets().values() for name in r.names().split()[1:]] +
                       [f"IP:{r.pod.ip}" for r in running if "router" in r.pod.name])
        authority.certificate.rename(folder / "ca.crt")
        contexts[secret] = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        contexts[secret].load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return contexts


def is_heard(host, port, context):
    """Whether an HTTP/2 client without a certificate gets an answer. `context` None: it speaks in clear."""
    with socket.create_connection((host, port), timeout=20) as raw:
        try:
            connection = context.wrap_socket(raw) if context else raw
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            # A server in clear begins with its settings; one that is not may only tell of the end.
            return connection.recv(9)[3:4] == b"\x04"
        except OSError:
            return False


def ask(objects, running, context):
    """A request to the Service that clients use; what it says. `context`: of a client with a certificate."""
    [service] = [o for o in objects if o["kind"] == "Service" and o["metadata"]["name"] == "switchyard"]
    selector = service["spec"]["selector"]
    [front] = [r for r in running if selector.items() <= r.pod.labels.items()]
    [port] = [p["port"] for p in service["spec"]["ports"] if p["name"] == "http"]
    url = f"{'https' if context else 'http'}://{front.pod.ip}:{port}/v1/completions"
    if context:
        nobody = ssl.create_default_context()
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        nobody.set_alpn_protocols(["h2"])
        assert get(url, {}, nobody)[0] == 0, "a client without a certificate was heard"
    for r in running:
        [grpc] = [p["containerPort"] for p in r.container["ports"] if p["name"] == "grpc"]
        for stranger in (None, nobody) if context else ():
            assert not is_heard(r.pod.ip, grpc, stranger), f"{r.pod.name} hears who shows no certificate"
        assert context or is_heard(r.pod.ip, grpc, None), f"{r.pod.name} hears nobody"
    status, text = get(url, {"prompt": "Once upon a time " * 40, "max_tokens": 8, "temperature": 0}, context)
    assert status == 200, (status, text)
    answer = json.loads(text)
    assert answer["usage"]["completion_tokens"] == 8, answer
    return answer["choices"][0]["text"]


def scrape(running):
    """Every rank shows its metrics outside its pod, at each port that is called so."""
    for r in running:
        for port in (p for p in r.container["ports"] if p["name"].startswith("metrics")):
            url = f"http://{r.pod.ip}:{port['containerPort']}/metrics"
            assert "switchyard_" in get(url)[1], f"{r.pod.name}: no metrics at {url}"


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
        contexts = make_secrets(running, work)
        for i, r in enumerate(running):
            r.start(binary, root / "models/fables-7m", objects, network.command(i), work, log)
        await_ready(running)
        scrape(running)
        text = ask(objects, running, contexts.get("switchyard-router-tls"))
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


def end_in_order(signal_number, frame):
    sys.exit(128 + signal_number)  # by way of every `finally`: no namespace is left


def main():
    signal.signal(signal.SIGTERM, end_in_order)
    root = pathlib.Path(sys.argv[1]).resolve().parent
    assert (root / "WORKSPACE").exists(), f"{root} is not a checkout"
    if not can_kustomize() or not may_make_namespaces():
        print("skipped: no kubectl with Kustomize 4.2 or later, or no right to make network namespaces")
        return
    texts = []
    for overlay in OVERLAYS:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as work:
            texts.append(run(root, overlay, os.path.abspath(sys.argv[2]), pathlib.Path(work)))
    assert len(set(texts)) == 1, f"the same request, another answer: {texts}"


if __name__ == "__main__":
    main()

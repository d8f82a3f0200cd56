#!/usr/bin/env python3
"""Whether deploy/ fits the binary, and its parts each other. usage: manifests_test.py README.md SWITCHYARD

README.md only says where the checkout is. The manifests need a kubectl with Kustomize 4.2 or later; without one their
part is skipped, and the output says so.
"""
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from asking import get
from overlays import LWS_GROUP, OVERLAYS, can_kustomize, config_text, pod_template, pods, render, service_of

GRACE_MARGIN_S = 3
DECODE_METRICS = 100  # from metrics-port-base
EXPOSURE_MAX = "20"  # of systemd-analyze security, of 100: "OK"
METRIC = re.compile(r"\bswitchyard_[a-z0-9_]+\b")

errors = []


def expect(condition, what):
    if not condition:
        errors.append(what)


class Binary:
    """The binary's commands, flags and opinions of configurations."""

    def __init__(self, path, model, work):
        self.path, self.model, self.work = path, model, work
        self._flags = {}

    def flags(self, command):
        if command not in self._flags:
            text = subprocess.run([self.path, command, "--help"], capture_output=True, text=True,
                                  check=True).stdout
            self._flags[command] = set(re.findall(r"^\s+(?:-\w,)?(--[a-z-]+)", text, re.M))
        return self._flags[command]

    # The configuration with a model that is here.
    def localised(self, text):
        out, count = re.subn(r"^model: .*$", f"model: {self.model}", text, flags=re.M)
        assert count == 1, "a configuration has one line `model: `"
        path = self.work / f"{len(list(self.work.iterdir()))}.yaml"
        path.write_text(out)
        return path

    # `arguments`: what the command line has besides the file.
    def check(self, text, arguments):
        done = subprocess.run([self.path, "check", self.localised(text), "--", *arguments], capture_output=True,
                              text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def expect_flags(self, where, arguments):
        for argument in arguments[1:]:
            if argument.startswith("--"):
                expect(argument.split("=")[0] in self.flags(arguments[0]),
                       f"{where}: `switchyard {arguments[0]}` has no {argument}")


def scalars(config):
    """The plain `key: value` lines of a configuration."""
    return dict(re.findall(r"^([a-z-]+): *(\S+)$", config, re.M))


def addresses(config, key):
    match = re.search(rf"^{key}:((?:\n  - \S+)*)", config, re.M)
    return re.findall(r"- (\S+)", match[1]) if match else []


# ---- configurations, units, image

def test_configs(root, binary):
    files = sorted((root / "deploy").rglob("config/*.yaml")) + sorted((root / "deploy/systemd").glob("*.yaml"))
    files = [f for f in files if f.name != "kustomization.yaml"]
    assert len(files) >= 6, files
    for file in files:
        # What the manifest gives on the command line.
        arguments = ["--advertise-host=pod"] if file.stem == "decode" else []
        code, said = binary.check(file.read_text(), arguments)
        expect(code == 0, f"{file.relative_to(root)}: {said}")
        code, said = binary.check(file.read_text().replace("drain-seconds", "drain-second"), arguments)
        expect(code != 0 and "drain-seconds" in said, f"{file.name}: a wrong key is not found: {said}")


def test_units(root, binary):
    units = sorted((root / "deploy/systemd").glob("*.service"))
    assert len(units) == 3, units
    for unit in units:
        text = unit.read_text()
        command = re.search(r"^ExecStart=/usr/bin/switchyard (.*)$", text, re.M)[1].split()
        binary.expect_flags(unit.name, command)
        config = pathlib.Path(command[command.index("--config") + 1]).name
        keys = scalars((unit.parent / config).read_text())
        expect(keys["role"] == command[0], f"{unit.name}: {config} is for {keys['role']}")
        stop = float(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)[1])
        expect(stop >= float(keys["drain-seconds"]) + GRACE_MARGIN_S, f"{unit.name}: killed while it drains")
        if shutil.which("systemd-analyze") is None:
            print("skipped: systemd-analyze is not here")
            continue
        copy = binary.work / unit.name
        copy.write_text(text.replace("/usr/bin/switchyard ", f"{binary.path} "))
        done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
        expect(done.returncode == 0 and unit.stem not in done.stderr, f"{unit.name}: {done.stderr}")
        done = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--no-pager",
                               f"--threshold={EXPOSURE_MAX}", copy], capture_output=True, text=True, check=False)
        expect(done.returncode == 0, f"{unit.name}: {done.stdout.strip().splitlines()[-1:]}{done.stderr}")
    # Every rank that the router of one machine dials is the instance of a unit.
    router = (root / "deploy/systemd/router.yaml").read_text()
    for role in ("prefill", "decode"):
        port = re.search(r" --port=(\d+)%i", (root / f"deploy/systemd/switchyard-{role}@.service").read_text())[1]
        listed = re.search(rf"^{role}-address: (\[.*\])$", router, re.M)[1]
        for i, address in enumerate(json.loads(listed)):
            expect(address.endswith(f":{port}{i}"), f"systemd/router.yaml: {address} is no {role} rank")
        # And Prometheus asks each of them.
        shown = re.search(r" --metrics-port=(\d+)%i", (root / f"deploy/systemd/switchyard-{role}@.service").read_text())[1]
        scraped = re.search(rf"job_name: switchyard-{role}\n.*\n.*targets: (\[.*\])$",
                            (root / "deploy/monitoring/prometheus.yaml").read_text(), re.M)[1]
        wanted = [f"127.0.0.1:{shown}{i}" for i in range(len(json.loads(listed)))]
        expect(json.loads(scraped) == wanted, f"prometheus.yaml: {scraped}, wanted {wanted}")


def test_image(root, binary):
    text = (root / "deploy/Dockerfile").read_text()
    for image in re.findall(r"^FROM (\S+)", text, re.M):
        expect(re.fullmatch(r"debian:12\.\d+-slim", image), f"Dockerfile: {image} is not pinned")
    runtime = set(text.rsplit("FROM", 1)[1].split())
    if shutil.which("dpkg-query") is None or shutil.which("readelf") is None:
        print("skipped: dpkg-query or readelf is not here")
        return
    dynamic = subprocess.run(["readelf", "-d", binary.path], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(\S+)\]", dynamic))
    expect("libucp.so.0" in needed, "the binary does not need UCX?")
    owners = subprocess.run(["dpkg-query", "-S", *(f"*/{lib}" for lib in needed)], capture_output=True, text=True,
                            check=False).stdout
    given = {"libc6", "libgcc-s1", "libasan8", "libubsan1", "libtsan2"}  # the base image's; sanitizers'
    for lib in sorted(needed):
        packages = set(re.findall(rf"^([^:,\s]+)(?::\w+)?: \S*/{re.escape(lib)}$", owners, re.M))
        expect(not packages or packages & (runtime | given), f"Dockerfile: {lib} of {packages} is not installed")


# ---- manifests

class Overlay:
    def __init__(self, name, objects, binary):
        self.name, self.objects, self.binary = name, objects, binary
        self.of = {}
        for o in objects:
            self.of.setdefault(o["kind"], {})[o["metadata"]["name"]] = o
        self.workloads = {name: w for kind in ("Deployment", "StatefulSet", "LeaderWorkerSet")
                          for name, w in self.of.get(kind, {}).items()}

    def expect(self, condition, what):
        expect(condition, f"{self.name}: {what}")

    def matches(self, selector):
        return [w for w in self.workloads.values()
                if selector.items() <= pod_template(w)["metadata"]["labels"].items()]

    def test(self):
        self.expect(self.workloads, "has no workloads")
        self.expect("Secret" not in self.of, "has a Secret: they belong elsewhere")
        for name, workload in self.workloads.items():
            self.workload(name, workload)
        for name, service in self.of.get("Service", {}).items():
            targets = self.matches(service["spec"]["selector"])
            self.expect(len(targets) == 1, f"Service {name} has {len(targets)} targets")
            for port in service["spec"]["ports"]:
                opened = self.ports(targets[0])
                self.expect(opened.get(port["targetPort"]) == port["port"], f"Service {name}: {port}")
        for kind in ("PodDisruptionBudget", "NetworkPolicy"):
            for name, o in self.of.get(kind, {}).items():
                selector = o["spec"].get("selector") or o["spec"]["podSelector"]
                self.expect(self.matches(selector["matchLabels"]), f"{kind} {name} selects nothing")
        for workload in self.workloads.values():
            selected = [p for p in self.of["NetworkPolicy"].values() if workload in
                        self.matches(p["spec"]["podSelector"]["matchLabels"])]
            self.expect(selected, f"{workload['metadata']['name']} has no NetworkPolicy")
        for name, policy in self.of["NetworkPolicy"].items():
            self.policy(name, policy["spec"])
        for name, o in self.of.get("HorizontalPodAutoscaler", {}).items():
            target = o["spec"]["scaleTargetRef"]
            self.expect(target["name"] in self.of[target["kind"]], f"{name} scales nothing")
            self.expect("replicas" not in self.workloads[target["name"]]["spec"],
                        f"{target['name']}: an autoscaler and replicas")

    def ports(self, workload):
        container = pod_template(workload)["spec"]["containers"][0]
        return {p["name"]: p["containerPort"] for p in container["ports"]}

    def policy(self, name, spec):
        opened = self.matches(spec["podSelector"]["matchLabels"])
        for rule in spec.get("ingress", []):
            for port in rule["ports"]:
                if "endPort" in port:
                    continue
                for workload in opened:
                    ports = self.ports(workload)
                    self.expect(port["port"] in ports or port["port"] in ports.values(),
                                f"NetworkPolicy {name}: {port}")
            for peer in rule.get("from", []):
                self.expect(self.matches(peer["podSelector"]["matchLabels"]), f"NetworkPolicy {name}: {peer}")

    def workload(self, name, workload):
        template = pod_template(workload)
        labels, pod = template["metadata"]["labels"], template["spec"]
        # A LeaderWorkerSet selects by labels of its own.
        selected = workload["spec"].get("selector", {"matchLabels": {}})["matchLabels"]
        self.expect(selected.items() <= labels.items(), f"{name} does not select its pods")
        [container] = pod["containers"]
        args = container["args"]
        self.binary.expect_flags(f"{self.name}: {name}", args)
        if "--config" not in args:
            self.expect(False, f"{name} has no configuration")
            return
        config = config_text(self.objects, workload, args[args.index("--config") + 1])
        # What is on the command line goes before the file.
        keys = {**scalars(config), **dict(a[2:].split("=", 1) for a in args if a.startswith("--") and "=" in a)}
        self.expect(keys["role"] == args[0], f"{name}: `{args[0]}` with the configuration of {keys['role']}")
        self.expect(keys["host"] == "0.0.0.0", f"{name} listens at {keys['host']}")
        # Without the files that only the pod has.
        places = ("--host", "--port", "--grpc-port", "--metrics-port", "--advertise-host")
        code, said = self.binary.check(config, [a for a in args if a.split("=")[0] in places])
        self.expect(code == 0, f"{name}: {said}")

        want = ({"grpc": "port", "metrics": "metrics-port"} if args[0] in ("prefill", "decode")
                else {"http": "port", "grpc": "grpc-port",
                      **({"metrics": "metrics-port"} if "metrics-port" in keys else {})})
        wanted = {n: int(keys[k]) for n, k in want.items()}
        if args[0] == "serve":  # a rank of each role
            base = int(keys["metrics-port-base"])
            wanted |= {"metrics-prefill": base, "metrics-decode": base + DECODE_METRICS}
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        self.expect(ports == wanted, f"{name}: ports {ports}, {keys}")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            [handler] = [v for k, v in container[probe].items() if k in ("httpGet", "tcpSocket", "grpc")]
            self.expect(handler["port"] in ports or handler["port"] in ports.values(), f"{name}: {probe} {handler}")
        scraped = template["metadata"].get("annotations", {}).get("prometheus.io/port")
        shown = ports.get("metrics", ports.get("http"))
        self.expect(scraped is not None or args[0] == "serve", f"{name} is not scraped")
        self.expect(scraped is None or int(scraped) == shown, f"{name}: prometheus.io/port {scraped}")

        sleep = float(container.get("lifecycle", {}).get("preStop", {"exec": {"command": ["0"]}})
                      ["exec"]["command"][-1])
        self.expect(pod["terminationGracePeriodSeconds"] >= sleep + float(keys["drain-seconds"]) + GRACE_MARGIN_S,
                    f"{name} is killed while it drains")
        if "cpu" in container["resources"].get("limits", {}):
            self.expect(container["resources"]["limits"]["cpu"] == keys["threads"], f"{name}: threads, CPU limit")
        self.hardened(name, pod, container)
        self.secrets(name, pod, container, keys)
        for spread in pod.get("topologySpreadConstraints", []):
            self.expect(spread["labelSelector"]["matchLabels"].items() <= labels.items(), f"{name} spreads others")
        for role in ("prefill", "decode"):
            if args[0] == "router":
                given = [a.split("=")[1].split(",") for a in args if a.startswith(f"--{role}-address=")]
                self.addresses(role, given[0] if given else addresses(config, f"{role}-address"))

    def hardened(self, name, pod, container):
        security = {**pod["securityContext"], **container["securityContext"]}
        for key, value in {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
                           "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}.items():
            self.expect(security.get(key) == value, f"{name}: {key} is {security.get(key)}")
        self.expect(pod["automountServiceAccountToken"] is False, f"{name} gets a token")
        self.expect(pod["serviceAccountName"] in self.of["ServiceAccount"], f"{name}: no such ServiceAccount")
        for mount in container["volumeMounts"]:
            self.expect(mount.get("readOnly") or mount["mountPath"] == "/dev/shm", f"{name} may write {mount}")

    # Each certificate that a flag names is a file of a Secret. Who shows none, as probes, is asked in clear.
    def secrets(self, name, pod, container, keys):
        secret = {v["name"] for v in pod["volumes"] if "secret" in v}
        mounted = {m["mountPath"] for m in container["volumeMounts"] if m["name"] in secret}
        files = {k: f for k, f in keys.items() if "ssl-" in k}
        self.expect(mounted == {f.rsplit("/", 1)[0] for f in files.values()}, f"{name}: {files}, Secrets at {mounted}")
        if "ssl-ca-certs" in files:
            probed = {container[p]["httpGet"]["port"] for p in ("startupProbe", "livenessProbe", "readinessProbe")}
            self.expect(probed == {"metrics"}, f"{name}: probes of {probed} have no certificate")

    # The router's list is the pool at its largest, name by name.
    def addresses(self, role, listed):
        [pool] = [w for w in self.workloads.values() if pod_template(w)["spec"]["containers"][0]["args"][0] == role]
        name, service = pool["metadata"]["name"], service_of(pool)
        self.expect(self.of["Service"][service]["spec"]["clusterIP"] == "None", f"Service {service} has an address")
        scalers = [h["spec"]["maxReplicas"] for h in self.of.get("HorizontalPodAutoscaler", {}).values()
                   if h["spec"]["scaleTargetRef"]["name"] == name]
        most = scalers[0] if scalers else pool["spec"]["replicas"]
        wanted = [f"{p.name}.{service}:{self.ports(pool)['grpc']}" for p in pods(pool, most)]
        self.expect(listed == wanted if scalers else set(listed) >= set(wanted), f"{role}: {listed}, wanted {wanted}")
        if pool["kind"] == "LeaderWorkerSet":
            for pod in pods(pool, most):
                self.group(pool, pod)

    # What a rank is told of its group.
    def group(self, pool, pod):
        given = dict(a[2:].split("=") for a in pod.args(pool) if a.startswith("--ep-"))
        size = pool["spec"]["leaderWorkerTemplate"]["size"]
        port, group = self.ports(pool)["grpc"], pod.labels[LWS_GROUP]
        peers = [f"{p.name}.{service_of(pool)}:{port}" for p in pods(pool, int(group) + 1) if p.labels[LWS_GROUP] == group]
        self.expect(given["ep-peers"].split(",") == peers and len(peers) == size, f"{pod.name}: {given}, wanted {peers}")
        self.expect(peers[int(given["ep-rank"])].split(".")[0] == pod.name, f"{pod.name} takes itself for {given['ep-rank']}")


# ---- the configurations, run

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def await_true(what, condition, limit_s=240):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.05)


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_running(root, binary, metrics_used, paths_used):
    """Two routers share the pools, as in base; probes and metrics are those that the manifests name."""
    configs = {r: binary.localised((root / f"deploy/config/{r}.yaml").read_text())
               for r in ("router", "prefill", "decode")}
    processes = []

    def start(role, *flags):
        processes.append(subprocess.Popen(
            [binary.path, role, "--config", configs[role], "--host=127.0.0.1", "--drain-seconds=5", *flags]))
        return processes[-1]

    try:
        ports = {role: free_port() for role in ("prefill", "decode")}
        metrics_ports = {role: free_port() for role in ("prefill", "decode")}
        for role, port in ports.items():
            start(role, f"--port={port}", f"--metrics-port={metrics_ports[role]}", "--kv-net-devices=lo", "--threads=1",
                  "--advertise-host=localhost")
        urls = []
        for _ in range(2):
            http = free_port()
            # By name, as in the manifests; the second prefill and decode rank never come.
            start("router", f"--port={http}", "--grpc-port=0", "--disaggregate=always",
                  *(f"--{role}-address=localhost:{port},{role}-1.invalid:9000" for role, port in ports.items()))
            urls.append(f"http://127.0.0.1:{http}")
        for port in ports.values():
            await_true("a rank listens", lambda p=port: listens(p))
        for port in metrics_ports.values():
            for path in paths_used | {"/metrics"}:
                await_true(f"a rank serves {path}", lambda u=f"http://127.0.0.1:{port}{path}": get(u)[0] == 200)
        for url in urls:
            await_true("a router is ready", lambda u=url: get(u + "/readyz")[0] == 200)
            for path in paths_used | {"/metrics"}:
                expect(get(url + path)[0] == 200, f"{path}: {get(url + path)}")
            status, text = get(url + "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 4})
            expect(status == 200 and '"kv_lane":"tcp"' in text.replace(" ", ""), f"{url}: {status} {text}")
        offered = set(METRIC.findall("".join(
            get(f"{url}/metrics")[1] for url in [urls[0], *(f"http://127.0.0.1:{p}" for p in metrics_ports.values())])))
        expect(metrics_used <= offered, f"metrics that nobody offers: {sorted(metrics_used - offered)}")
        # A router without decode ranks is alive and not ready.
        processes[1].terminate()
        expect(processes[1].wait(60) == 0, "the decode rank did not end well")
        await_true("routers know that no decode rank is left", lambda: get(urls[0] + "/readyz")[0] == 503)
        expect(get(urls[0] + "/health")[0] == 200, "a router without ranks is not alive")
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                expect(process.wait(60) == 0, f"{process.args[1]} ended with {process.returncode}")
            except subprocess.TimeoutExpired:
                process.kill()
                errors.append(f"{process.args[1]} did not end")


def main():
    root = pathlib.Path(sys.argv[1]).resolve().parent
    assert (root / "WORKSPACE").exists(), f"{root} is not a checkout"
    metrics = set(METRIC.findall((root / "docs/deploy.md").read_text()))
    paths = {"/health", "/readyz"}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as work:
        binary = Binary(os.path.abspath(sys.argv[2]), root / "models/fables-7m", pathlib.Path(work))
        test_configs(root, binary)
        test_units(root, binary)
        test_image(root, binary)
        if can_kustomize():
            for name in OVERLAYS:
                try:
                    objects = render(root, name)
                except ValueError as e:
                    errors.append(str(e))
                    continue
                overlay = Overlay(name, objects, binary)
                overlay.test()
                metrics |= {m["external"]["metric"]["name"]
                            for h in overlay.of.get("HorizontalPodAutoscaler", {}).values()
                            for m in h["spec"]["metrics"]}
                paths |= set(re.findall(r'"httpGet": \{"path": "([^"]+)"', json.dumps(objects)))
        else:
            print("skipped: the manifests; no kubectl with Kustomize 4.2 or later")
        if not errors:  # what does not fit would only be waited for
            test_running(root, binary, metrics, paths)
    print("\n".join(errors) or "deploy/ is in order")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

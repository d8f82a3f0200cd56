"""What `deploy/`'s overlays render to, and the pods that a cluster would make of them. Standard library and kubectl."""
import dataclasses
import re
import shutil
import subprocess

import kustomize_yaml

OVERLAYS = ("base", "overlays/single-node", "overlays/pools", "overlays/expert-parallel", "overlays/spot",
            "overlays/mtls", "overlays/tracing")
KUSTOMIZE_MIN = (4, 2)  # which brought `replacements`
LWS_GROUP = "leaderworkerset.sigs.k8s.io/group-index"
LWS_WORKER = "leaderworkerset.sigs.k8s.io/worker-index"


def can_kustomize():
    if shutil.which("kubectl") is None:
        return False
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True,
                          check=False)
    version = re.search(r'"kustomizeVersion": "v(\d+)\.(\d+)', done.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= KUSTOMIZE_MIN


def render(root, overlay):
    """The objects. ValueError: it does not render, or only with warnings."""
    done = subprocess.run(["kubectl", "kustomize", root / "deploy" / overlay], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0 or done.stderr:
        raise ValueError(f"{overlay} does not render: {done.stderr}")
    return kustomize_yaml.load_all(done.stdout)


def pod_template(workload):
    spec = workload["spec"]
    return spec["leaderWorkerTemplate"]["workerTemplate"] if workload["kind"] == "LeaderWorkerSet" else spec["template"]


def service_of(workload):
    """Under whose name the pods' names are found. A LeaderWorkerSet makes one of its own name, if there is none."""
    return workload["spec"].get("serviceName", workload["metadata"]["name"])


@dataclasses.dataclass
class Pod:
    name: str
    labels: dict
    ip: str = "192.0.2.1"

    def environment(self, workload):
        fields = {"status.podIP": self.ip, "metadata.name": self.name, **{f"metadata.labels['{k}']": v for k, v in self.labels.items()}}
        return {e["name"]: fields[e["valueFrom"]["fieldRef"]["fieldPath"]]
                for e in pod_template(workload)["spec"]["containers"][0].get("env", [])}

    def args(self, workload):
        """The container's, with $(NAME) replaced as the kubelet does."""
        environment = self.environment(workload)
        [container] = pod_template(workload)["spec"]["containers"]
        return [re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], a) for a in container["args"]]


def pods(workload, replicas):
    """As their controllers name and label them."""
    name, labels = workload["metadata"]["name"], pod_template(workload)["metadata"]["labels"]
    if workload["kind"] != "LeaderWorkerSet":
        return [Pod(f"{name}-{i}", labels) for i in range(replicas)]
    return [Pod(f"{name}-{g}" + (f"-{w}" if w > 0 else ""), {**labels, LWS_GROUP: str(g), LWS_WORKER: str(w)})
            for g in range(replicas) for w in range(workload["spec"]["leaderWorkerTemplate"]["size"])]


def config_text(objects, workload, path):
    """What the container finds in a file of a ConfigMap."""
    folder, name = str(path).rsplit("/", 1)
    pod = pod_template(workload)["spec"]
    volume = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}[folder]
    [source] = [v["configMap"]["name"] for v in pod["volumes"] if v["name"] == volume]
    [data] = [o["data"] for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == source]
    return data[name]

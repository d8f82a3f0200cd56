#!/usr/bin/env python3
"""Every object of every overlay against Kubernetes' own JSON schemas, strictly: the oldest version that docs/deploy.md
names and the newest that the package carries. usage: schemas_test.py README.md

Run by //tests/clients:run.sh, which installs the package `kubernetes-validate`. LeaderWorkerSets are none of Kubernetes'
own kinds: their fields follow the rules of the published CRD (leaderworkerset.x-k8s.io/v1). README.md only says where the
checkout is.
"""
import copy
import pathlib
import sys

import jsonschema
import kubernetes_validate

from overlays import OVERLAYS, can_kustomize, pod_template, render

OLDEST = "1.25"

_TEMPLATE = {"type": "object"}  # checked as a Pod
_COUNT = {"type": "integer", "minimum": 0}
_SHARE = {"anyOf": [_COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]}


def _object(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


LEADER_WORKER_SET = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "leaderworkerset.x-k8s.io/v1"},
    kind={"const": "LeaderWorkerSet"},
    metadata={"type": "object"},
    spec=_object(
        ("leaderWorkerTemplate",),
        replicas=_COUNT,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        networkConfig=_object(("subdomainPolicy",), subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
        rolloutStrategy=_object(
            ("type",), type={"const": "RollingUpdate"},
            rollingUpdateConfiguration=_object(partition=_COUNT, maxSurge=_SHARE, maxUnavailable=_SHARE)),
        leaderWorkerTemplate=_object(
            ("workerTemplate",), leaderTemplate=_TEMPLATE, workerTemplate=_TEMPLATE,
            size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": ["Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
            subGroupPolicy=_object(subGroupPolicyType={"enum": ["LeaderWorker", "LeaderExcluded"]},
                                   subGroupSize={"type": "integer"}))))


def problem(thing, version):
    """What is wrong with an object, or None."""
    try:
        if thing["kind"] == "LeaderWorkerSet":
            jsonschema.validate(thing, LEADER_WORKER_SET)
            template = pod_template(thing)
            thing = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
        kubernetes_validate.validate(thing, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as e:
        return f"{'.'.join(str(p) for p in e.absolute_path)}: {e.message}"
    except kubernetes_validate.SchemaNotFoundError as e:
        return e.message
    return None


def test_finds(workload):
    """The schemas are looked into: what is wrong is found, in the pods too."""
    for path, value in (("spec.replicas", "two"), ("spec.replica", 2)):
        spoiled = copy.deepcopy(workload)
        spoiled["spec"][path.rsplit(".", 1)[1]] = value
        assert problem(spoiled, OLDEST), (workload["kind"], path)
    for key, value in (("terminationGracePeriodSeconds", "75"), ("terminationGrace", 75), ("containers", None)):
        spoiled = copy.deepcopy(workload)
        pod_template(spoiled)["spec"][key] = value
        assert problem(spoiled, OLDEST), (workload["kind"], key)


def main():
    root = pathlib.Path(sys.argv[1]).resolve().parent
    assert (root / "WORKSPACE").exists(), f"{root} is not a checkout"
    if not can_kustomize():
        print("skipped: no kubectl with Kustomize 4.2 or later")
        return
    newest = kubernetes_validate.latest_version()
    seen, wrong = set(), []
    for overlay in OVERLAYS:
        for thing in render(root, overlay):
            name = f"{overlay}: {thing['kind']} {thing['metadata']['name']}"
            if thing["kind"] not in seen and thing["kind"] in ("Deployment", "StatefulSet", "LeaderWorkerSet"):
                test_finds(thing)
            seen.add(thing["kind"])
            wrong += [f"{name}: Kubernetes {v}: {p}" for v in (OLDEST, newest) for p in [problem(thing, v)] if p]
    assert not wrong, "\n".join(wrong)
    print(f"{', '.join(sorted(seen))}: as Kubernetes {OLDEST} and {newest} have them")


if __name__ == "__main__":
    main()

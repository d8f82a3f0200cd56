#!/usr/bin/env python3
"""Whether docs/ says what is there: links, keys, series, runbooks, errors, the API. usage: docs_test.py README.md SWITCHYARD

README.md only says where the checkout is.
"""
import pathlib
import re
import subprocess
import sys

ROLES = ("serve", "router", "prefill", "decode")
NOT_KEYS = {"help", "config"}
SERIES_SOURCES = ("router/metrics.cc", "engine/worker_metrics.cc", "prefill/handoff_metrics.cc",
                  "decode/receiver_metrics.cc")

errors = []


def expect(condition, what):
    if not condition:
        errors.append(what)


def anchors(text):
    """GitHub's, of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links(root):
    for file in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
            if target.startswith(("http://", "https://")):
                continue
            path, _, anchor = target.partition("#")
            to = (file.parent / path).resolve() if path else file
            expect(to.exists(), f"{file.name}: {target} is not there")
            if to.exists() and anchor:
                expect(anchor in anchors(to.read_text()), f"{file.name}: {target} has no such heading")
    reachable = (root / "README.md").read_text() + (root / "docs/operate.md").read_text()
    for file in sorted((root / "docs").glob("*.md")):
        expect(f"{file.name})" in reachable or f"{file.name}#" in reachable, f"README.md does not name docs/{file.name}")


def test_runbooks(root):
    for target in re.findall(r"runbook: (\S+)", (root / "deploy/monitoring/rules.yaml").read_text()):
        path, _, anchor = target.partition("#")
        expect(anchor in anchors((root / path).read_text()), f"rules.yaml: {target} has no such heading")


def test_keys(root, binary):
    rows = re.findall(r"^\| (`[^|]+) \|", (root / "docs/configure.md").read_text(), re.M)
    documented = {key for row in rows for key in re.findall(r"`([a-z-]+)`", row)}
    flags = set()
    for role in ROLES:
        text = subprocess.run([binary, role, "--help"], capture_output=True, text=True, check=True).stdout
        flags |= {f[2:] for f in re.findall(r"^\s+(?:-\w,)?(--[a-z-]+)", text, re.M)}
    documented -= {"role"}
    expect(documented <= flags, f"configure.md: no such keys: {sorted(documented - flags)}")
    missing = flags - documented - NOT_KEYS
    expect(not missing, f"configure.md does not say what these are: {sorted(missing)}")


def test_series(root):
    rows = re.findall(r"^\| (`[^|]+) \| (?:gauge|counter|histogram)", (root / "docs/operate.md").read_text(), re.M)
    documented = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)", row)}
    exported = set()
    for source in SERIES_SOURCES:
        code = (root / source).read_text()
        series = set(re.findall(r"(?:Gauge|Counter|Histogram|Seconds)\(\s*\"([a-z0-9_]+)\"", code))
        expect(series, f"{source} exports nothing")
        exported |= series
    expect(exported <= documented, f"operate.md does not say what these are: {sorted(exported - documented)}")
    expect(documented <= exported, f"operate.md: no such series: {sorted(documented - exported)}")


def test_errors(root):
    """HTTP statuses, types and gRPC codes of the catalogue, and of the code."""
    rows = re.findall(r"^\| ([A-Z_]*) *\| ([0-9, ]*) *\| (?:`(\w+)`)? *\|", (root / "docs/errors.md").read_text(), re.M)
    code = "".join(f.read_text() for folder in ("router/http", "common/net") for f in sorted((root / folder).glob("*.cc"))
                   if not f.name.endswith("_test.cc"))
    statuses = set(re.findall(r"(?:HttpError\(\s*|http = )([45]\d\d)\b", code))
    documented = {s for _, cell, _ in rows for s in cell.replace(",", " ").split()}
    expect(statuses == documented, f"errors.md: HTTP statuses {sorted(statuses ^ documented)} are in one of code and table")
    types = set(re.findall(r"\"(\w+_error)\"", code))
    named = {kind for _, _, kind in rows if kind}
    expect(types == named, f"errors.md: types {sorted(types ^ named)} are in one of code and table")
    codes = set()
    for file in sorted((root / "router").glob("*.cc")):
        if not file.name.endswith(("_test.cc", "_fuzz.cc")):
            codes |= set(re.findall(r"absl::(\w+)Error\(", file.read_text()))
    codes = {re.sub(r"(?<!^)([A-Z])", r"_\1", c).upper() for c in codes}
    grpc = set(re.findall(r"^\| ([A-Z_]+) \|", (root / "docs/errors.md").read_text(), re.M))
    expect(codes <= grpc, f"errors.md does not name {sorted(codes - grpc)}")


def test_api(root):
    made = subprocess.run([sys.executable, "-B", root / "docs/make_grpc.py", root / "proto/inference.proto"],
                          capture_output=True, text=True, check=True).stdout
    expect(made == (root / "docs/grpc.md").read_text(),
           "docs/grpc.md is old: docs/make_grpc.py proto/inference.proto > docs/grpc.md")


def main():
    root, binary = pathlib.Path(sys.argv[1]).resolve().parent, sys.argv[2]
    assert (root / "WORKSPACE").exists(), f"{root} is not a checkout"
    test_links(root)
    test_runbooks(root)
    test_keys(root, binary)
    test_series(root)
    test_errors(root)
    test_api(root)
    print("\n".join(errors) or "docs/ is in order")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

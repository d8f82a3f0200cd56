#!/usr/bin/env python3
"""The house rules that a machine can check: floors, file sizes, formatting.

A folder includes lower floors only, never a sibling (docs/architecture.md). usage: layering_test.py README.md [clang-format]
README.md only says where the checkout is.
"""
import pathlib
import re
import subprocess
import sys

FLOORS = {
    "common": 0,
    "proto": 1, "kernels": 1,
    "kvcache": 2, "text": 2, "cluster": 2,
    "moe": 3,
    "model": 4, "kvtransfer": 4,
    "engine": 5,
    "router": 6, "prefill": 6, "decode": 6, "bench": 6,
    "cli": 7,
    "tests": 8,
}
DATA = ("third_party", "models", "deploy")
LINES_MAX = {".h": 200, ".cc": 400}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([a-z_]+)/', re.M)
DEPENDENCY = re.compile(r'"//(?!tests/data:)([a-z_]+)[/:]')


def sources(root):
    for folder in FLOORS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".h", ".cc", ".cu", ".cuh") or path.name == "BUILD":
                yield folder, path


def layering_errors(root):
    for folder, path in sources(root):
        text = path.read_text()
        pattern = DEPENDENCY if path.name == "BUILD" else INCLUDE
        for used in pattern.findall(text):
            if used in DATA or not (root / used).is_dir():
                continue  # data, or a library of the system
            if used not in FLOORS:
                yield f"{path.relative_to(root)}: uses {used}/, which has no floor"
            elif used != folder and FLOORS[used] >= FLOORS[folder]:
                yield (f"{path.relative_to(root)}: {folder}/ (floor {FLOORS[folder]}) may not use "
                       f"{used}/ (floor {FLOORS[used]})")


def size_errors(root):
    for _, path in sources(root):
        lines = path.read_text().count("\n")
        limit = LINES_MAX.get(path.suffix, lines)
        if lines > limit and not path.stem.endswith("_test"):
            yield f"{path.relative_to(root)}: {lines} lines, the limit is {limit}"


def format_errors(root, clang_format):
    files = [str(p) for _, p in sources(root) if p.suffix in (".h", ".cc")]
    done = subprocess.run([clang_format, "--dry-run", "-Werror", *files], capture_output=True,
                          text=True, cwd=root)
    return [line for line in done.stderr.splitlines() if "error:" in line]


def main():
    root = pathlib.Path(sys.argv[1]).resolve().parent
    assert (root / "WORKSPACE").exists(), f"{root} is not a checkout"
    assert sum(1 for _ in sources(root)) > 50, "found too few sources to be looking at the right place"
    errors = list(layering_errors(root)) + list(size_errors(root))
    if len(sys.argv) > 2:
        errors += format_errors(root, sys.argv[2])
    print("\n".join(errors) or "layering, sizes and format are in order")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

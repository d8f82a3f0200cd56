#!/usr/bin/env bash
# Runs one Python test with its arguments; __pycache__ stays out of the tree.
set -euo pipefail
# Bazel starts this in the root of the runfiles. Leaks of Debian's own libraries are not ours to mend.
LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_libraries.txt:print_suppressions=0
export LSAN_OPTIONS
exec python3 -B "$@"

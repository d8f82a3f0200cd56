#!/usr/bin/env bash
# run.sh TEST.py BINARY MODEL: runs a test with the clients of requirements.txt, installed from PyPI into a virtual
# environment: SWITCHYARD_CLIENTS_VENV, which is kept, or one of the test's own. Without PyPI it says so and passes.
set -euo pipefail
# Bazel starts this in the root of the runfiles. Leaks of Debian's own libraries are not ours to mend.
LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_libraries.txt:print_suppressions=0
export LSAN_OPTIONS
here=$(cd "$(dirname "$0")" && pwd)
venv=${SWITCHYARD_CLIENTS_VENV:-$(mktemp -d)/venv}
[[ -n ${SWITCHYARD_CLIENTS_VENV:-} ]] || trap 'rm -rf "$(dirname "$venv")"' EXIT

if ! "$venv/bin/python3" -c 'import grpc, grpc_reflection, openai, tokenizers' 2>/dev/null; then
  python3 -m venv "$venv"
  if ! "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 2 -r "$here/requirements.txt"; then
    if "$venv/bin/python3" -c 'import urllib.request as u; u.urlopen("https://pypi.org/simple/openai/", timeout=10)' \
        2>/dev/null; then
      echo "FAILED: PyPI answers, but the clients cannot be installed"
      exit 1
    fi
    echo "SKIPPED: PyPI cannot be reached, so its packages are not here"
    exit 0
  fi
fi
"$venv/bin/python3" -B "$@"

#!/usr/bin/env bash
# run.sh TEST.py ARGUMENTS…: runs a test with the packages of the requirements.txt beside it, installed from PyPI into a
# virtual environment: SWITCHYARD_CLIENTS_VENV, which is kept, or one of the test's own. Without PyPI it passes, and its log
# says "skipped: …", which run_tests.sh counts.
set -euo pipefail
# Bazel starts this in the root of the runfiles. Leaks of Debian's own libraries are not ours to mend.
LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_libraries.txt:print_suppressions=0
export LSAN_OPTIONS
venv=${SWITCHYARD_CLIENTS_VENV:-$(mktemp -d)/venv}
[[ -n ${SWITCHYARD_CLIENTS_VENV:-} ]] || trap 'rm -rf "$(dirname "$venv")"' EXIT

[[ -x $venv/bin/python3 ]] || python3 -m venv "$venv"
if ! "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 4 -r "$(dirname "$1")/requirements.txt"; then
  # Its files lie on another host than its index.
  if "$venv/bin/python3" -c 'import urllib.request as u
for host in ("pypi.org", "files.pythonhosted.org"): u.urlopen(f"https://{host}/", timeout=10)' 2>/dev/null; then
    echo "FAILED: PyPI answers, but the packages cannot be installed"
    exit 1
  fi
  echo "skipped: all of $(basename "$1"): PyPI cannot be reached, so its packages are not here"
  exit 0
fi
"$venv/bin/python3" -B "$@"

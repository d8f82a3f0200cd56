#!/usr/bin/env bash
# Installs what is missing (Debian packages), builds, and runs every test: optimised, with AddressSanitizer and
# UndefinedBehaviorSanitizer, with ThreadSanitizer (what does not link gRPC), and some seconds of every fuzzer. Where
# nvcc is, the CUDA backend is compiled and linked.
# The last line says how many passed; before it stands what tests left out for want of a tool (kubectl) or of PyPI.
# usage: run_tests.sh [--fast]     --fast: optimised only
set -uo pipefail
cd "$(dirname "$0")" || exit 1

deploy/install_packages.sh --test || exit 1

passed=0
failed=0
skipped=$(mktemp)
trap 'rm -f "$skipped"' EXIT

# count NAME COMMAND…: one check that is not a Bazel test.
count() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}

# suite NAME TARGETS FLAGS…: these Bazel tests in one configuration. First everything is built: no test with a clock shall
# run beside compilers.
suite() {
  local name=$1 targets=$2 log
  shift 2
  echo "==> tests: $name"
  log=$(mktemp)
  local command status
  for command in build test; do
    bazel "$command" --keep_going --noshow_progress --color=no "$@" -- "$targets" 2>&1 | grep -v 'linux-sandbox' | tee "$log"
    status=${PIPESTATUS[0]}
  done
  local ok bad
  ok=$(grep -cE '^//\S+ +(\(cached\) )?PASSED' "$log")
  bad=$(grep -cE '^//\S+ +(\(cached\) )?(FAILED|TIMEOUT|NO STATUS|FLAKY)' "$log")
  # A build error fails the run even if no test of its own shows it.
  [[ $status -ne 0 && $bad -eq 0 ]] && bad=1
  passed=$((passed + ok))
  failed=$((failed + bad))
  echo "==> $name: $ok passed, $bad failed"
  rm -f "$log"
  grep -rhiE '^skipped:' --include=test.log "$(bazel info "$@" bazel-testlogs 2>/dev/null)" >>"$skipped"
}

# cuda: compiles and links the CUDA backend, and looks at its machine code; its device tests start, and say that they are
# skipped (tests/cuda/run_all.sh is for who has a GPU). The kernels' sources on the host are among all tests.
cuda() {
  if ! command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" nvcc >/dev/null; then
    echo "skipped: there is no nvcc: the CUDA backend is neither compiled nor linked" | tee -a "$skipped"
    return
  fi
  suite "CUDA backend" //... --config=cuda --test_tag_filters=cuda
}

shell_scripts() { git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck; }

count "shellcheck" shell_scripts
suite optimised //...
cuda
if [[ "${1:-}" != "--fast" ]]; then
  suite "address and undefined-behaviour sanitizers" //... --config=asan
  suite "thread sanitizer" //... --config=tsan
  count "fuzzers" tests/fuzz.sh 10
fi

if [[ -s "$skipped" ]]; then
  echo "NOT tested here:"
  sort -u "$skipped"
fi
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]

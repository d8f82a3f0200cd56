#!/usr/bin/env bash
# Everything that needs a GPU, on the machine that has one: builds with --config=cuda, runs the kernels' conformance
# tests, `verify` on every stored golden, the same bits over batches, chunks and processes, and the benchmark beside
# cuBLASLt and a device copy. Writes a report; the last line says what failed.
# usage: tests/cuda/run_all.sh [REPORT]     REPORT: cuda_report.txt
# exit code: 0 all passed; 1 something failed; 77 nothing could run here
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

report=${1:-cuda_report.txt}
bin=bazel-bin
failed=()

no_device() {
  echo "nothing was run: $1" >&2
  exit 77
}

nvcc=$(command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" nvcc | head -1)
[[ -n $nvcc ]] || no_device "there is no nvcc in \$CUDA_HOME, /usr/local/cuda or \$PATH"
command -v nvidia-smi >/dev/null || no_device "there is no NVIDIA driver (nvidia-smi)"
gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1) ||
  no_device "there is no CUDA device: $gpus"
[[ -n $gpus ]] || no_device "there is no CUDA device"
command -v bazel >/dev/null || no_device "there is no bazel: deploy/install_packages.sh --test installs what a build needs"

# check NAME COMMAND…: runs it, and writes what it said and how it ended.
check() {
  local name=$1 began=$SECONDS
  shift
  {
    echo
    echo "== $name"
    echo "\$ $*"
  } | tee -a "$report"
  if "$@" 2>&1 | sed '/linux-sandbox/d' | tee -a "$report"; then
    echo "-- passed, $((SECONDS - began)) s" | tee -a "$report"
  else
    echo "-- FAILED, $((SECONDS - began)) s" | tee -a "$report"
    failed+=("$name")
  fi
}

# Without a device these tests are skipped, and count as passed: so never from a cache, not in a sandbox, which may hide
# the device, and what was skipped is a failure. Only Hopper has wgmma, and only a toolkit has cuobjdump.
conformance() {
  local allowed='no cuobjdump' skips
  bazel test "${flags[@]}" --test_output=errors --nocache_test_results --strategy=TestRunner=local \
    //kernels/cuda/... //model/cuda/... || return 1
  [[ $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1) == 9.* ]] || allowed+='|cannot run cuda_wgmma'
  skips=$(grep -rhE '^skipped:' --include=test.log bazel-testlogs/kernels/cuda bazel-testlogs/model/cuda | sort | uniq -c)
  [[ -z $skips ]] || echo "$skips"
  ! grep -qvE "$allowed" <<<"${skips:-$allowed}"
}

verify_all() {
  local golden dtype dir status=0
  for golden in tests/data/goldens/*/golden.safetensors; do
    dir=$(dirname "$golden")
    for dtype in float32 bfloat16; do
      echo "$(basename "$dir") $dtype:"
      "$bin/cli/switchyard" verify "$dir" "$golden" --device cuda --dtype "$dtype" || status=1
    done
  done
  return $status
}

{
  date -u '+%Y-%m-%d %H:%M UTC'
  git log --oneline -1
  "$nvcc" --version | tail -2
  echo "$gpus"
} | tee "$report"

flags=(--noshow_progress --config=cuda)
check "build" bazel build "${flags[@]}" //cli:switchyard //kernels/cuda/... //tests/cuda/...
check "conformance of the kernels" conformance
check "verify on all goldens" verify_all
# Batches, chunks, pools, prefill and decode as processes of their own on one GPU, both KV lanes.
check "same bits" python3 tests/e2e/bits_test.py "$bin/cli/switchyard" models/fables-7m 24 auto --device cuda
# Two ranks, on one GPU if there is one: into each other's memory, through the host, and by NCCL where each has its own.
count=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
check "same bits on two ranks" python3 tests/cuda/ranks_bits.py "$bin/cli/switchyard" models/fables-7m 12 \
  "$((count > 1 ? 2 : 1))" --device cuda
check "speed" "$bin/tests/cuda/cuda_bench"
check "engine" "$bin/cli/switchyard" bench engine bench/configs/qwen3-moe-1.2b --load-format dummy --device cuda \
  --prefill-tokens 512 --decode-batches 1,8,64 --decode-steps 64 --kv-blocks 4096

if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}" | tee -a "$report"
  exit 1
fi
echo "all passed; $report" | tee -a "$report"

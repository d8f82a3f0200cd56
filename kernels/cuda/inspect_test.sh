#!/usr/bin/env bash
# What nvcc made: the instructions that the kernels are written for, and no spilled registers.
# usage: inspect_test.sh FILE…     objects (with PTX, not compressed) and reports of ptxas
set -uo pipefail

failed=0

# has OBJECT INSTRUCTION: in the PTX of a kernel.
has() {
  local object
  for object in "${objects[@]}"; do
    [[ $object == *"/$1.pic.o" ]] || continue
    grep -aqF "$2" "$object" && return
    echo "FAILED: $1 has no $2"
    failed=1
    return
  done
  echo "FAILED: there is no object of $1"
  failed=1
}

objects=()
reports=()
for file in "$@"; do
  case $file in
    *.pic.o) objects+=("$file") ;;
    *.ptxas.txt) reports+=("$file") ;;
  esac
done
echo "${#objects[@]} objects, ${#reports[@]} reports"
[[ ${#objects[@]} -gt 0 && ${#objects[@]} -eq ${#reports[@]} ]] || failed=1

for kernel in gemm_bf16 gemm_scaled attention; do
  has $kernel mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
  has $kernel ldmatrix.sync.aligned.m8n8.x4.shared.b16
done
has attention ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
has gemm_bf16 cp.async.cg.shared.global
has gemm_wgmma wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16
has gemm_wgmma cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
has gemm_wgmma mbarrier.try_wait.parity

for report in "${reports[@]}"; do
  for arch in sm_80 sm_90a; do
    grep -q "for '$arch'" "$report" || { echo "FAILED: $report: nothing for $arch"; failed=1; }
  done
  if grep -E '[1-9][0-9]* bytes spill' "$report"; then
    echo "FAILED: $report: registers are spilled"
    failed=1
  fi
done
[[ $failed -eq 0 ]] && echo "all instructions are there, nothing is spilled"
exit $failed

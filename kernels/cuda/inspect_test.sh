#!/usr/bin/env bash
# What nvcc made: the instructions that the kernels are written for, products of wgmma that follow each other without a
# wait, and no spilled registers.
# usage: inspect_test.sh FILE…     objects (with PTX, not compressed) and reports of ptxas
# The machine code is shown by cuobjdump, with nvdisasm, of the toolkit or on $PATH; without it PTX is all that is looked at.
set -uo pipefail

PATH=${CUDA_HOME:-/usr/local/cuda}/bin:$PATH
failed=0
sass=$TEST_TMPDIR/sass

fail() {
  echo "FAILED: $1"
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
[[ ${#objects[@]} -gt 0 && ${#objects[@]} -eq ${#reports[@]} ]] || fail "a report for each object is wanted"

# object KERNELS: prints the object of kernels/cuda/KERNELS.cu.cc.
object() { printf '%s\n' "${objects[@]}" | grep -m1 "/$1\.pic\.o$"; }

# ptx KERNELS INSTRUCTION
ptx() { grep -aqF "$2" "$(object "$1")" || fail "the PTX of $1 has no $2"; }

# machine KERNELS ARCH INSTRUCTION…: in the machine code for ARCH; and nothing that reads or writes local memory.
machine() {
  local kernels=$1 arch=$2 instruction
  shift 2
  if ! cuobjdump -sass -arch "$arch" "$(object "$kernels")" >"$sass" || [[ ! -s $sass ]]; then
    fail "$kernels has no machine code for $arch"
    return
  fi
  for instruction in "$@"; do
    grep -qF " $instruction" "$sass" || fail "$kernels for $arch has no $instruction"
  done
  ! grep -E ' (STL|LDL)\b' "$sass" || fail "$kernels for $arch uses local memory"
}

for kernels in gemm_bf16 gemm_scaled attention; do
  ptx $kernels mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
  ptx $kernels ldmatrix.sync.aligned.m8n8.x4.shared.b16
done
ptx attention ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
for kernels in gemm_bf16 gemm_scaled; do ptx $kernels cp.async.cg.shared.global; done
ptx gemm_wgmma wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16
ptx gemm_wgmma wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3
ptx gemm_wgmma cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
ptx gemm_wgmma mbarrier.try_wait.parity
ptx peer st.release.sys.global.u64
ptx peer ld.acquire.sys.global.u64

if command -v cuobjdump >/dev/null && command -v nvdisasm >/dev/null; then
  for arch in sm_80 sm_90a; do
    machine gemm_bf16 $arch HMMA.16816.F32.BF16 LDSM.16.M88.4 LDGSTS.E.BYPASS.128
    machine gemm_scaled $arch HMMA.16816.F32.BF16 LDSM.16.M88.4 LDGSTS.E.BYPASS.128
    machine peer $arch MEMBAR
    machine attention $arch HMMA.16816.F32.BF16 LDSM.16.M88.4 LDSM.16.MT88.4
    for kernels in attention_float blocks gate gemm permute quant rows sample; do machine $kernels $arch; done
  done
  machine gemm_wgmma sm_90a HGMMA.64x128x16.F32.BF16 QGMMA.64x128x32.F32.E4M3.E4M3 UTMALDG.2D SYNCS.PHASECHK.TRANS64.TRYWAIT
  # A product that ptxas cannot overlap gets a fence and a wait of its own.
  products=$(grep -cE '[HQ]GMMA\.64x128' "$sass")
  fences=$(grep -c WARPGROUP.ARRIVE "$sass")
  ((products == 4 * fences)) || fail "$products wgmma in $fences groups: 4 in each are wanted"
else
  echo "skipped: there is no cuobjdump with nvdisasm: of the kernels' machine code ptxas' reports and PTX were looked at"
fi

for report in "${reports[@]}"; do
  for arch in sm_80 sm_90a; do
    grep -q "for '$arch'" "$report" || fail "$report: nothing for $arch"
  done
  ! grep -E '[1-9][0-9]* bytes spill' "$report" || fail "$report: registers are spilled"
  ! grep -i 'serialized' "$report" || fail "$report: products wait for each other"
done
[[ $failed -eq 0 ]] && echo "all instructions are there, nothing is spilled"
exit $failed

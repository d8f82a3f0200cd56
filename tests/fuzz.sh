#!/usr/bin/env bash
# Runs every libFuzzer target for some seconds each, from seeds of real files. Fails on the first crash, whose input it keeps.
# usage: [FUZZ_SEED=N] tests/fuzz.sh [SECONDS_EACH [TARGET_NAME…]]     FUZZ_SEED: 1, or 0 for another one each time
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-15}
only=" ${*:2} "

all=(//text:tokenizer_fuzz //text:chat_template_fuzz //model:config_fuzz //model:safetensors_fuzz
  //kvtransfer:wire_fuzz //moe:ep_fuzz //router/http:openai_fuzz //router:grpc_fuzz)
targets=()
for target in "${all[@]}"; do
  [[ $# -lt 2 || $only == *" ${target##*:} "* ]] && targets+=("$target")
done
# A build of its own: another compiler would throw away what the usual one has built.
bazel=(bazel "--output_base=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard-bazel-fuzz")
"${bazel[@]}" build --noshow_progress --color=no --symlink_prefix=/ --config=fuzz "${targets[@]}" 2>&1 |
  { grep -v linux-sandbox || true; }
built=$("${bazel[@]}" info --config=fuzz bazel-bin 2>/dev/null)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
seeds() {  # TARGET NAME -> a folder with what real files look like, but small: mutations of long ones hit little
  local folder=$work/seeds-$1 data=tests/data/fuzz/$1 f
  mkdir -p "$folder"
  case $1 in
    tokenizer_fuzz) for f in "$data"/*.json; do
      { cat "$f"; printf '\0ab aé  1 <e> ᄒ\n'; } >"$folder/$(basename "$f")"
    done ;;
    chat_template_fuzz) python3 -c '
import json, sys
for i, template in enumerate(sorted({c["template"] for c in json.load(open("text/testdata/chat_templates.json"))})):
    open(f"{sys.argv[1]}/{i}", "w").write(template)' "$folder" ;;
    config_fuzz) for f in tests/data/goldens/*/config.json; do cp "$f" "$folder/$(basename "$(dirname "$f")")"; done ;;
    safetensors_fuzz) printf '\x6f\0\0\0\0\0\0\0%s\0\0\x80\x3f\0\0\0\0\x80\x3f\0\0' \
      '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}' \
      >"$folder/two" ;;
    # A plan of two tokens with an expert each: magic, kind, op, first, count, entries, -, bytes, -; counts, slots.
    ep_fuzz) {
      printf 'SYEP\x04\0\0\0'; printf '\0%.0s' {1..12}; printf '\x02\0\0\0\x02\0\0\0\0\0\0\0\x06'; printf '\0%.0s' {1..31}
      printf '\x01\x01\0\0\x01\0'; printf '\0%.0s' {1..58}
    } >"$folder/plan" ;;
    grpc_fuzz) for f in text tokens; do
      protoc --encode=switchyard.v1.GenerateRequest proto/inference.proto <"$data/$f.txt" >"$folder/$f"
    done ;;
    openai_fuzz) cp "$data"/*.json "$folder" ;;
  esac
  echo "$folder"
}
mkdir -p fuzz-crashes
for target in "${targets[@]}"; do
  name=${target##*:}
  path=${target#//}
  mkdir "$work/$name"
  options=()
  [[ -f tests/data/fuzz/$name.dict ]] && options+=("-dict=tests/data/fuzz/$name.dict")
  if ! UBSAN_OPTIONS=print_stacktrace=1 "$built/${path%%:*}/$name" -max_total_time="$seconds" -timeout=30 -seed="${FUZZ_SEED:-1}" \
    -rss_limit_mb=2048 -max_len=16384 -artifact_prefix=fuzz-crashes/ -print_final_stats=1 \
    "${options[@]}" "$work/$name" "$(seeds "$name")" \
    >"$work/$name.log" 2>&1; then
    tail -n 40 "$work/$name.log"
    echo "$name: FAILED; the input is in fuzz-crashes/"
    exit 1
  fi
  reached=$(sed -nE 's/^reached: ([0-9]+) of ([0-9]+) .*/\1 \2/p' "$work/$name.log")
  echo "$name: $(sed -nE 's/stat::number_of_executed_units: *//p' "$work/$name.log") executions," \
    "corpus $(find "$work/$name" -type f | wc -l)," \
    "edges $(sed -nE 's/.*DONE +cov: ([0-9]+).*/\1/p' "$work/$name.log")${reached:+, past the parser: ${reached/ / of }}"
  # A fuzzer whose inputs stay in the parser tests nothing behind it.
  if [[ -n $reached ]] && ((${reached% *} * 200 < ${reached#* })); then
    echo "$name: FAILED: fewer than one input in 200 came past the parser"
    exit 1
  fi
done
rmdir --ignore-fail-on-non-empty fuzz-crashes  # an earlier run may have left an input

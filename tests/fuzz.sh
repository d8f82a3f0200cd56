#!/usr/bin/env bash
# Runs every libFuzzer target for some seconds each, from seeds of real files. Fails on the first crash, whose input it keeps.
# usage: tests/fuzz.sh [SECONDS_EACH]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-15}

targets=(//text:tokenizer_fuzz //text:chat_template_fuzz //model:config_fuzz //model:safetensors_fuzz
  //kvtransfer:wire_fuzz //moe:ep_fuzz //router/http:openai_fuzz //router:grpc_fuzz)
# A build of its own: another compiler would throw away what the usual one has built.
bazel=(bazel "--output_base=${XDG_CACHE_HOME:-$HOME/.cache}/switchyard-bazel-fuzz")
"${bazel[@]}" build --noshow_progress --color=no --symlink_prefix=/ --config=fuzz "${targets[@]}" 2>&1 |
  { grep -v linux-sandbox || true; }
built=$("${bazel[@]}" info --config=fuzz bazel-bin 2>/dev/null)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
seeds() {  # TARGET NAME -> a folder with what real files look like
  local folder=$work/seeds-$1
  mkdir -p "$folder"
  case $1 in
    tokenizer_fuzz) cp tests/data/goldens/tokenizers/*.tokenizer.json "$folder" ;;
    config_fuzz) for f in tests/data/goldens/*/config.json; do cp "$f" "$folder/$(basename "$(dirname "$f")")"; done ;;
    safetensors_fuzz) head -c 4096 tests/data/goldens/olmoe/model.safetensors >"$folder/cut" ;;
    chat_template_fuzz) echo "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}" >"$folder/simple" ;;
    # A plan of two tokens with an expert each: magic, kind, op, first, count, entries, -, bytes, -; counts, slots.
    ep_fuzz) {
      printf 'SYEP\x04\0\0\0'; printf '\0%.0s' {1..12}; printf '\x02\0\0\0\x02\0\0\0\0\0\0\0\x06'; printf '\0%.0s' {1..31}
      printf '\x01\x01\0\0\x01\0'; printf '\0%.0s' {1..58}
    } >"$folder/plan" ;;
    # Protobuf: token ids 1, 2, 3; max_tokens; a stop string.
    grpc_fuzz) printf '\x1a\x05\x0a\x03\x01\x02\x03\x20\x04\x32\x01a' >"$folder/simple" ;;
    openai_fuzz) echo '{"prompt": [1, 2], "max_tokens": 4, "stop": ["a"], "logprobs": 1}' >"$folder/simple" ;;
  esac
  echo "$folder"
}
mkdir -p fuzz-crashes
for target in "${targets[@]}"; do
  name=${target##*:}
  path=${target#//}
  mkdir "$work/$name"
  if ! UBSAN_OPTIONS=print_stacktrace=1 "$built/${path%%:*}/$name" -max_total_time="$seconds" -timeout=10 \
    -rss_limit_mb=2048 -max_len=65536 -artifact_prefix=fuzz-crashes/ -print_final_stats=1 "$work/$name" "$(seeds "$name")" \
    >"$work/$name.log" 2>&1; then
    tail -n 40 "$work/$name.log"
    echo "$name: FAILED; the input is in fuzz-crashes/"
    exit 1
  fi
  echo "$name: $(sed -nE 's/stat::number_of_executed_units: *//p' "$work/$name.log") executions," \
    "corpus $(find "$work/$name" -type f | wc -l)"
done
rmdir --ignore-fail-on-non-empty fuzz-crashes  # an earlier run may have left an input

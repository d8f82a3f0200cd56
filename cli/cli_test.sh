#!/usr/bin/env bash
# The real binary: help, wrong usage, tokenizing, generating, verifying, checking configurations.
# usage: cli_test.sh BINARY
set -uo pipefail

switchyard=$1
model=models/fables-7m
golden=tests/data/goldens/deepseek_v3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
  echo "FAILED: $1" >&2
  echo "  stdout: $(head -c 2000 "$work/out")" >&2
  echo "  stderr: $(head -c 2000 "$work/err")" >&2
  failures=$((failures + 1))
}

# expect CODE ARGUMENT…: runs the binary on $work/in; its output is in $work/out and $work/err.
expect() {
  local want=$1 got=0
  shift
  "$switchyard" "$@" <"$work/in" >"$work/out" 2>"$work/err" || got=$?
  [[ $got == "$want" ]] || fail "switchyard $*: exit code $got, not $want"
}
says() { grep -qF -- "$2" "$work/$1" || fail "no \"$2\" in $1"; }

: >"$work/in"
for command in serve router prefill decode ask generate verify tokenize detokenize check; do
  expect 0 "$command" --help
  says out "--help"
done
expect 0 --help
says out serve

# Wrong usage says what, and exits with 2.
expect 2
expect 2 serv
says err 'did you mean "serve"'
expect 2 serve "$model" --prot 9
says err 'did you mean --port?'
expect 1 decode "$model" --host 0.0.0.0
says err "advertise-host is wanted"
expect 1 decode "$model" --host 0.0.0.0 --json-logs
[[ $(wc -l <"$work/err") == 1 && $(<"$work/err") == '{"time"'*advertise-host*'}' ]] || fail "no JSON: $(<"$work/err")"
expect 2 serve "$model" --metrics-port-base 65500
says err 65600
expect 2 generate "$model" --prompt x --no-such-flag
says err no-such-flag
expect 2 generate "$work/nowhere" --prompt x
says err nowhere
expect 2 generate "$model" --prompt x --block-size 0
says err block-size
expect 2 generate "$model"
expect 2 serve
says err model
expect 2 serve "$model" --prefill 0 --disaggregate always
expect 2 router "$model"
says err decode-address
for address in nocolon 127.0.0.1:99999 127.0.0.1:0 :80; do
  expect 2 router "$model" --decode-address "$address"
  says err "\"$address\""
  expect 2 router "$model" --decode-address a:1 --prefill-address "a:1,$address"
  says err "\"$address\""
done
expect 2 ask --grpc nocolon --prompt x
says err nocolon
expect 2 serve "$model" --ready-file "$work/nope/ready.json"
says err "$work/nope"
expect 2 serve "$model" --ready-file "$work"
says err folder
for length in 1 -1 many; do
  expect 2 router "$model" --decode-address a:1 --max-model-len "$length"
  says err max-model-len
done
expect 2 generate "$model" --prompt x --temperature 101
says err 100
expect 2 generate "$model" --prompt x --seed -1
says err "2^64 - 1"
expect 0 generate "$model" --prompt "" --max-tokens 4 --min-p 0.1 --repetition-penalty 1.2
expect 2 generate "$model" --prompt x --output "$work/out.txt"
says err --requests
expect 2 bench
says err "bench serve"
expect 2 bench serve --request-rat 5
says err 'unknown flag --request-rat; did you mean --request-rate?'
expect 2 bench serve swep
says err swep
expect 1 bench serve --backend vllm --base-url https://a:1
says err "--base-url is https://a:1; the driver speaks HTTP in clear only"
expect 1 bench serve --backend vllm --base-url a:1/v1
says err "a path belongs into --endpoint"
expect 1 bench serve --port 8000
says err "--port is for --backend openai and vllm"
expect 1 bench serve --result-filename /proc/result.json
says err /proc
expect 2 bench serve --html /proc/result.html
says err /proc
printf 'TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n' >"$work/trace.csv"
expect 1 bench serve --dataset-name trace --dataset-path "$work/trace.csv"
says err "$work/trace.csv: line 2"
for command in ask top "bench serve"; do
  # shellcheck disable=SC2086
  expect 0 $command --help
  says out SWITCHYARD_API_KEY
done
expect 0 bench --help
says out "bench engine"
expect 1 bench engine "$model" --decode-context 5000
says err "--decode-context is 5000, must be in [1, 2015]"
[[ ! -s $work/out ]] || fail "bench engine measured before it refused"
expect 0 bench engine "$model" --prefill-context 128 --prefill-chunk 64 --prefill-tokens 64 --decode-batches 1 --decode-context 16 \
  --decode-steps 2 --repeats 1
says out "64 tokens after 128: "
expect 1 bench engine "$model" --prefill-context 100 --prefill-chunk 64
says err "--prefill-context is 100, must be a multiple of 64"
expect 1 bench engine "$model" --prefill-context 64000 --prefill-chunk 64
says err "and at most 2046"

printf ' \n' >"$work/keys"
expect 1 router "$model" --decode-address a:1 --port 0 --grpc-port 0 --api-key-file "$work/keys"
says err "has no key"
printf 'good\nb\tad\n' >"$work/keys"
expect 1 router "$model" --decode-address a:1 --port 0 --grpc-port 0 --api-key-file "$work/keys"
says err "keys, line 2"

# No router: nothing of an answer is printed.
expect 1 ask --grpc 127.0.0.1:1 --prompt "Once upon" --timeout 5
[[ ! -s $work/out ]] || fail "ask printed the prompt without an answer"
"$switchyard" bench serve --grpc 127.0.0.1:1 >"$work/unanswered" 2>&1 &  # it waits for a while
unanswered=$!

# An explicit port that is taken is an error that names it.
python3 -c '
import socket, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print(s.getsockname()[1], flush=True); time.sleep(60)' >"$work/port" &
holder=$!
while [[ ! -s $work/port ]]; do sleep 0.05; done
port=$(<"$work/port")
expect 1 serve "$model" --port "$port"
says err "$port"
kill "$holder"
wait "$holder" 2>/dev/null

# Text to ids and back.
printf '%s\n' '{"text": "Once upon a time, a naïve fox 🦊 sang."}' '{"text": "", "add_special_tokens": false}' >"$work/in"
expect 0 tokenize "$model"
cp "$work/out" "$work/in"
expect 0 detokenize "$model"
says out 'Once upon a time, a naïve fox 🦊 sang.'
printf '%s\n' '{"txet": 1}' 'nonsense' '{"text": "a"}' >"$work/in"
expect 1 tokenize "$model"
[[ $(grep -c error "$work/out") == 2 && $(grep -c ids "$work/out") == 1 ]] || fail "errors by line"
: >"$work/in"

# Greedy is greedy, alone, with other settings, and among other requests.
expect 0 generate "$model" --prompt "Once upon a time" --max-tokens 24 --temperature 0
cp "$work/out" "$work/greedy"
[[ $(wc -w <"$work/greedy") -gt 5 ]] || fail "generate wrote little"
expect 0 generate "$model" --prompt "Once upon a time" --max-tokens 24 --temperature 0 --threads 2 --prefill-chunk 1
cmp -s "$work/out" "$work/greedy" || fail "greedy differs with other settings"
python3 - >"$work/in" <<'END'
import json
for i in range(5):
    print(json.dumps({"id": f"r{i}", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}))
print(json.dumps({"id": "bad", "prompt_ids": [4] * 5000}))
END
expect 0 generate "$model" --requests - --output "$work/results"
python3 - "$work/results" <<'END' || fail "results of --requests"
import json, sys
results = [json.loads(line) for line in open(sys.argv[1])]
assert [r["id"] for r in results] == ["r0", "r1", "r2", "r3", "r4", "bad"], results
assert len({tuple(r["token_ids"]) for r in results[:5]}) == 1, results
assert results[5]["finish_reason"] == "error" and results[5]["error"], results[5]
END
echo '{"prompt": "x", "max_tokns": 3}' >"$work/in"
expect 1 generate "$model" --requests -
says err max_tokns
: >"$work/in"

# A golden file decides the exit code.
expect 0 verify "$golden" "$golden/golden.safetensors" --dtype float32
expect 0 verify "$golden" "$golden/golden.safetensors" --json
python3 -c 'import json, sys; json.load(open(sys.argv[1]))' "$work/out" || fail "verify --json is JSON"
expect 1 verify "$golden" "$golden/golden.safetensors" --dtype float32 --load-format dummy
expect 1 verify "$golden" "$golden/config.json"

# Tensor parallelism that cannot be is refused with the numbers, before anything starts.
expect 2 serve "$model" --prefill-ep 4 --prefill-tp 3
says err "prefill-tp is 3; it must divide prefill-ep, which is 4"
expect 1 serve "$model" --prefill-ep 8 --prefill-tp 8
says err "tensor parallelism of 8: the model's 4 heads can be split over 4 ranks at most"

# Only devices have multiprocessors to limit, and at most so many.
expect 2 serve "$model" --decode-ep 2 --ep-device-ctas 8
says err "ep-device-ctas is 8; it limits devices: without --device cuda only 0 is allowed"
expect 2 serve "$model" --device cuda --ep-device-ctas 65
says err "--ep-device-ctas: Value 65 not in range 0 to 64"

# Configuration files.
printf 'role: decode\nmodel: %s\nport: 7001\nkv-lane: tcp\nblock-size: 16\n' "$model" >"$work/good.yaml"
expect 0 check "$work/good.yaml"
printf 'role: router\nmodel: %s\ndecode-adress: a:1\nport: 70000\n' "$model" >"$work/bad.yaml"
expect 1 check "$work/bad.yaml"
says out 'line 3: unknown key "decode-adress"; did you mean "decode-address"?'
says out 'line 4'
expect 2 decode --config "$work/bad.yaml"
says err 'is for the role'
printf 'role: router\nmodel: %s\n' "$model" >"$work/lacking.yaml"
expect 1 check "$work/lacking.yaml"
says out decode-address
printf 'role: prefill\nmodel: %s\n' "$work" >"$work/nomodel.yaml"
expect 1 check "$work/nomodel.yaml"
says out config.json
expect 1 check "$work/none.yaml"
printf 'role: router\nmodel: %s\ndecode-address: a:1\nport: 7000\ngrpc-port: 7001\nmetrics-port: 7000\n' "$model" >"$work/ports.yaml"
expect 1 check "$work/ports.yaml"
says out 'line 6: metrics-port is 7000, and so is port'
expect 0 check "$work/ports.yaml" -- --metrics-port=7002
expect 1 check "$work/ports.yaml" -- --metrics-port=7001
says out 'metrics-port is 7001, and so is grpc-port'
expect 2 serve "$model" --metrics-port-base 7900 --port 8000
says err "port is 8000, and so is a decode rank's"
expect 1 router "$model" --decode-address a:1 --port 7000 --grpc-port 7000
says err "both 7000"
printf 'role: decode\nmodel: %s\nhost: 0.0.0.0\n' "$model" >"$work/wildcard.yaml"
expect 1 check "$work/wildcard.yaml"
says out 'advertise-host is wanted'
expect 0 check "$work/wildcard.yaml" -- --advertise-host=10.0.0.1
expect 1 check "$work/wildcard.yaml" -- --advertise-hots=10.0.0.1
says out 'did you mean "advertise-host"?'
printf 'role: router\nmodel: %s\nprefill-address: [a:1, nocolon]\ndecode-address: 127.0.0.1:99999\n' "$model" >"$work/addresses.yaml"
expect 1 check "$work/addresses.yaml"
says out 'line 3: --prefill-address: "nocolon"'
says out 'line 4: --decode-address: "127.0.0.1:99999"'

wait "$unanswered" && fail "bench serve without a router"
says unanswered "the router at 127.0.0.1:1 does not answer"

echo "$failures failures"
[[ $failures == 0 ]]

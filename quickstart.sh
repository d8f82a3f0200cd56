#!/usr/bin/env bash
# From a fresh clone to an answer: installs what is missing (Debian packages), builds, starts a local cluster (router, one
# prefill and one decode process) on the model that ships with the project, sends one prompt by gRPC and one by HTTP,
# and shuts everything down. usage: quickstart.sh [PROMPT]
set -euo pipefail
cd "$(dirname "$0")"

prompt=${1:-"Once upon a time"}
model=models/fables-7m

deploy/install_packages.sh
echo "==> Building (some minutes the first time)"
bazel build --noshow_progress --color=no //cli:switchyard 2>&1 | { grep -v linux-sandbox || true; }
switchyard=bazel-bin/cli/switchyard

work=$(mktemp -d)
server=
# shellcheck disable=SC2317  # called by the trap
cleanup() {
  if [[ -n $server ]] && kill -INT "$server" 2>/dev/null; then
    wait "$server" || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

echo "==> Starting the cluster on $model"
"$switchyard" serve "$model" --prefill 1 --decode 1 --disaggregate always --ready-file "$work/ready.json" &
server=$!
for _ in $(seq 600); do
  [[ -s $work/ready.json ]] && break
  kill -0 "$server" 2>/dev/null || { echo "the cluster did not start" >&2; exit 1; }
  sleep 0.1
done
[[ -s $work/ready.json ]] || { echo "the cluster was not ready within 60 s" >&2; exit 1; }
read -r http grpc < <(python3 -c '
import json, sys
ready = json.load(open(sys.argv[1]))
print(ready["http_url"], ready["grpc_address"])' "$work/ready.json")

echo
echo "==> gRPC: switchyard.v1.Router/Generate at $grpc"
"$switchyard" ask --grpc "$grpc" --prompt "$prompt" --max-tokens 64 --temperature 0.8 --seed 7

echo
echo "==> HTTP: $http/v1/completions, streamed by curl"
body=$(python3 -c '
import json, sys
print(json.dumps({"prompt": sys.argv[1], "max_tokens": 64, "temperature": 0.8, "seed": 8, "stream": True}))' "$prompt")
printf '%s' "$prompt"
curl -sSN --fail -H 'Content-Type: application/json' -d "$body" "$http/v1/completions" |
  python3 -u -c '
import json, sys, time
start, stamps, info = time.monotonic(), [], {}
for line in sys.stdin:
    if not line.startswith("data: ") or line.startswith("data: [DONE]"):
        continue
    event = json.loads(line[6:])
    if "error" in event:
        sys.exit("\n%s" % event["error"])
    info = event.get("switchyard") or info
    stamps.append(time.monotonic())
    for choice in event["choices"]:
        print(choice["text"], end="", flush=True)
tpot = (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)
print("\n\nTTFT %.1f ms, TPOT %.2f ms, KV moved %d bytes over the %s lane"
      % (info["ttft_ms"], tpot * 1e3, info["kv_bytes_moved"], info["kv_lane"]))'

echo
echo "==> Shutting down"
kill -INT "$server"
code=0
wait "$server" || code=$?
server=
echo "==> Done: the cluster exited with code $code"
exit "$code"

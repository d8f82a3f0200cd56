#!/usr/bin/env bash
# Installs what Switchyard builds with and runs on, from Debian 12's own packages (docs/dependencies.md says why
# each). Does nothing, and needs no rights, when all are there. usage: install_packages.sh [--test]
set -euo pipefail

build=(
  bazel-bootstrap bazel-platforms bazel-skylib bazel-rules-java bazel-rules-proto g++ git ca-certificates
  libucx-dev libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  libboost-dev libssl-dev nlohmann-json3-dev libsimdjson-dev libpcre2-dev libutf8proc-dev libcli11-dev libyaml-cpp-dev
  libspdlog-dev prometheus-cpp-dev libxxhash-dev curl python3
)
test=(libgtest-dev libgmock-dev libbenchmark-dev clang-format clang libclang-rt-14-dev shellcheck prometheus python3-venv openssl iproute2)

packages=("${build[@]}")
[[ "${1:-}" == "--test" ]] && packages+=("${test[@]}")

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

echo "Installing from Debian's packages: ${missing[*]}" >&2
as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "not root, and no sudo: install the packages above yourself" >&2; exit 1; }
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
       apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  exit 1
fi

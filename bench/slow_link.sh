#!/usr/bin/env bash
# Steps of two ranks with a throttled link between them, each in a network namespace of its own: so
# many MB/s in each direction, as long a queue as 20 ms fill. Needs root and iproute2.
# usage: slow_link.sh BINARY "MB/s…, 0: not throttled" [flags of bench ep, --model among them…]
set -euo pipefail
binary=$1 rates=$2
shift 2
names=("slow$$a" "slow$$b")
# shellcheck disable=SC2317  # by the trap
remove() { for n in "${names[@]}"; do ip netns del "$n" 2>/dev/null || true; done; }
trap remove EXIT
for n in "${names[@]}"; do ip netns add "$n"; done
ip -n "${names[0]}" link add eth0 type veth peer name eth0 netns "${names[1]}"
for i in 0 1; do
  ip -n "${names[i]}" addr add "10.77.1.$((i + 1))/24" dev eth0
  for device in lo eth0; do ip -n "${names[i]}" link set "$device" up; done
done
up() { [[ $(ip -n "${names[0]}" link show eth0)$(ip -n "${names[1]}" link show eth0) == *"state UP"*"state UP"* ]]; }
for _ in {1..50}; do
  up && break
  sleep 0.1
done
up || { echo "the link between ${names[*]} does not come up" >&2; exit 1; }
for rate in $rates; do
  for n in "${names[@]}"; do
    tc -n "$n" qdisc del dev eth0 root 2>/dev/null || true
    if [ "$rate" != 0 ]; then
      tc -n "$n" qdisc add dev eth0 root tbf rate "$((rate * 8))mbit" burst 128kb latency 20ms
    fi
  done
  result=$("$binary" bench ep --lanes tcp --net-namespaces "${names[0]},${names[1]}" --net-devices eth0 "$@")
  echo "$rate MB/s: $result"
done

#!/usr/bin/env python3
"""Experts on two ranks, by every lane between their devices that this machine has: the bits of one process, each in one and
in two micro-batches. usage: ranks_bits.py BINARY MODEL_DIR REQUESTS DEVICES [FLAG…]     FLAGs: of all processes"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from bits_test import compare, make_requests, one_process, served  # noqa: E402


def main():
    binary, model, count, devices, *flags = sys.argv[1:]
    requests = make_requests(int(count), length_max=400)
    want = one_process(binary, model, requests, "--max-num-seqs", "1", *flags)
    # NCCL refuses two ranks of one device; peer memory and the host serve them too.
    lanes = ["staged"] + (["nccl"] if int(devices) > 1 else []) + ["peer"]
    for lane in lanes:
        for overlap in ("off", "on"):
            compare(f"prefill EP2 and decode EP2 by {lane}, two micro-batches {overlap}", want,
                    served(binary, model, requests, 32, True, "--disaggregate", "always", "--prefill-ep", "2",
                           "--decode-ep", "2", "--devices", devices, "--ep-device-lane", lane,
                           "--ep-overlap", overlap, *flags))


if __name__ == "__main__":
    main()

"""Time to the first event of a prompt of 916 tokens, cold and with its first 900 in the cache: pairs, one after the other.

usage: prefix_ttft.py BINARY MODEL
"""
import http.client
import json
import random
import statistics
import sys
import time

import cluster as e2e

PAIRS = 15


def first_event_ms(connection, prompt):
    begin = time.perf_counter()
    body = json.dumps(dict(prompt=prompt, max_tokens=2, stream=True, ignore_eos=True))
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.readline()
    end = time.perf_counter()
    response.read()
    return (end - begin) * 1000


def shown(values):
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main():
    binary, model = sys.argv[1:3]
    rng = random.Random()

    def tokens(count):
        return [rng.randrange(4, 4000) for _ in range(count)]

    for flags in (["--prefill", "0"], ["--prefill", "1", "--disaggregate", "always"]):
        with e2e.Cluster(binary, model, *flags) as cluster:
            connection = http.client.HTTPConnection(cluster.host, int(cluster.port))
            for _ in range(3):
                first_event_ms(connection, tokens(916))
            cold, hit = [], []
            for _ in range(PAIRS):
                prefix = tokens(900)
                for into in (cold, hit):
                    into.append(first_event_ms(connection, prefix + tokens(16)))
                    time.sleep(0.05)
            print(*flags, f"cold ms {shown(cold)} hit ms {shown(hit)} hit ÷ cold {shown([h / c for c, h in zip(cold, hit)])}")


if __name__ == "__main__":
    main()

"""Many more requests than a cluster can serve: the rest is refused at once and says when to come again, what is accepted is
answered in full, the urgent go first.

usage: overload_test.py BINARY MODEL SECONDS
"""
import concurrent.futures
import contextlib
import http.client
import json
import random
import sys
import threading
import time

import cluster as e2e

TOKENS, QUEUE_SECONDS = 48, 0.05


def ask(cluster, rng, **fields):
    """(status, headers, answer, seconds)."""
    body = dict(prompt=[rng.randrange(4, 4000) for _ in range(200)], max_tokens=TOKENS, ignore_eos=True, temperature=0, **fields)
    begin = time.monotonic()
    connection = http.client.HTTPConnection(cluster.host, int(cluster.port), timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        answer = json.loads(response.read())
    return response.status, dict(response.getheaders()), answer, time.monotonic() - begin


def flood(cluster, seconds, threads, **fields):
    """What all threads got that ask again and again."""
    end = time.monotonic() + seconds

    def run(seed):
        rng, answers = random.Random(seed), []
        while time.monotonic() < end:
            answers.append(ask(cluster, rng, **fields))
            if answers[-1][0] != 200:
                time.sleep(0.1)  # less than it was told
        return answers

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [a for answers in pool.map(run, range(threads)) for a in answers]


def main():
    binary, model, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with e2e.Cluster(binary, model, "--max-queue-seconds", str(QUEUE_SECONDS)) as cluster:
        usual = flood(cluster, seconds, 8)  # a rate is known from here on
        assert all(a[0] == 200 for a in usual), {a[0]: a[2] for a in usual}
        over, urgent = threading.Event(), []

        def ask_urgently():
            while not over.wait(0.1):
                urgent.append(ask(cluster, random.Random(len(urgent)), priority=-1))

        thread = threading.Thread(target=ask_urgently)
        thread.start()
        answers = flood(cluster, seconds, 128)
        over.set()
        thread.join()
        accepted = [a for a in answers if a[0] == 200]
        refused = [a for a in answers if a[0] == 429]
        assert len(accepted) + len(refused) == len(answers), {a[0]: a[2] for a in answers}
        assert all(a[2]["usage"]["completion_tokens"] == TOKENS for a in accepted)
        assert accepted and refused, (len(accepted), len(refused))
        for _, headers, answer, _ in refused:
            assert 1 <= int(headers["Retry-After"]) <= 60 and answer["error"]["type"] == "rate_limit_error", (headers, answer)
        assert urgent and all(a[0] == 200 for a in urgent), [a[:3] for a in urgent if a[0] != 200]
        # Who can wait says so, and is not refused; who has no time is.
        patient = flood(cluster, 0.5, 64, timeout=600)
        assert all(a[0] == 200 for a in patient), {a[0]: a[2] for a in patient}
        assert ask(cluster, random.Random(0))[0] == 200, "after the flood"
        print(f"{len(usual)} in {seconds} s; of {len(answers)} at once {len(accepted)} accepted, {len(refused)} refused in {1e3 * max(a[3] for a in refused):.0f} ms at most; "
              f"{len(urgent)} urgent ones took {max(a[3] for a in urgent):.2f} s at most, the others {max(a[3] for a in accepted):.2f} s")


if __name__ == "__main__":
    main()

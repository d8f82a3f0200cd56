"""`switchyard tokenize` and `detokenize` against the tokenizers package, over random Unicode text of all planes.

usage: tokenizers_test.py BINARY STRINGS TOKENIZER.json…     STRINGS: per tokenizer
"""
import json
import random
import subprocess
import sys

import tokenizers

# Where text comes from: (first, last) code points. Surrogates are no text.
RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF),
    (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2190, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
    (0xF900, 0xFAFF), (0xFE00, 0xFFFD), (0x10000, 0x103FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x30000, 0x3134F),
    (0xE0000, 0xE01EF), (0x10FF00, 0x10FFFF),
]
WORDS = ["the", " fox", "'s", "don't", "I'LL", "2024", " 12345", "\n", "\r\n", "\n\n  ", "\t", "   ", "  word", "é", "e\u0301", "ﬁ", "Å",
         "한국어", "你好", "👩‍👩‍👧", "🏳️‍🌈", "http://a.b/c?d=e", "x_y", "...", "!?", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff", "<unk>", "<s>"]


def texts(rng, count, names):
    for _ in range(count):
        out = ""
        for _ in range(rng.randint(0, 12)):
            kind = rng.random()
            if kind < 0.35:
                out += rng.choice(WORDS)
            elif kind < 0.42 and names:
                out += rng.choice(names)
            else:
                low, high = rng.choice(RANGES)
                out += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))
        yield out


def run(binary, command, path, lines):
    done = subprocess.run([binary, command, path], input="\n".join(json.dumps(line) for line in lines).encode(),
                          capture_output=True, check=False)
    answers = [json.loads(line) for line in done.stdout.split(b"\n") if line]
    assert len(answers) == len(lines), (len(answers), len(lines), done.stderr[-500:])
    return answers


def main():
    binary, count, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    seed = 1
    print("seed", seed)
    for path in paths:
        reference = tokenizers.Tokenizer.from_file(path)
        names = [token.content for token in reference.get_added_tokens_decoder().values()]
        samples = list(texts(random.Random(seed), count, names))
        special = [i % 2 == 0 for i in range(count)]
        ids = run(binary, "tokenize", path, [{"text": t, "add_special_tokens": s} for t, s in zip(samples, special)])
        want = [reference.encode(t, add_special_tokens=s).ids for t, s in zip(samples, special)]
        bad = [(t, got, w) for t, got, w in zip(samples, ids, want) if got.get("ids") != w]
        back = run(binary, "detokenize", path, [{"ids": w, "skip_special_tokens": s} for w, s in zip(want, special)])
        decoded = [reference.decode(w, skip_special_tokens=s) for w, s in zip(want, special)]
        bad += [(w, got, d) for w, got, d in zip(want, back, decoded) if got.get("text") != d]
        for text, got, wanted in bad[:5]:
            print(f"{path}: {text!r}:\n  got    {got}\n  wanted {wanted}")
        assert not bad, f"{path}: {len(bad)} of {2 * count} differ (seed {seed})"
        print(f"{path}: {count} strings, ids and texts equal")


if __name__ == "__main__":
    main()

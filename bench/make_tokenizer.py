#!/usr/bin/env python3
"""Makes a tokenizer of a real size: one whose pre-tokenizer, normalizer and decoder are those of a given small one, and whose
vocabulary is trained anew on a text and on made-up words of three scripts.

usage: make_tokenizer.py SMALL.tokenizer.json TEXT VOCABULARY OUT.json     needs: pip install tokenizers
"""
import json
import random
import sys

from tokenizers import Tokenizer, trainers, pre_tokenizers


def pools(rng):
    latin = [c + v for c in "bcdfghjklmnpqrstvwz" for v in "aeiou"] + ["an", "er", "in", "st", "th", "ion", "ment"]
    cyrillic = [c + v for c in "бвгдзклмнпрст" for v in "аеиоу"]
    han = [chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(3000)]
    for syllables, words, lines in ((latin, 80000, 20000), (cyrillic, 40000, 10000), (han, 60000, 10000)):
        yield ["".join(rng.choices(syllables, k=rng.randint(2, 5))) for _ in range(words)], lines


def lines(path):
    with open(path, encoding="utf8") as text:
        yield from text
    rng = random.Random(1)
    for words, count in pools(rng):
        weights = [1 / (i + 20) for i in range(len(words))]  # Zipf's law
        for _ in range(count):
            yield " ".join(rng.choices(words, weights, k=20)) + "\n"


def main():
    small, text, size, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    with open(small, encoding="utf8") as file:
        shape = json.load(file)
    tokenizer = Tokenizer.from_file(small)
    byte_level = "<0x00>" not in shape["model"]["vocab"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, max_token_length=32,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        special_tokens=[t["content"] for t in shape["added_tokens"]] +
        ([] if byte_level else [f"<0x{i:02X}>" for i in range(256)]))
    tokenizer.train_from_iterator(lines(text), trainer)
    trained = json.loads(tokenizer.to_str())
    shape["model"]["vocab"], shape["model"]["merges"] = trained["model"]["vocab"], trained["model"]["merges"]
    for token in shape["added_tokens"]:
        token["id"] = shape["model"]["vocab"][token["content"]]
    with open(out, "w", encoding="utf8") as file:
        json.dump(shape, file, ensure_ascii=False)
    print(f"{out}: {len(shape['model']['vocab'])} tokens, {len(shape['model']['merges'])} merges")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes grpc.md from proto/inference.proto. usage: make_grpc.py PROTO > grpc.md

Reads the subset that the file uses: top-level services, messages and enums, one declaration per line, `oneof`, comments above or
behind. Anything else is an error.
"""
import re
import sys

RPC = re.compile(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);$")
FIELD = re.compile(r"(optional |repeated )?(\w+|map<\w+, \w+>) (\w+) = (\d+)(?: \[packed = true\])?;$")
VALUE = re.compile(r"(\w+) = (\d+);$")


def split(line):
    """Code and comment of a line."""
    code, _, comment = line.strip().partition("//")
    return code.strip(), comment.strip()


def blocks(text):
    """(kind, name, comment above, [(declaration, comment)]) of each top-level block."""
    above, block, depth = [], None, 0
    for raw in text.split("\n"):
        code, comment = split(raw)
        start = re.match(r"(service|message|enum) (\w+) \{(.*)$", code) if depth == 0 else None
        if not code:
            above = [*above, comment] if comment else above if depth else []
        elif start:
            block, above, depth = (start[1], start[2], " ".join(above), []), [], 1
            code = start[3].strip()
            if code.endswith("}"):  # all on one line
                block[3].extend((part.strip() + ";", comment) for part in code[:-1].split(";") if part.strip())
                yield block
                depth = 0
        elif depth == 0:
            if not re.match(r"(syntax|package) ", code):
                raise ValueError(f"not read: {raw!r}")
            above = []
        elif re.match(r"oneof \w+ \{$", code):
            depth += 1
        elif code == "}":
            depth -= 1
            if depth == 0:
                yield block
        else:
            block[3].append((code, " ".join([*above, comment]).strip()))
            above = []


def sentence(text):
    return text.replace("|", "\\|")


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    out = ["# gRPC API", "", "Made by `docs/make_grpc.py` from `proto/inference.proto`: do not edit.", ""]
    for kind, name, comment, lines in blocks(text):
        out += [f"## {kind} {name}", ""]
        if comment:
            out += [sentence(comment), ""]
        if kind == "service":
            out += ["| call | takes | answers with | |", "|---|---|---|---|"]
        elif kind == "message":
            out += ["| field | type | number | |", "|---|---|---|---|"]
        else:
            out += ["| value | number | |", "|---|---|---|"]
        for line, said in lines:
            rpc, field, value = RPC.match(line), FIELD.match(line), VALUE.match(line)
            if kind == "service" and rpc:
                answer = ("a stream of " if rpc[3] else "") + f"`{rpc[4]}`"
                out.append(f"| `{rpc[1]}` | `{rpc[2]}` | {answer} | {sentence(said)} |")
            elif kind == "message" and field:
                kind_of = f"{(field[1] or '').strip()} {field[2]}".strip()
                out.append(f"| `{field[3]}` | {kind_of} | {field[4]} | {sentence(said)} |")
            elif kind == "enum" and value:
                out.append(f"| `{value[1]}` | {value[2]} | {sentence(said)} |")
            else:
                raise ValueError(f"{kind} {name}: not read: {line!r}")
        if not lines:
            out[-2:] = ["No fields."]
        out.append("")
    print("\n".join(out).rstrip())


if __name__ == "__main__":
    main()

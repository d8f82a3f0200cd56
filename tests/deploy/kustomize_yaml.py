"""Reads the YAML that `kubectl kustomize` prints: block style, plain and quoted scalars on one line, literal blocks.

Not YAML in general: anything else is an error. Python's library has no YAML, and `kubectl` prints no JSON without a
cluster.
"""
import json
import re

_KEY = re.compile(r"""^("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s'"#{\[][^:]*(?::[^\s:]+)*):(?: (.*))?$""")


def load_all(text):
    return [_Reader(part).document() for part in re.split(r"^---$", text, flags=re.M) if part.strip()]


def _scalar(text):
    if text[0] in "|>&*!%@`" or (text[0] in "{[" and text not in ("{}", "[]")):
        raise ValueError(f"not what kustomize prints: {text}")
    if text[0] in '"{[':
        return json.loads(text)
    if text[0] == "'":
        if len(text) < 2 or text[-1] != "'":
            raise ValueError(f"a quoted scalar goes over lines: {text}")
        return text[1:-1].replace("''", "'")
    if text in ("true", "false", "null"):
        return json.loads(text)
    return int(text) if re.fullmatch(r"-?(0|[1-9]\d*)", text) else text


class _Reader:
    def __init__(self, text):
        self.lines = text.strip("\n").split("\n")
        self.at = 0

    def document(self):
        value = self._block(0)
        if self.at != len(self.lines):
            raise ValueError(f"cannot read: {self.lines[self.at]!r}")
        return value

    def _indent(self):
        if self.at == len(self.lines):
            return -1
        line = self.lines[self.at]
        return len(line) - len(line.lstrip(" "))

    def _block(self, indent):
        is_item = self.lines[self.at][indent:].startswith("- ")
        return self._sequence(indent) if is_item else self._mapping(indent)

    def _sequence(self, indent):
        items = []
        while self._indent() == indent and self.lines[self.at][indent:].startswith("- "):
            rest = self.lines[self.at][indent + 2:]
            if rest.startswith("- ") or _KEY.match(rest):
                self.lines[self.at] = " " * (indent + 2) + rest  # a block that begins on this line
                items.append(self._block(indent + 2))
            else:
                items.append(self._value(rest, indent))
        return items

    def _mapping(self, indent):
        mapping = {}
        while self._indent() == indent:
            match = _KEY.match(self.lines[self.at][indent:])
            if match is None:
                break
            mapping[str(_scalar(match[1]))] = self._value(match[2] or "", indent)
        return mapping

    # What stands after "key: " or "- ", and the lines below that belong to it.
    def _value(self, text, indent):
        self.at += 1
        if text in ("|", "|-"):
            return self._literal(indent) + ("\n" if text == "|" else "")
        if text:
            if self._indent() > indent:
                raise ValueError(f"a scalar goes over lines: {text!r}")
            return _scalar(text)
        below = self._indent()
        in_sequence = below == indent and self.lines[self.at][indent:].startswith("- ")
        return self._block(below) if below > indent or in_sequence else None

    def _literal(self, indent):
        lines = []
        while self.at < len(self.lines) and (self._indent() > indent or not self.lines[self.at].strip()):
            lines.append(self.lines[self.at])
            self.at += 1
        margin = len(lines[0]) - len(lines[0].lstrip(" "))
        return "\n".join(line[margin:] for line in lines).rstrip("\n")

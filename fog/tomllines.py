"""Where a key stands in a TOML text. `tomllib` gives values, not lines.

A small scan over headers and keys, good enough to point a person at the line. What it
cannot see (a key inside an inline table) is answered with the line of its parent.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

KeyPath = tuple[str | int, ...]

_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED: Final = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_KEY: Final = re.compile(rf"\s*({_DOTTED})\s*=")
_TABLE: Final = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]")
_ARRAY: Final = re.compile(rf"\s*\[\[\s*({_DOTTED})\s*\]\]")
_TRIPLE: Final = re.compile(r'"""|' + "'''")


@dataclass(frozen=True, slots=True)
class LineIndex:
    """Lines of the keys of one text, 1-based."""

    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """Return the line of ``path``, or of the nearest parent that has one, or 1."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


def index_lines(text: str) -> LineIndex:
    """Scan a text that `tomllib` accepts."""
    lines: dict[KeyPath, int] = {}
    counts: Counter[KeyPath] = Counter()
    table: KeyPath = ()
    in_string = False
    for number, line in enumerate(text.splitlines(), start=1):
        was_in_string = in_string
        in_string ^= len(_TRIPLE.findall(line)) % 2 == 1
        if was_in_string:
            continue
        if found := _ARRAY.match(line):
            name = _parts(found[1])
            table = (*name, counts[name])
            counts[name] += 1
            lines.setdefault(name, number)
            lines[table] = number
        elif found := _TABLE.match(line):
            table = _parts(found[1])
            lines[table] = number
        elif found := _KEY.match(line):
            lines.setdefault((*table, *_parts(found[1])), number)
    return LineIndex(lines)


def _parts(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, dotted))

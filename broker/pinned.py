"""Layers that a device is pinned to, as a person writes them: ``0-3``. Pure."""

from __future__ import annotations

import re
from typing import Final

_LAYERS: Final = re.compile(r"(\d+)\s*-\s*(\d+)")


def parse_layers(text: str) -> tuple[int, int]:
    """Read ``0-3``, first and last layer, as a half-open range; ValueError says what is wrong."""
    found = _LAYERS.fullmatch(text.strip())
    if found is None or int(found[2]) < int(found[1]):
        raise ValueError(f'layers {text!r} are not a first and a last one like "0-3"')
    return int(found[1]), int(found[2]) + 1

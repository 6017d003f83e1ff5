"""Quantities as a person writes them: ``"60 %"``, ``"2 GiB"``, ``"5 ms"``, ``"100 Mbit/s"``.

Each parser returns SI units and raises ValueError with a message that says what was
expected; who knows the file and the line adds them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

_QUANTITY: Final = re.compile(r"\s*([-+]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")

_BYTES: Final = {
    "B": 1.0,
    **{f"{p}B": 1e3**n for n, p in enumerate(("k", "M", "G", "T"), start=1)},
    **{f"{p}iB": 1024.0**n for n, p in enumerate(("K", "M", "G", "T"), start=1)},
}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LONG_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES_PER_SECOND: Final = {
    "bit/s": 1 / 8,
    **{f"{p}bit/s": 1e3**n / 8 for n, p in enumerate(("k", "M", "G"), start=1)},
    **{f"{unit}/s": factor for unit, factor in _BYTES.items()},
}
_FLOPS: Final = {f"{p}flop/s": 1e3**n for n, p in enumerate(("M", "G", "T"), start=2)}


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory that a device offers to the model: exactly one of a share and bytes.

    Attributes:
        share: Part of the model's weights and planned KV; 0.6 is written ``"60 %"``.
        num_bytes: An absolute amount.
    """

    share: float | None = None
    num_bytes: int | None = None

    def __str__(self) -> str:
        """Return the form in which a node reads it."""
        if self.share is not None:
            return f"{self.share * 100:g} %"
        return str(self.num_bytes)


def parse_memory(value: object) -> Memory:
    """Parse ``"60 %"`` or ``"2 GiB"``; it must be greater than 0, and say in which unit."""
    if not isinstance(value, str):
        # A number alone might be meant as bytes, as MiB or as a share.
        no_unit = isinstance(value, int | float) and not isinstance(value, bool)
        raise ValueError(
            f"{value!r} {'has no unit; write' if no_unit else 'is not memory; write'} a share like "
            '"60 %" or a size like "2 GiB"'
        )
    amount, unit = _split(value, '"60 %" or "2 GiB"')
    if not amount > 0:
        raise ValueError(f"must be greater than 0, not {value!r}")
    if unit == "%":
        return Memory(share=amount / 100)
    num_bytes = _finite(amount * _factor(unit, _BYTES, value, also=("%",)), value)
    return Memory(num_bytes=int(num_bytes))


def parse_seconds(value: object) -> float:
    """Parse a delay such as ``"5 ms"``; 0 is allowed."""
    return _parse(value, _SECONDS, '"5 ms"', minimum_excluded=None)


def parse_duration(value: object) -> float:
    """Parse a time to wait or to last, such as ``"90 min"``; it must be greater than 0."""
    return _parse(value, _LONG_SECONDS, '"90 min" or "7 d"', minimum_excluded=0.0)


def parse_bytes_per_second(value: object) -> float:
    """Parse a rate such as ``"100 Mbit/s"`` or ``"12 MB/s"``; it must be greater than 0."""
    return _parse(value, _BYTES_PER_SECOND, '"100 Mbit/s" or "12 MB/s"', minimum_excluded=0.0)


def parse_flops(value: object) -> float:
    """Parse a compute rate such as ``"70 Gflop/s"``; it must be greater than 0."""
    return _parse(value, _FLOPS, '"70 Gflop/s"', minimum_excluded=0.0)


def format_bytes(num_bytes: float) -> str:
    """Return a size as a person reads it, for example ``9.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Return a time as a person reads it, for example ``12.5 ms`` or ``3.2 s``."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s"


def suggest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return ``; did you mean '...'?``, or the known names when none is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def _parse(
    value: object, units: Mapping[str, float], example: str, *, minimum_excluded: float | None
) -> float:
    if not isinstance(value, str):
        raise ValueError(f"expected text with a unit like {example}, not {value!r}")
    amount, unit = _split(value, example)
    result = _finite(amount * _factor(unit, units, value), value)
    if result < 0 or (minimum_excluded is not None and result <= minimum_excluded):
        limit = "not be negative" if minimum_excluded is None else "be greater than 0"
        raise ValueError(f"must {limit}: {value!r}")
    return result


def _split(text: str, example: str) -> tuple[float, str]:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a number with a unit, like {example}")
    amount = _finite(float(found[1]), text)
    if not found[2]:
        raise ValueError(f"{text!r} has no unit; write it like {example}")
    return amount, found[2]


def _finite(amount: float, text: object) -> float:
    if not math.isfinite(amount):
        raise ValueError(f"{text!r} is too large")
    return amount


def _factor(
    unit: str, units: Mapping[str, float], value: object, *, also: tuple[str, ...] = ()
) -> float:
    if unit in units:
        return units[unit]
    # "mib" or "mbit/s": which one is meant is clear when only one unit differs in case.
    same = [known for known in (*units, *also) if known.lower() == unit.lower()]
    hint = f"; did you mean {same[0]!r}?" if len(same) == 1 else ""
    raise ValueError(
        f"unknown unit {unit!r} in {value!r}{hint or '; known: ' + ', '.join((*also, *units))}"
    )

"""Numbers that say where they are from: tables of ``{ value, source, note }``. Pure.

A profile that nobody measured with our program is worth as much as its sources, so files of
such numbers state one for each, and reading refuses a number without.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


class UnsourcedNumberError(ValueError):
    """A number is missing, has no source or is none; the message names file and place."""


@dataclass(frozen=True, slots=True)
class Sourced:
    """A number, for people who ask where it is from.

    Attributes:
        place: Table and name, as in ``"dev1.usable_gigabytes"``.
        source: One of the words that the file allows.
        note: How it was derived, or what it was fitted to; may be empty.
    """

    place: str
    value: float
    source: str
    note: str


class SourcedTable:
    """The numbers of one table; asking for one that is missing names it."""

    def __init__(self, where: str, numbers: Mapping[str, Sourced]) -> None:
        self._where = where
        self._numbers = numbers

    def __call__(self, name: str, default: float | None = None) -> float:
        """Return a number.

        Raises:
            UnsourcedNumberError: It is missing and there is no default.
        """
        number = self._numbers.get(name)
        if number is not None:
            return number.value
        if default is None:
            raise UnsourcedNumberError(f"{self._where}: {name} is missing")
        return default

    def __contains__(self, name: str) -> bool:
        return name in self._numbers


class SourcedFile:
    """Reads the tables of one file, and keeps a list of all numbers that it read.

    Attributes:
        found: Every number, in the order of reading.
    """

    def __init__(self, name: str, sources: Collection[str]) -> None:
        self._name = name
        self._sources = sources
        self.found: list[Sourced] = []

    def table(
        self, where: str, table: Mapping[str, Any], texts: Collection[str] = ()
    ) -> SourcedTable:
        """Return a table's numbers; the entries named in ``texts`` are not numbers.

        Raises:
            UnsourcedNumberError: An entry has no number or no source, or is negative.
        """
        numbers = {
            name: self._number(f"{where}.{name}", entry)
            for name, entry in table.items()
            if name not in texts
        }
        self.found.extend(numbers.values())
        return SourcedTable(f"{self._name}: {where}", numbers)

    def _number(self, place: str, entry: Any) -> Sourced:
        value = entry.get("value") if isinstance(entry, dict) else None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise UnsourcedNumberError(f"{self._name}: {place} needs a number as its value")
        if entry.get("source") not in self._sources:
            allowed = ", ".join(self._sources)
            raise UnsourcedNumberError(f"{self._name}: {place} needs a source, one of {allowed}")
        if value < 0:
            raise UnsourcedNumberError(f"{self._name}: {place} must not be negative")
        return Sourced(place, value, entry["source"], str(entry.get("note", "")))

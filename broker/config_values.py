"""Values of a checkpoint's ``config.json``, checked as they are read. No torch, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REMEDY: Final = "choose another checkpoint, or a converted copy of it without this key"


class UnsupportedModelError(ValueError):
    """The checkpoint cannot be served as it is; the message says what, why and the remedy."""


class ConfigValues:
    """A config over its family's defaults; a value that is malformed is refused by name.

    Args:
        values: Keys and values.
        inside: What stands before a key in messages, as in ``rope_scaling.``.
    """

    def __init__(self, values: Mapping[str, Any], inside: str = "") -> None:
        self._values, self._inside = values, inside

    def get(self, key: str) -> Any:
        """Return the value as it stands, None if it is absent."""
        return self._values.get(key)

    def changed(self, **changes: Any) -> ConfigValues:
        """Return the same values but for some."""
        return ConfigValues({**self._values, **changes}, self._inside)

    def flag(self, key: str) -> bool:
        """Return whether the value is there and not false."""
        return bool(self.get(key))

    def whole_number(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number of at least ``least``; ``default`` where it is absent or null."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._refusal(key, value, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number greater than 0; ``default`` where it is absent or null."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self._refusal(key, value, "a number greater than 0")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of numbers greater than 0, of at least one."""
        value = self.get(key)
        if not isinstance(value, (list, tuple)) or not value:
            raise self._refusal(key, value, "a list of numbers")
        return tuple(ConfigValues({key: number}, self._inside).number(key) for number in value)

    def whole_numbers(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers from 0 on, also of one alone; empty where absent."""
        value = self.get(key)
        numbers = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in numbers):
            raise self._refusal(key, value, "a list of whole numbers")
        return tuple(numbers)

    def _refusal(self, key: str, value: Any, expected: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"config key {self._inside}{key}={value!r} is not {expected}; check config.json"
        )

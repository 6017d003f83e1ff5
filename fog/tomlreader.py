"""Reads the keys of a TOML file that a person wrote; every complaint names file, line and key."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fog.quantities import suggest
from fog.tomlfaults import describe_fault
from fog.tomllines import KeyPath, LineIndex, index_lines

ValueT = TypeVar("ValueT")


class ConfigError(ValueError):
    """A file is wrong. The message names file, line and key, and the remedy."""


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ConfigError: It cannot be read, or is no text.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason}") from error


def parse_toml(text: str, path: Path) -> tuple[TomlReader, dict[str, Any]]:
    """Return the values of a text, and what reads them.

    Raises:
        ConfigError: It is not TOML.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, what = describe_fault(text, error)
        raise ConfigError(f"{path}:{line}: not valid TOML: {what}") from error
    return TomlReader(path, index_lines(text)), values


class Missing:
    """Marks a key without a default."""


class TomlReader:
    """Reads keys of one file and turns every complaint into a `ConfigError` with its line."""

    def __init__(self, path: Path, index: LineIndex) -> None:
        self.path = path
        self.index = index

    def fail(self, at: KeyPath, message: str) -> NoReturn:
        """Raise a `ConfigError` about a key."""
        key = ".".join(f"[{part}]" if isinstance(part, int) else part for part in at)
        key = key.replace(".[", "[")
        label = f" {key}:" if key else ""
        raise ConfigError(f"{self.path}:{self.index.line(at)}:{label} {message}")

    def check_keys(self, at: KeyPath, raw: dict[str, Any], known: tuple[str, ...]) -> None:
        """Refuse keys of a table that mean nothing."""
        for key in raw:
            if key not in known:
                self.fail((*at, key), f"unknown key{suggest(key, list(known))}")

    def read(
        self,
        at: KeyPath,
        raw: dict[str, Any],
        key: str,
        parse: Callable[[object], ValueT],
        default: ValueT | type[Missing] = Missing,
    ) -> ValueT:
        """Return the value of a key of a table, parsed, or its default."""
        if key not in raw:
            if default is Missing:
                self.fail(at, f"needs the key {key!r}")
            return default  # type: ignore[return-value]
        try:
            return parse(raw[key])
        except ValueError as error:
            self.fail((*at, key), str(error))

"""Settings of a process: one frozen dataclass, read once from the environment.

Field ``chunk_tokens`` of a class read with prefix ``E2LLM_PLANNER_`` is the variable
``E2LLM_PLANNER_CHUNK_TOKENS``. `COMMON` variables have no process in their name. Any variable
may instead be given as ``<NAME>_FILE``, the path of a file with the value, which is how
containers mount secrets. An unknown or malformed variable is a `SettingsError` that names it.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

COMMON: dict[str, str] = {
    "broker": "E2LLM_BROKER",
    "site": "E2LLM_SITE",
    "redis": "E2LLM_REDIS",
    "log": "E2LLM_LOG",
    "log_format": "E2LLM_LOG_FORMAT",
}
"""Fields that several processes share, and the variable of each."""

_TOLD: dict[str, str] = {
    "broker": "The MQTT broker with a credential: mqtt://user:password@host:port.",
    "site": "Name of the fog; part of every topic.",
    "redis": "redis://:password@host:port/0.",
    "log": "Level of the log: debug, info, warning or error.",
    "log_format": "text, or json: one object a line, with ids of requests as fields.",
    "id": "Name of this process at the broker.",
}

SettingsT = TypeVar("SettingsT")


class SettingsError(ValueError):
    """A setting is missing, unknown or malformed. The message names it and the remedy."""


def read_settings(cls: type[SettingsT], prefix: str, environ: Mapping[str, str]) -> SettingsT:
    """Build ``cls`` from variables that start with ``prefix``, and the `COMMON` ones.

    Fields may be str, int, float, bool or Path, or one of these or None. An empty variable
    counts as not set. A ``__post_init__`` that raises ValueError is reported as it says.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    names = {name: COMMON.get(name, prefix + name.upper()) for name in fields}
    known = set(names.values())
    for variable in environ:
        if variable.startswith(prefix) and variable.removesuffix("_FILE") not in known:
            raise SettingsError(f"unknown setting {variable}; known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        text = environ.get(names[name], "") or _read_file(environ, names[name] + "_FILE")
        if text:
            values[name] = _parse(hints[name], text, names[name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{names[name]} is not set")
    try:
        return cls(**values)
    except SettingsError:
        raise
    except ValueError as error:
        # The check knows fields; a person knows variables.
        blamed = [names[name] for name in fields if re.search(rf"\b{name}\b", str(error))]
        raise SettingsError(f"{', '.join(blamed) or f'{prefix}*'}: {error}") from error


def process_settings(
    cls: type[SettingsT], prefix: str, program: str, argv: Sequence[str]
) -> SettingsT:
    """Read the settings of this process; ``--help`` tells them, and a mistake ends it.

    Args:
        cls: The settings.
        prefix: Of the variables.
        program: What the process is called, as in ``python -m nodes``.
        argv: Its arguments; it has no others than ``--help``.

    Raises:
        SystemExit: 0 after the help; 2 with one line about what is wrong.
    """
    if argv in (["--help"], ["-h"]):
        print(settings_help(cls, prefix, program))  # noqa: T201
        raise SystemExit(0)
    try:
        if argv:
            raise SettingsError(
                f"takes no arguments, but got {' '.join(argv)!r}; its settings are environment "
                f"variables, which `{program} --help` lists"
            )
        return read_settings(cls, prefix, os.environ)
    except SettingsError as error:
        print(f"{program}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error


@dataclass(frozen=True, slots=True)
class Described:
    """A setting as a person is told of it.

    Attributes:
        default: None: it must be set; "": it is not set.
        text: What the class says about its field.
    """

    variable: str
    default: str | None
    text: str


def described(cls: type[Any], prefix: str) -> list[Described]:
    """Return every setting of ``cls``, in the order of its fields."""
    told = _told(inspect.getdoc(cls) or "")
    found = []
    for field in dataclasses.fields(cls):
        default = "" if field.default is None else str(field.default)
        found.append(
            Described(
                COMMON.get(field.name, prefix + field.name.upper()),
                None if field.default is dataclasses.MISSING else default,
                told.get(field.name) or _TOLD.get(field.name, ""),
            )
        )
    return found


def settings_help(cls: type[Any], prefix: str, program: str) -> str:
    """Return every variable with its default and what the class says about its field."""
    lines = [
        f"{program}: settings are environment variables. <NAME>_FILE may name a file with the "
        "value instead.",
    ]
    for setting in described(cls, prefix):
        default = "required" if setting.default is None else f"default: {setting.default}"
        lines.append(f"\n{setting.variable} ({default if setting.default != '' else 'not set'})")
        text = setting.text.replace("``", "")
        lines += textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _told(docstring: str) -> dict[str, str]:
    """Return the entries of a docstring's section ``Attributes``, each on one line."""
    _, _, section = docstring.partition("Attributes:\n")
    told: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if found := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = found[1].split(", ")
            told |= dict.fromkeys(names, found[2])
        elif line.startswith(" " * 8):
            told |= {name: f"{told[name]} {line.strip()}" for name in names}
        else:
            break
    return told


def _read_file(environ: Mapping[str, str], variable: str) -> str:
    """Return the value in the file that ``variable`` names, or nothing if it is not set."""
    path = environ.get(variable, "")
    if not path:
        return ""
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable}={path!r} cannot be read: {error}") from error


def _parse(hint: Any, text: str, variable: str) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if hint is bool:
        lowered = text.lower()
        if lowered in {"1", "true", "yes", "on"}:
            return True
        if lowered in {"0", "false", "no", "off"}:
            return False
        raise SettingsError(f"{variable} must be true or false, not {text!r}")
    try:
        return hint(text)
    except ValueError as error:
        raise SettingsError(f"{variable}={text!r} is not a valid {hint.__name__}") from error

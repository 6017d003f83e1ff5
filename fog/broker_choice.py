"""Which MQTT broker a local fog gets: Mosquitto where it is installed, else the embedded one."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from broker.server import find_mosquitto

_VERSION: Final = re.compile(r"mosquitto version (\S+)")
_TIMEOUT_SECONDS: Final = 5.0


def broker_text() -> str:
    """Return the broker with its version and, for Mosquitto, its path."""
    if binary := find_mosquitto():
        return f"Mosquitto {mosquitto_version(binary) or 'of unknown version'} ({binary})"
    try:
        embedded = f"amqtt {version('amqtt')}"
    except PackageNotFoundError:
        embedded = "amqtt"
    return f"{embedded}, embedded; Mosquitto, which is faster, is not installed"


def mosquitto_version(binary: Path) -> str | None:
    """Return what Mosquitto says of itself; None when it says nothing."""
    try:
        # It has no option for the version alone; the help begins with it.
        shown = subprocess.run(
            [binary, "-h"], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(shown.stdout)
    return found[1] if found else None

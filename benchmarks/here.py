"""Where a benchmark ran: commit, machine, versions. Printed above its figures."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def commit() -> str:
    """Return the commit of this checkout, with ``-dirty`` when files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def context(*packages: str) -> dict[str, Any]:
    """Return commit, machine and load, and the versions of the packages that matter."""
    return {
        "commit": commit(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }

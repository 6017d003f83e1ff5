"""Where a benchmark ran: commit, machine, versions. Printed above its figures."""

import os
import platform
import subprocess
from importlib.metadata import version
from typing import Any


def context(*packages: str) -> dict[str, Any]:
    """Return commit, machine and load, and the versions of the packages that matter."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }

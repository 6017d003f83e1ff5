"""`e2llm` as a person runs it."""

import os
import subprocess
import sys


def e2llm(
    *arguments: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `e2llm` with the arguments to its end; ``environ`` is added to the environment."""
    command = [sys.executable, "-m", "fog", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(environ or {})}
    )

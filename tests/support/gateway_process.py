"""``python -m gateway`` as a process, and how to wait for what it answers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx2

WAIT_SECONDS: Final = 30
STOP_SECONDS: Final = 2


def environ_for(folder: Path, state: Path, port: int, **changes: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("E2LLM_")}
    return {
        **inherited,
        # Nothing listens there: the gateway serves HTTP all the same and goes on trying.
        "E2LLM_BROKER": "mqtt://gateway-1:secret@127.0.0.1:9",
        "E2LLM_GATEWAY_MODEL": str(folder),
        "E2LLM_GATEWAY_STATE": str(state),
        "E2LLM_GATEWAY_PORT": str(port),
        **changes,
    }


@contextmanager
def gateway(environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway"], env=environ, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def get_when(url: str, is_wanted: Callable[[httpx2.Response], bool]) -> httpx2.Response:
    """Ask until the answer is the wanted one."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            response = httpx2.get(url)
        except httpx2.TransportError:
            time.sleep(0.02)  # nothing to wait on in another process
            continue
        if is_wanted(response):
            return response
    raise AssertionError(f"{url} did not answer as it should")

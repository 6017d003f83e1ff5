"""What the dashboard costs its gateway: in time and memory, unopened, opened and looked at.

    python -m benchmarks.dashboard [--devices 200] [--requests 50] [--seconds 60] [--json FILE]
    python -m benchmarks.dashboard --kill

Serves a gateway over a fog of so many devices, each of which sends telemetry every two seconds,
in a process of its own, and looks at it with Debian's Chromium. Measured is the gateway's
process: the memory before and after somebody opens the dashboard, how long the first page takes
and the next one, and the share of a core while a window shows each page. With ``--kill``: how
long after a node of `e2llm up` was killed it is red. Prints a Markdown report.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import psutil
import uvloop
from playwright.sync_api import Browser, Playwright, sync_playwright

from benchmarks.here import context
from broker.plan import Replica, Role
from gateway.course import Stretch
from gateway.dashboard.history import record
from tests.support.gateway_api import Api, settings_for
from tests.support.model_folder import BYTE, write_model_folder
from tests.support.running_fog import running_fog
from tests.support.shown_fog import ShownFog, plan_of, replica

ROOT: Final = Path(__file__).parent.parent
TELEMETRY_SECONDS: Final = 2.0
WIDTH, HEIGHT = 1440, 900
HELD: Final[list[asyncio.Task[Any]]] = []
CHROMIUM: Final = "/usr/bin/chromium"
PAGES: Final = ("", "requests", "devices", "plans")


@dataclass(frozen=True)
class Cost:
    """What one window cost the gateway.

    Attributes:
        page: Address below the dashboard's.
        core_share: Of the gateway's process, over the time that the window was open.
        kilobytes_per_second: To the browser.
    """

    page: str
    core_share: float
    kilobytes_per_second: float


@dataclass(frozen=True)
class Result:
    """Everything; memory in MiB, times in seconds."""

    num_devices: int
    num_requests: int
    idle_core_share: float
    rss_before: float
    rss_after: float
    first_page_seconds: float
    next_page_seconds: float
    pages: list[Cost]


# --- the gateway, in a process of its own -------------------------------------------------------


def large_fog(num_devices: int) -> ShownFog:
    """Return a fog in replicas of two to six devices, half of them for each phase."""
    fog, rng = ShownFog(), random.Random(1)
    names = [f"device-{number:03}" for number in range(num_devices)]
    for name in names:
        fog.say(name)
    replicas: list[Replica] = []
    rest = names[: num_devices * 19 // 20]
    while rest:
        count = min(rng.randint(2, 6), len(rest))
        role = Role.PREFILL if len(replicas) % 2 else Role.DECODE
        replicas.append(replica(f"r-{len(replicas):010x}", role, rest[:count]))
        rest = rest[count:]
    fog.adopt(plan_of(2, *replicas))
    return fog


async def hold(api: Api, fog: ShownFog, num_requests: int) -> None:
    """Have so many requests that wait for their third token, and that no token ends before."""
    fog.script, fog.hold_after = (lambda generation: [BYTE + ord("7")] * 8), 2
    body = {"messages": [{"role": "user", "content": "7+5?"}], "max_tokens": 8}
    for _ in range(num_requests):
        HELD.append(asyncio.create_task(api.post("/v1/chat/completions", body)))
    while len(fog.submitted) < num_requests:
        await asyncio.sleep(0.1)


async def live(fog: ShownFog) -> None:
    """Let every device send telemetry, evenly spread, while every request goes on."""
    rng, names = random.Random(2), sorted(fog.view.devices)
    phases = (("queue", 0.0, 0.2), ("prefill", 0.2, 0.5), ("kv_transfer", 0.7, 0.1))
    known, begun = tuple(Stretch(*each) for each in phases), time.monotonic()
    while True:
        decode = Stretch("decode", 0.8, time.monotonic() - begun)
        fog.stretches = {each.request_id: (*known, decode) for each in fog.submitted}
        for name in names:
            fog.report(
                name,
                cpu_load_ratio=rng.random(),
                queue_length=rng.randint(0, 9),
                tokens_per_second=20 * rng.random(),
                temperature_celsius=40 + 30 * rng.random(),
                memory_used_bytes=rng.randint(10**8, 10**9),
            )
            await asyncio.sleep(TELEMETRY_SECONDS / len(names))


async def serve(num_devices: int, num_requests: int) -> None:
    """Serve until killed; print the address."""
    with tempfile.TemporaryDirectory() as folder:
        fog = large_fog(num_devices)
        fog.num_running = num_requests
        api = Api(fog, settings_for(write_model_folder(Path(folder) / "model"), Path(folder)))
        HELD.append(asyncio.create_task(record(api.history, fog.devices, time.time)))
        async with api.served() as url:
            await hold(api, fog, num_requests)
            print(url, flush=True)
            await live(fog)


@contextmanager
def gateway(num_devices: int, num_requests: int) -> Iterator[tuple[str, psutil.Process]]:
    """Give the address and the process of a gateway."""
    arguments = ["--serve", "--devices", str(num_devices), "--requests", str(num_requests)]
    command = [sys.executable, "-m", "benchmarks.dashboard", *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().strip(), psutil.Process(child.pid)
    finally:
        child.kill()
        child.wait()


# --- measuring ----------------------------------------------------------------------------------


def core_share(process: psutil.Process, seconds: float) -> float:
    """Return the share of a core that a process takes while we wait."""
    before, begun = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begun)


def timed(url: str) -> float:
    """Return how long the answer takes."""
    begun = time.monotonic()
    with urlopen(url) as answer:
        answer.read()
    return time.monotonic() - begun


def look(browser: Browser, url: str, page: str, process: psutil.Process, seconds: float) -> Cost:
    """Return what a window costs that shows a page, once it has been drawn."""
    window = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    received = 0

    def count(frame: str | bytes) -> None:
        nonlocal received
        received += len(frame)

    window.on("websocket", lambda socket: socket.on("framereceived", count))
    window.goto(f"{url}/dashboard/{page}")
    window.locator("h1").wait_for()
    # Playwright delivers what the socket receives only while it is asked for something.
    window.wait_for_timeout(3000)
    received, begun = 0, time.monotonic()
    before = sum(process.cpu_times()[:2])
    window.wait_for_timeout(1000 * seconds)
    passed = time.monotonic() - begun
    share = (sum(process.cpu_times()[:2]) - before) / passed
    window.close()
    return Cost(page or "fog", round(share, 3), round(received / passed / 1000, 1))


def measure(num_devices: int, num_requests: int, seconds: float, pages: list[str]) -> Result:
    """Measure everything once."""
    with gateway(num_devices, num_requests) as (url, process), sync_playwright() as playwright:
        time.sleep(2)
        idle = core_share(process, seconds / 4)
        before = process.memory_info().rss / 2**20
        first, later = timed(f"{url}/dashboard/"), timed(f"{url}/dashboard/")
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        costs = [look(browser, url, page, process, seconds) for page in pages]
        after = process.memory_info().rss / 2**20
        browser.close()
    return Result(
        num_devices,
        num_requests,
        round(idle, 3),
        round(before, 1),
        round(after, 1),
        round(first, 2),
        round(later, 3),
        costs,
    )


def seconds_to_red(playwright: Playwright) -> list[float]:
    """Return how long after its process was killed each of three nodes is red in a window."""
    took = []
    with tempfile.TemporaryDirectory() as folder, running_fog(Path(folder)) as fog:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        window = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        window.goto(f"{fog.url}/dashboard/")
        for device in sorted(fog.devices())[:3]:
            window.locator(f'[data-device="{device}"].is-ready').wait_for()
            begun = time.monotonic()
            os.kill(fog.devices()[device]["pid"], signal.SIGKILL)
            window.locator(f'[data-device="{device}"].is-lost').wait_for()
            took.append(round(time.monotonic() - begun, 2))
        browser.close()
    return took


def report(result: Result) -> str:
    """Return it in Markdown."""
    lines = [
        f"{result.num_devices} devices with telemetry every {TELEMETRY_SECONDS:g} s, "
        f"{result.num_requests} requests in flight; {context('nicegui')}",
        "",
        "| figure | value |",
        "| --- | --- |",
        f"| memory of the process, unopened; opened | {result.rss_before:.0f}; "
        f"{result.rss_after:.0f} MiB |",
        f"| first page, which loads NiceGUI; the next one | {result.first_page_seconds:.2f}; "
        f"{result.next_page_seconds:.3f} s |",
        f"| of a core, nobody looks | {100 * result.idle_core_share:.1f} % |",
    ]
    lines += [
        f"| of a core, a window shows {each.page} | {100 * each.core_share:.1f} % "
        f"({each.kilobytes_per_second:.0f} kB/s) |"
        for each in result.pages
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="that each page is shown")
    parser.add_argument("--pages", nargs="*", help="addresses below the dashboard's; default all")
    parser.add_argument("--kill", action="store_true", help="nodes of a real fog, until red")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        # As a gateway runs.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.devices, options.requests))
        return
    if options.kill:
        with sync_playwright() as playwright:
            print(f"killed, then red after {seconds_to_red(playwright)} s; {context('nicegui')}")
        return
    pages = options.pages if options.pages is not None else list(PAGES)
    result = measure(options.devices, options.requests, options.seconds, pages)
    print(report(result))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What clients notice when a fog changes its model: failed requests, and the longest waits.

    python benchmarks/model_change.py [--memory 150] [--streams 3] [--seconds 10] [--json FILE]

Starts the default six devices (`e2llm up`) with ``--memory`` percent of the demo model on each,
adds a second model of the same shape, and asks streams without a pause while the fog changes to it
and back. Without room for both (try 70) replicas change one after the other. Prints a
Markdown report; exits with 1 when a request failed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.here import context
from fog.answer import Answer
from fog.chaos.load import Job, Load, Outcome, make_bodies
from fog.client import FogClient
from fog.config import DEFAULT_FOG
from fog.model_choice import DEMO_MODEL, DEMO_NAME
from fog.ports import free_port

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 300.0
SECOND = "second"


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="e2llm-model-change-") as folder:
        scratch = Path(folder)
        second = second_model(scratch / "second")
        with running_fog(scratch, options.memory) as client:
            add(client, second)
            changes = measure(client, options.streams, options.seconds)
    report = {**context("torch"), "memory_percent": options.memory, "streams": options.streams}
    report["changes"] = changes
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(markdown(report))
    sys.exit(any(change["failed"] for change in changes))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=150, help="percent of the model per device")
    parser.add_argument("--streams", type=int, default=3, help="requests at once")
    parser.add_argument("--seconds", type=float, default=10.0, help="before and after a change")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    return parser.parse_args()


def second_model(folder: Path) -> Path:
    """Copy the demo model with one bit of its weights turned: another model to the fog."""
    shutil.copytree(DEMO_MODEL, folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)
    return folder


@contextmanager
def running_fog(scratch: Path, memory_percent: int) -> Iterator[FogClient]:
    """Run the default devices with other memory until the block ends."""
    text = DEFAULT_FOG.read_text("utf-8")
    fog = scratch / "fog.toml"
    fog.write_text(re.sub(r'model_memory = ".*"', f'model_memory = "{memory_percent} %"', text))
    port = free_port(random.SystemRandom())
    command = [sys.executable, "-m", "fog", "up", "--fog", str(fog), "--port", str(port)]
    with (scratch / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--state", str(scratch / "state")],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        client = FogClient(f"http://127.0.0.1:{port}")
        try:
            until(lambda: "listens on" in (scratch / "up.log").read_text(), process, scratch)
            yield client
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def until(is_so: Any, process: subprocess.Popen[bytes], scratch: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit((scratch / "up.log").read_text())
        time.sleep(0.2)


def add(client: FogClient, folder: Path) -> None:
    """Add the second model, and wait until all devices have measured themselves for it."""
    client.add_model(str(folder), SECOND, None)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := state_of(client, SECOND))["progress"] != 1.0 or found["state"] != "added":
        if time.monotonic() > deadline:
            raise SystemExit(f"the second model is not ready: {found}")
        time.sleep(0.2)


def state_of(client: FogClient, name: str) -> dict[str, Any]:
    return next(each for each in client.models() if each["name"] == name)


def measure(client: FogClient, num_streams: int, seconds: float) -> list[dict[str, Any]]:
    """Change to the second model and back while streams run."""
    changes = []
    for before, after in ((DEMO_NAME, SECOND), (SECOND, DEMO_NAME)):
        bodies = make_bodies("default", seed=7, max_tokens=32, sampled=0.5, count=12)
        jobs = [Job(body=body, undisturbed=client.chat(bodies[0])) for body in bodies]
        load = Load(client.url, jobs, num_streams)
        load.start()
        time.sleep(seconds)
        began = time.monotonic()
        client.use_models([after])
        serves = wait_until(client, after, "serving")
        left = wait_until(client, before, "added")
        time.sleep(seconds)
        num_hung = load.stop()
        outcomes = [*load.outcomes]
        changes.append(
            {
                "from": before,
                "to": after,
                "serves_after_seconds": serves - began,
                "left_after_seconds": left - began,
                **figures(outcomes, num_hung, began, left),
            }
        )
    return changes


def wait_until(client: FogClient, name: str, state: str) -> float:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while state_of(client, name)["state"] != state:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} is not {state}: {client.models()}")
        time.sleep(0.05)
    return time.monotonic()


def figures(
    outcomes: Sequence[Outcome], num_hung: int, began: float, left: float
) -> dict[str, Any]:
    answers = [(each, each.answer) for each in outcomes if each.answer is not None]
    within = [answer for each, answer in answers if began - 1 <= each.ended_at <= left + 5]
    apart = [answer for each, answer in answers if each.ended_at < began]
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(answers) + num_hung,
        "refused": sum(each.num_refused for each in outcomes),
        "change": waits(within),
        "before": waits(apart),
    }


def waits(answers: Sequence[Answer]) -> dict[str, float]:
    return {
        "requests": len(answers),
        "median_ttft_seconds": median(each.ttft_seconds for each in answers),
        "longest_ttft_seconds": max(each.ttft_seconds for each in answers),
        "longest_pause_seconds": max(each.longest_pause_seconds for each in answers),
    }


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Commit {report['commit']}, {report['cores']} cores, load {report['load']}; six devices "
        f"with {report['memory_percent']} % of the model each, {report['streams']} streams.",
        "",
        "| change | requests | failed | refused | new model serves | old one has left "
        "| longest pause | longest TTFT | before: pause | before: TTFT |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for change in report["changes"]:
        during, before = change["change"], change["before"]
        lines.append(
            f"| {change['from']} to {change['to']} | {change['requests']} | {change['failed']} | "
            f"{change['refused']} | {change['serves_after_seconds']:.1f} s | "
            f"{change['left_after_seconds']:.1f} s | {during['longest_pause_seconds']:.2f} s | "
            f"{during['longest_ttft_seconds']:.2f} s | {before['longest_pause_seconds']:.2f} s | "
            f"{before['longest_ttft_seconds']:.2f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

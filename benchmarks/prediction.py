"""How far a plan's predictions are off under the default load.

    python benchmarks/prediction.py [--seconds 40] [--share 0.7] [--url URL] [--json FILE]

Starts the default fog (`e2llm up`), or uses a running one, and asks with prompts and answers
of the lengths that its plan is for: as many at once as 70 % of its decode slots, which is not
counted, since the planner learns from it what hops take; then one request after the other, 70 %
again, and more than it has slots. Every two seconds it reads
``GET /fog/plan``, where measured stage times, TTFT and time per token stand beside the
predictions for the same rows and lengths, and the rate, while requests wait, beside the
predicted capacity. Prints the error of each, their median, and the plans that were made. The
default fog needs more than a core: where other programs use the machine, steps come late.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.here import commit
from fog.client import FogClient
from tests.support.running_fog import running_fog

LOOK_SECONDS = 2.0
WARM_SECONDS = 8.0
"""Not counted at the beginning of each phase: the telemetry's window and what was before it."""


@dataclass
class Errors:
    """Signed errors by what was predicted, one entry for each look and stage."""

    found: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, error: float | None) -> None:
        if error is not None:
            self.found.setdefault(name, []).append(error)

    def rows(self) -> list[tuple[str, float, float, int]]:
        """Return name, median error, median of its size, and looks."""
        return [
            (
                name,
                statistics.median(errors),
                statistics.median(map(abs, errors)),
                len(errors),
            )
            for name, errors in sorted(self.found.items())
        ]


def main() -> None:
    options = parse_options()
    with fog(options.url) as client:
        plan = client.plan()
        slots = sum(r["slots"] for r in plan["replicas"] if r["role"] != "prefill")
        phases = {
            "one at a time": 1,
            f"{options.share:.0%} of {slots} slots": max(round(options.share * slots), 1),
            "more than slots": slots + slots // 2 + 1,
        }
        note(f"to learn from: {options.seconds:g} s")
        run(client, max(round(options.share * slots), 1), options.seconds, Errors(), "learned from")
        errors, rates = Errors(), {}
        for name, num_workers in phases.items():
            note(f"{name}: {num_workers} at once, {options.seconds:g} s")
            rates[name] = run(client, num_workers, options.seconds, errors, name)
        history = client.plan_history()
        report = summary(client, plan, errors, rates, history)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each phase (default 40)")
    parser.add_argument("--share", type=float, default=0.7, help="of the slots (default 0.7)")
    parser.add_argument("--url", help="a fog that runs; default: one is started")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    return parser.parse_args()


@contextmanager
def fog(url: str | None) -> Iterator[FogClient]:
    if url is not None:
        yield FogClient(url)
        return
    with tempfile.TemporaryDirectory(prefix="e2llm-prediction-") as folder:
        note("starting the default fog")
        with running_fog(Path(folder)) as started:
            yield started.client


def run(client: FogClient, num_workers: int, seconds: float, errors: Errors, phase: str) -> float:
    """Keep so many requests in flight for a while; return requests per second."""
    plan, model = client.plan(), client.model()
    stop = threading.Event()
    finished: list[float] = []
    workers = [
        threading.Thread(target=ask, args=(client, plan, model, seed, stop, finished))
        for seed in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(LOOK_SECONDS)
        if passed > WARM_SECONDS:
            look(client.plan(), errors, phase)
    stop.set()
    for worker in workers:
        worker.join()
    counted = [at for at in finished if WARM_SECONDS < at - began < seconds]
    return len(counted) / (seconds - WARM_SECONDS)


def ask(
    client: FogClient,
    plan: dict[str, Any],
    model: str,
    seed: int,
    stop: threading.Event,
    finished: list[float],
) -> None:
    """Ask one request after the other, of the lengths that the plan is for."""
    rng = random.Random(seed)
    while not stop.is_set():
        body = {
            "model": model,
            "prompt": [rng.randrange(10, 200) for _ in range(plan["prompt_tokens"])],
            "max_tokens": plan["answer_tokens"],
            "ignore_eos": True,
        }
        request = Request(
            f"{client.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=300) as response:
            response.read()
        finished.append(time.monotonic())


def look(plan: dict[str, Any], errors: Errors, phase: str) -> None:
    for replica in plan["replicas"]:
        for stage in replica["stages"]:
            for kind, measured in stage["measured"].items():
                if measured is not None:
                    errors.add(f"stage, {kind}", measured["error"])
    for name, key in (("TTFT", "ttft_seconds"), ("TPOT", "tpot_seconds")):
        errors.add(f"{name}, {phase}", plan["errors"].get(key))
    errors.add("requests per second", plan["errors"].get("requests_per_second"))


def summary(
    client: FogClient,
    plan: dict[str, Any],
    errors: Errors,
    rates: dict[str, float],
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    rows = errors.rows()
    return {
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, load average {os.getloadavg()[1]:.1f} in the last 5 minutes",
        "model": client.model(),
        "prompt_tokens": plan["prompt_tokens"],
        "answer_tokens": plan["answer_tokens"],
        "predicted": plan["predicted"],
        "requests_per_second": rates,
        "errors": [
            {"of": name, "error": error, "size": size, "looks": looks}
            for name, error, size, looks in rows
        ],
        "median_error": statistics.median(size for _, _, size, _ in rows) if rows else None,
        "decisions": [
            {key: entry.get(key) for key in ("version", "outcome", "trigger", "reason")}
            for entry in history
        ],
    }


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"Commit {report['commit']}; {report['machine']}; model {report['model']}, prompts of "
        f"{report['prompt_tokens']} and answers of {report['answer_tokens']} tokens.",
        "",
        "| predicted | median error | its size | looks |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {row['of']} | {row['error']:+.1%} | {row['size']:.1%} | {row['looks']} |"
            for row in report["errors"]
        ),
    ]
    if report["median_error"] is not None:
        lines += ["", f"Median of the sizes: {report['median_error']:.1%}."]
    rates = ", ".join(
        f"{rate:.2f} ({name})" for name, rate in report["requests_per_second"].items()
    )
    capacity = report["predicted"].get("requests_per_second") or 0.0
    lines += ["", f"Requests per second: {rates}; predicted capacity {capacity:.2f}.", ""]
    lines += [
        f"- {entry['outcome']} (plan {entry['version']}): {entry['trigger'] or '-'}; "
        f"{entry['reason']}"
        for entry in report["decisions"]
    ]
    return "\n".join(lines)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

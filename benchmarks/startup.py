"""How long until a fog answers, how fast it answers, and what it weighs.

    python benchmarks/startup.py [--starts 3] [--questions 100] [--install] [--json FILE]

Starts the default fog (`e2llm up`) several times in a fresh state folder, measures from
the start of the command to the first answer, then asks one of them questions one after
the other, and reads the memory of each of its processes. With ``--install`` the package
is first installed into a new virtual environment, and what follows runs there; pip's own
settings (index, proxy, cache) apply. Prints a Markdown report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.here import commit
from fog.answer import Answer
from fog.client import FogClient, Question
from fog.ports import free_port

ROOT = Path(__file__).parent.parent
START_TIMEOUT_SECONDS = 300
STOP_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class ProcessMemory:
    """Resident and proportional set size of one process, in MiB."""

    name: str
    rss_mib: float
    pss_mib: float | None


@dataclass(frozen=True)
class Spread:
    """Median and 99th percentile, in seconds."""

    median: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        return cls(
            statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        )


def main() -> None:
    options = parse_options()
    report: dict[str, object] = {"commit": commit(), "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="e2llm-startup-") as folder:
        scratch = Path(folder)
        python = Path(sys.executable)
        if options.install:
            python, report["install_seconds"] = install(scratch / "venv", options.constraint)
        starts = []
        for _ in range(options.starts - 1):
            with running_fog(python, scratch) as (seconds, _, _):
                starts.append(seconds)
        with running_fog(python, scratch) as (seconds, client, pid):
            starts.append(seconds)
            answers = ask(client, options.questions)
            report["memory"] = [asdict(entry) for entry in memory_of(pid, client)]
            report["model"] = client.model()
    report["first_answer_seconds"] = starts
    report["ttft_seconds"] = asdict(Spread.of([answer.ttft_seconds for answer in answers]))
    report["tpot_seconds"] = asdict(
        Spread.of([answer.tpot_seconds for answer in answers if answer.tpot_seconds])
    )
    report["questions"] = len(answers)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(markdown(report, starts))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3, help="starts of the fog (default 3)")
    parser.add_argument("--questions", type=int, default=100, help="questions (default 100)")
    parser.add_argument("--install", action="store_true", help="measure an installation, too")
    parser.add_argument("--constraint", help="pip constraint file for --install")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    return parser.parse_args()


def install(folder: Path, constraint: str | None) -> tuple[Path, float]:
    """Install this checkout with the extra ``fog``; return the interpreter and the seconds."""
    started = time.monotonic()
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    limits = ["--constraint", constraint] if constraint else []
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *limits, f"{ROOT}[fog]"], check=True)
    return python, time.monotonic() - started


@contextmanager
def running_fog(python: Path, scratch: Path) -> Iterator[tuple[float, FogClient, int]]:
    """Start the default fog; give the seconds to its first answer, a client, and its pid."""
    port = free_port(random.SystemRandom())
    state = Path(tempfile.mkdtemp(dir=scratch))
    first_answer = state / "first-answer.json"
    command = [str(python), "-m", "fog", "up", "--port", str(port), "--state", str(state / "fog")]
    # The checkout must not stand in for what was installed.
    folder = ROOT if python == Path(sys.executable) else scratch
    with (state / "output").open("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--json", str(first_answer)], stdout=output, stderr=output, cwd=folder
        )
        try:
            while not is_whole_json(first_answer):
                if process.poll() is not None or time.monotonic() - started > START_TIMEOUT_SECONDS:
                    output.seek(0)
                    sys.exit(f"the fog did not answer:\n{output.read()}")
                time.sleep(0.01)
            yield time.monotonic() - started, FogClient(f"http://127.0.0.1:{port}"), process.pid
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_TIMEOUT_SECONDS)
    shutil.rmtree(state)


def is_whole_json(path: Path) -> bool:
    try:
        json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def ask(client: FogClient, num_questions: int) -> list[Answer]:
    """Ask sums, one after the other, so that nothing waits for another request."""
    rng, model, answers = random.Random(0), client.model(), []
    for _ in range(num_questions):
        text = f"What is {rng.randrange(100)} plus {rng.randrange(100)}?"
        question = Question(messages=[{"role": "user", "content": text}], max_tokens=32)
        answers.append(client.ask(question, model))
    return answers


def memory_of(pid: int, client: FogClient) -> list[ProcessMemory]:
    devices = {device.get("pid"): device["id"] for device in client.devices()}
    parent = psutil.Process(pid)
    entries = []
    for process in [parent, *parent.children(recursive=True)]:
        info = process.memory_full_info()
        pss = getattr(info, "pss", None)
        name = devices.get(process.pid) or short_name(process)
        entries.append(ProcessMemory(name, info.rss / 2**20, None if pss is None else pss / 2**20))
    return entries


def short_name(process: psutil.Process) -> str:
    words = process.cmdline()
    if "-m" in words:
        return words[words.index("-m") + 1]
    return next((Path(w).stem for w in words if w.endswith("guard.py")), process.name())


def markdown(report: dict[str, object], starts: Sequence[float]) -> str:
    def spread(key: str) -> str:
        values = report[key]
        assert isinstance(values, dict)
        return f"{values['median'] * 1e3:.1f} ms | {values['p99'] * 1e3:.1f} ms"

    lines = [
        f"Commit {report['commit']}; {report['machine']}; model {report['model']}, "
        f"{report['questions']} questions one after the other.",
        "",
        "| figure | median | 99th percentile |",
        "| --- | --- | --- |",
        f"| TTFT | {spread('ttft_seconds')} |",
        f"| TPOT | {spread('tpot_seconds')} |",
        "",
        f"Start to first answer: {statistics.median(starts):.1f} s (median of {len(starts)}: "
        f"{', '.join(f'{seconds:.1f}' for seconds in starts)}).",
    ]
    if "install_seconds" in report:
        lines.append(f"Installation into an empty environment: {report['install_seconds']:.0f} s.")
    lines += ["", "| process | RSS MiB | PSS MiB |", "| --- | ---: | ---: |"]
    memory = report["memory"]
    assert isinstance(memory, list)
    for entry in memory:
        pss = "-" if entry["pss_mib"] is None else f"{entry['pss_mib']:.1f}"
        lines.append(f"| {entry['name']} | {entry['rss_mib']:.1f} | {pss} |")
    total = [sum(entry[key] or 0.0 for entry in memory) for key in ("rss_mib", "pss_mib")]
    lines.append(f"| together | {total[0]:.1f} | {total[1]:.1f} |")
    return "\n".join(lines)


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), "
        f"{memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()

"""`e2llm bench engine`: tokens per second of one machine's engine, beside `transformers`.

Each shape and weight format runs in a process of its own (`nodes.bench`); this module makes
the checkpoints, shows how far it is, and writes the table.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from broker.codec import decode_control, encode_control
from fog.model_choice import DEMO_MODEL, DEMO_QUESTION
from fog.output import write_json
from fog.quantities import format_bytes
from fog.services import NODE_ENVIRON, PACKAGE_ROOT, python_command, python_path
from fog.shapes import shapes

if TYPE_CHECKING:
    from nodes.bench.task import BenchTask, Said

DEFAULT_SHAPES: Final = ("qwen2.5-0.5b", "tinyllama-1.1b")
_QUICK: Final[Mapping[str, Any]] = {"batches": [1, 8], "seconds": 3.0}
_TEXTS: Final = (DEMO_QUESTION, "Is 19 more than 23?", "Which device is the fastest?")


class BenchFailedError(Exception):
    """A process of the benchmark ended early; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What the command line of `e2llm bench engine` says.

    Attributes:
        shapes: Of `fog.shapes`.
        weights: Weight formats.
        is_quick: Fewer rows and rounds.
        cache: Where checkpoints of random weights are kept.
    """

    shapes: Sequence[str]
    weights: Sequence[str]
    threads: int
    is_quick: bool
    cache: Path
    json_target: str | None = None


def run_bench(options: BenchOptions, console: Console) -> None:
    """Measure all shapes and formats, show tables, write JSON.

    Raises:
        BenchFailedError: As it says.
        OSError: A checkpoint cannot be written.
    """
    with_transformers = importlib.util.find_spec("transformers") is not None
    if not with_transformers:
        console.print(
            "transformers is not installed, so there are no ratios to it; "
            "pip install transformers adds them."
        )
    if missing := missing_bytes(options.shapes, options.cache):
        console.print(
            f"Checkpoints of random weights, {missing / 1e9:.1f} GB, are made in {options.cache} "
            "and kept for the next time (--models DIR: elsewhere)."
        )
    said: list[Said] = []
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(options.shapes) * len(options.weights))
        for shape in options.shapes:
            progress.update(bar, description=f"{shape}: checkpoint of random weights")
            folder = checkpoint_folder(shape, options.cache)
            for weights in options.weights:
                task = _task(shape, folder, weights, options, with_transformers)
                for line in _run(task):
                    said.append(line)
                    if line.note:
                        console.print(f"{shape} {weights}: {line.note}")
                    if line.doing:
                        text = f"{shape} {weights}: {line.doing}"
                        progress.update(bar, description=text)
                progress.advance(bar)
    write_json(options.json_target, report(said))
    if options.json_target is None:
        for table in tables(said):
            console.print(table)


def checkpoint_folder(shape: str, cache: Path) -> Path:
    """Return a checkpoint of random weights in this shape, made when it is not there yet."""
    from fog.made_model import make_model

    folder = cache / shape
    if not _is_made(folder):
        shutil.rmtree(folder, ignore_errors=True)  # one that was interrupted
        make_model(shapes()[shape], folder)
    return folder


def missing_bytes(names: Iterable[str], cache: Path) -> int:
    """Return the bytes of the checkpoints that are not there yet."""
    from fog.made_model import checkpoint_bytes

    return sum(checkpoint_bytes(shapes()[name]) for name in names if not _is_made(cache / name))


def _is_made(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _task(
    shape: str, folder: Path, weights: str, options: BenchOptions, with_transformers: bool
) -> BenchTask:
    from nodes.bench.task import BenchTask

    task = BenchTask(
        shape=shape,
        folder=str(folder),
        weights=weights,
        threads=options.threads,
        with_transformers=with_transformers,
        **(_QUICK if options.is_quick else {}),
    )
    if weights == "float32" or not (DEMO_MODEL / "config.json").is_file():
        return task
    texts = [_token_ids(text) for text in _TEXTS]
    return msgspec.structs.replace(task, trained_folder=str(DEMO_MODEL), trained_texts=texts)


def _token_ids(question: str) -> list[int]:
    from gateway.template import ChatTemplate
    from gateway.text import Tokenizer

    template = ChatTemplate.from_folder(DEMO_MODEL)
    text = template.render([{"role": "user", "content": question}]) if template else question
    return list(Tokenizer.from_folder(DEMO_MODEL).encode(text, add_special_tokens=False))


def _run(task: BenchTask) -> Iterator[Said]:
    """Yield what the process of a task says."""
    from nodes.bench.task import Said

    environ = {
        **os.environ,
        "OMP_NUM_THREADS": str(task.threads),
        # As nodes have them.
        "THP_MEM_ALLOC_ENABLE": "1",
        "GLIBC_TUNABLES": NODE_ENVIRON["GLIBC_TUNABLES"],
        "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", ""), PACKAGE_ROOT),
    }
    process = subprocess.Popen(
        python_command("nodes.bench", encode_control(task).decode()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        text=True,
    )
    try:
        assert process.stdout is not None, "asked for"
        for line in process.stdout:
            yield decode_control(line.encode(), Said)
        _, errors = process.communicate()
    finally:
        process.kill()
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise BenchFailedError(f"{task.shape} in {task.weights}: {last[0]}")


# --- what is shown ------------------------------------------------------------------------


def report(said: Sequence[Said]) -> dict[str, Any]:
    """Return the results as JSON: rows, the kernels alone, what loading took, rounding cost."""
    return {
        "rows": [msgspec.to_builtins(line.row) for line in said if line.row],
        "kernels": [msgspec.to_builtins(line.floor) for line in said if line.floor],
        "loading": [msgspec.to_builtins(line.memory) for line in said if line.memory],
        "errors": [msgspec.to_builtins(line.error) for line in said if line.error],
    }


def tables(said: Sequence[Said]) -> Iterator[Table]:
    """Yield speeds, then memory, then errors, as far as there are any."""
    speeds = _table(
        "Tokens per second; ratios are medians of one run",
        ("shape", "weights", "phase", "batch"),
        ("tokens/s", "x transformers int8", "x float32", "of bandwidth", "in kernels"),
    )
    for row, floor in ((line.row, line.floor) for line in said if line.row and line.floor):
        speeds.add_row(
            row.shape,
            row.weights,
            f"{row.phase} {row.tokens}",
            str(row.batch),
            f"{row.tokens_per_second:.1f}",
            _ratio(row.ratio_to_transformers_int8),
            _ratio(row.ratio_to_transformers_float32),
            f"{row.share_of_bandwidth_limit:.0%}",
            f"{floor.share:.0%}",
        )
    yield speeds
    memory = _table(
        "Loading", ("shape", "weights"), ("seconds", "weights", "peak memory", "memory bandwidth")
    )
    for made in (line.memory for line in said if line.memory):
        memory.add_row(
            made.shape,
            made.weights,
            f"{made.load_seconds:.1f}",
            format_bytes(made.weight_bytes),
            format_bytes(made.peak_bytes),
            f"{format_bytes(int(made.bandwidth_bytes_per_second))}/s",
        )
    yield memory
    found = {line.error.weights: line.error for line in said if line.error}
    if found:
        errors = _table(
            "Demo model against float32", ("weights",), ("logit error", "same first choice")
        )
        for error in found.values():
            errors.add_row(
                error.weights,
                f"{error.logit_error:.2%}",
                f"{error.top1_agreement:.1%} of {error.num_positions}",
            )
        yield errors


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in names:
        table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

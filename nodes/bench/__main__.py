"""``python -m nodes.bench TASK``: one checkpoint in one weight format, results as JSON lines.

A process of its own, so that memory is that of this format alone and threads are set before
torch starts.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil
import torch

from broker.architecture import is_integer
from broker.codec import decode_control, encode_control
from nodes.bench.ours import OurEngine, Step
from nodes.bench.task import BenchError, BenchFloor, BenchMemory, BenchRow, BenchTask, Said
from nodes.bench.theirs import TransformersEngine

_MAX_ROUNDS: Final = 25
_MIN_ROUNDS: Final = 3
_BANDWIDTH_ELEMENTS: Final = 1 << 27  # half a GiB of float32, more than any cache
_OURS, _THEIR_INT8, _THEIR_FLOAT32 = "ours", "int8", "float32"
_KERNELS, _READ = "kernels", "read"

Rounds = list[dict[str, float]]
"""Seconds of each engine, round by round."""


def main(argument: str) -> None:
    """Run the task and print what `task.Said` describes."""
    task = decode_control(argument.encode(), BenchTask)
    logging.basicConfig(level=logging.ERROR)
    for name in ("nodes.kernels", "nodes.float_kernels"):
        # Which kernels are left out here, and why, belongs to the figures.
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(Notes())
    torch.set_num_threads(task.threads)
    with torch.inference_mode():
        for said in run(task):
            say(said)


def say(said: Said) -> None:
    """Print a line for the process that shows it."""
    print(encode_control(said).decode(), flush=True)  # noqa: T201


class Notes(logging.Handler):
    """Says log lines among the results."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say the line."""
        say(Said(note=record.getMessage()))


def run(task: BenchTask) -> Iterator[Said]:
    """Load, then measure phase by phase."""
    folder = Path(task.folder)
    yield Said(doing=f"loading {task.weights}")
    device = choose_device(task.weights)
    ours = OurEngine(folder, task.weights, task.threads, device)
    ours.prefill(task.prompt_tokens)()
    peak_bytes = _peak_bytes()  # before the others, and before a gigabyte to read
    yield Said(doing="memory bandwidth")
    memory = MemoryReader(device)
    yield Said(
        memory=BenchMemory(
            shape=task.shape,
            weights=task.weights,
            load_seconds=ours.load_seconds,
            weight_bytes=ours.weights.num_bytes,
            peak_bytes=peak_bytes,
            bandwidth_bytes_per_second=memory.bandwidth(),
            device=device.type,
        )
    )
    if task.trained_texts:
        yield Said(error=format_error(task))
    theirs: dict[str, TransformersEngine] = {}
    if task.with_transformers:
        yield Said(doing="loading transformers")
        theirs[_THEIR_FLOAT32] = TransformersEngine(folder, device, is_int8=False)
        if device.type == "cpu":
            yield Said(doing="loading transformers int8")
            theirs[_THEIR_INT8] = TransformersEngine(folder, device, is_int8=True)
    yield Said(doing=f"prefill of {task.prompt_tokens} tokens")
    steps = {name: engine.prefill(task.prompt_tokens) for name, engine in theirs.items()}
    steps |= {
        _OURS: ours.prefill(task.prompt_tokens),
        _KERNELS: ours.products_of_prompt(task.prompt_tokens),
        _READ: memory.read,
    }
    rounds = time_rounds(steps, task.seconds)
    passes = ours.bytes_of_prompt(task.prompt_tokens) / memory.num_bytes
    yield _said(task, "prefill", 1, task.prompt_tokens, rounds, passes)
    for batch in task.batches:
        yield Said(doing=f"decode, batch {batch}")
        steps = {name: e.decode(batch, task.context_tokens) for name, e in theirs.items()}
        steps[_OURS] = ours.decode(batch, task.context_tokens)
        steps |= {_KERNELS: ours.products(batch, batch), _READ: memory.read}
        rounds = time_rounds(steps, task.seconds)
        passes = ours.bytes_read(batch, batch) / memory.num_bytes
        yield _said(task, "decode", batch, task.context_tokens, rounds, passes)


def time_rounds(steps: Mapping[str, Step], seconds: float) -> Rounds:
    """Run all steps in turn, so that what disturbs the machine disturbs all; the first warms up."""
    rounds: Rounds = []
    for step in steps.values():
        step()
    deadline = time.perf_counter() + seconds
    while len(rounds) < _MIN_ROUNDS or (
        len(rounds) < _MAX_ROUNDS and time.perf_counter() < deadline
    ):
        rounds.append({name: _seconds(step) for name, step in steps.items()})
    return rounds


def _said(
    task: BenchTask, phase: str, batch: int, tokens: int, rounds: Rounds, reads: float
) -> Said:
    """Return a row and its floor; ``reads``: what ours reads, in what `MemoryReader` reads."""
    seconds = statistics.median(times[_OURS] for times in rounds)
    return Said(
        row=BenchRow(
            shape=task.shape,
            weights=task.weights,
            phase=phase,
            batch=batch,
            tokens=tokens,
            threads=task.threads,
            tokens_per_second=(tokens if phase == "prefill" else batch) / seconds,
            ratio_to_transformers_int8=_ratio(rounds, _THEIR_INT8),
            ratio_to_transformers_float32=_ratio(rounds, _THEIR_FLOAT32),
            share_of_bandwidth_limit=reads * (_ratio(rounds, _READ) or 0.0),
        ),
        floor=BenchFloor(
            shape=task.shape,
            weights=task.weights,
            phase=phase,
            batch=batch,
            seconds=statistics.median(times[_KERNELS] for times in rounds),
            share=_ratio(rounds, _KERNELS) or 0.0,
        ),
    )


def _ratio(rounds: Rounds, name: str) -> float | None:
    if name not in rounds[0]:
        return None
    return statistics.median(times[name] / times[_OURS] for times in rounds)


def format_error(task: BenchTask) -> BenchError:
    """Follow texts with the trained checkpoint, in float32 and in the task's format."""
    folder = Path(task.trained_folder)
    exact, rounded = (
        torch.cat([engine.logits(ids) for ids in task.trained_texts])
        for engine in (OurEngine(folder, w, task.threads) for w in ("float32", task.weights))
    )
    same = rounded.argmax(1) == exact.argmax(1)
    return BenchError(
        weights=task.weights,
        num_positions=len(exact),
        logit_error=float((rounded - exact).norm() / exact.norm()),
        top1_agreement=float(same.float().mean()),
    )


class MemoryReader:
    """Reads more memory than caches hold, with all threads."""

    def __init__(self, device: torch.device) -> None:
        data = torch.ones(_BANDWIDTH_ELEMENTS, device=device)
        self.num_bytes = data.nbytes
        ways: list[Step] = [data.sum, data.amax]
        self._seconds, self.read = min(
            ((_median_seconds(read), read) for read in ways), key=lambda way: way[0]
        )

    def bandwidth(self) -> float:
        """Return the bytes per second at which this read at first."""
        return self.num_bytes / self._seconds


def choose_device(weights: str) -> torch.device:
    """Return the GPU when there is one; the CPU holds whole numbers all the same."""
    use_gpu = torch.cuda.is_available() and not is_integer(weights)
    return torch.device("cuda" if use_gpu else "cpu")


def _median_seconds(step: Step) -> float:
    step()
    return statistics.median(_seconds(step) for _ in range(5))


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a step has only been queued
    return time.perf_counter() - start


def _peak_bytes() -> int:
    """Return the largest resident memory until now; where the system does not say, the current."""
    try:
        import resource
    except ModuleNotFoundError:
        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(sys.argv[1])

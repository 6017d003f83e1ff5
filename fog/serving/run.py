"""Runs a load against a server: lengths from a workload, a bar meanwhile, a report at the end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fog.options import EXIT_INTERRUPTED
from fog.output import make_folder, write_json
from fog.serving import report
from fog.serving.load import LoadPlan, Progress, send_load
from fog.serving.prompts import probes, word_scale
from fog.serving.server import Dialect, Server, open_server

if TYPE_CHECKING:
    from planner.simulation import SimRequest
    from planner.whatif.loads import Load

DEFAULT_CONCURRENCY: Final = 8
_MARGIN_TOKENS: Final = 16
"""By which a prompt may be longer than wanted, since words differ in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What the command line of `e2llm bench serve` says.

    Attributes:
        workload: A name or a CSV file, as of `e2llm simulate`.
        rate: Requests per second; None with ``concurrency``, or for a trace's own.
        concurrency: Requests at a time instead of arrivals.
        context_tokens: Of the model; None: as the server says.
        figures: A folder for them.
    """

    url: str
    key: str | None = None
    model: str | None = None
    is_chat: bool = True
    ignores_eos: bool = True
    workload: str = "chat"
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    arrivals: str | None = None
    rate: float | None = None
    concurrency: int | None = None
    num_requests: int | None = None
    context_tokens: int | None = None
    targets: report.Targets = field(default_factory=report.Targets)
    timeout_seconds: float = 600.0
    seed: int = 0
    json_target: str | None = None
    figures: Path | None = None


def run_serve(options: ServeOptions, console: Console) -> int:
    """Measure, show and write; return the exit code.

    Raises:
        LoadError: The workload, its lengths or arrivals are written wrongly.
        FogUnreachableError, FogRequestError: The server does not answer, or refuses.
        UnfitProbesError: Its token counts cannot be used.
        OutputError: A file cannot be written.
    """
    from planner.whatif.loads import choose_load

    load = choose_load(
        options.workload, options.prompt_tokens, options.answer_tokens, options.arrivals
    )
    if options.figures is not None:
        import matplotlib  # noqa: F401 - missing: said now, not after the load

        make_folder(options.figures)
    progress = Progress()
    is_whole = asyncio.run(_measure(options, load, progress, console))
    return EXIT_INTERRUPTED if not is_whole else int(progress.num_failed > 0)


async def _measure(options: ServeOptions, load: Load, progress: Progress, console: Console) -> bool:
    """Return whether the load was sent whole."""
    async with open_server(
        options.url, key=options.key, timeout_seconds=options.timeout_seconds
    ) as server:
        model, context = await server.model(options.model)
        dialect = Dialect(model=model, is_chat=options.is_chat, ignores_eos=options.ignores_eos)
        scale = word_scale([await server.count(dialect, probe) for probe in probes()])
        requests, num_cut = _requests(options, load, options.context_tokens or context)
        concurrency = _concurrency(options, load)
        plan = LoadPlan(
            requests=requests,
            concurrency=concurrency,
            dialect=dialect,
            scale=scale,
            seed=options.seed,
        )
        how = (
            f"{concurrency} at a time"
            if concurrency is not None
            else f"{load.arrivals_text}, {options.rate or load.trace_rate or 0:g} requests/s"
        )
        about = f"{model} at {options.url}: {len(requests)} requests, {load.lengths_text}; {how}"
        console.print(about, highlight=False, markup=False, soft_wrap=True)
        if num_cut:
            console.print(f"{num_cut} of them are shortened to the model's context.")
        await _send(plan, server, progress, console)
    summary = report.summarise(progress.samples, options.targets, len(requests))
    described = {
        "url": options.url,
        "model": model,
        "workload": load.name,
        "lengths": load.lengths_text,
        "arrivals": how,
        "rate": options.rate,
        "concurrency": concurrency,
        "seed": options.seed,
        "targets": {
            "ttft_seconds": options.targets.ttft_seconds,
            "tpot_seconds": options.targets.tpot_seconds,
        },
    }
    write_json(options.json_target, report.as_json(summary, progress.samples, described))
    console.print(report.times_table(summary))
    for line in report.lines(summary, options.targets):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if options.figures is not None:
        from fog.serving.figures import draw_figures

        for path in draw_figures(options.figures, progress.samples, about):
            console.print(f"drawn: {path}", highlight=False, markup=False, soft_wrap=True)
    return not progress.is_interrupted


def _requests(
    options: ServeOptions, load: Load, context_tokens: int | None
) -> tuple[tuple[SimRequest, ...], int]:
    """Return the load's requests as far as the context goes, and how many were shortened."""
    from planner.whatif.loads import cut_to_context

    drawn = load.requests(
        options.num_requests, options.rate or load.trace_rate or 1.0, options.seed
    )
    if context_tokens is None:
        return drawn, 0
    return cut_to_context(drawn, max(context_tokens - _MARGIN_TOKENS, 2))


def _concurrency(options: ServeOptions, load: Load) -> int | None:
    """Return how many requests are sent at a time; None: each when it is due."""
    if options.concurrency is not None:
        return options.concurrency
    is_timed = options.rate is not None or load.trace
    return None if is_timed else DEFAULT_CONCURRENCY


async def _send(plan: LoadPlan, server: Server, progress: Progress, console: Console) -> None:
    """Send the load; a bar says how far it is."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(plan.requests))

        def show() -> None:
            seconds = max(time.perf_counter() - progress.started_at, 1e-9)
            text = (
                f"{progress.num_in_flight} in flight, {progress.num_tokens / seconds:.0f} tokens/s"
            )
            if progress.num_failed:
                text += f", {progress.num_failed} failed"
            bar.update(task, completed=len(progress.samples), description=text)

        await send_load(plan, server, progress, show)

"""`e2llm simulate --paper`: the paper's evaluation beside ours, for a person and as JSON."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable

from fog.output import make_folder, write_json

if TYPE_CHECKING:
    from planner.paper.tables import Table
    from planner.paper.waiting import Mapped

# Columns whose words are not cut to make room.
_WHOLE: Final = ("workload", "policy")
# With fewer runs of each cell, starting processes takes longer than they save.
_SEEDS_FOR_PROCESSES: Final = 20


def run_paper(
    num_seeds: int, json_target: str | None, figures: Path | None, console: Console
) -> None:
    """Simulate the sixteen cells, ideal and with error, and show them.

    Raises:
        ModuleNotFoundError: Figures are wanted without matplotlib; raised before anything runs.
        OutputError: The JSON file or the folder of figures cannot be written.
    """
    # Imported here: numpy and the simulator take a moment that `e2llm --help` need not take.
    from planner.paper.entries import evaluation
    from planner.paper.errors import IDEAL, load_errors
    from planner.paper.plans import compare
    from planner.paper.published import PaperWorkload, Policy, load_published
    from planner.paper.report import CAVEAT
    from planner.paper.tables import (
        ASSUMPTIONS,
        CONTRADICTIONS,
        implied_table,
        plans_tables,
        reductions_table,
        results_tables,
        waiting_table,
    )
    from planner.paper.waiting import Model, simulate_paper

    if figures is not None:
        from planner.paper.figures import draw_figures

        make_folder(figures)
    began = time.perf_counter()
    errors = load_errors()
    models = ((Model.IDEAL, IDEAL), (Model.WITH_ERROR, errors))
    comparisons = [compare(workload, policy) for workload in PaperWorkload for policy in Policy]
    cells = []
    total = len(models) * len(load_published().results)
    with (
        Progress(console=console, transient=True) as progress,
        spread_over_processors(num_seeds) as mapped,
    ):
        bar = progress.add_task(f"{total} cells, {num_seeds} runs each", total=total)
        for cell in simulate_paper(num_seeds, models, mapped):
            cells.append(cell)
            progress.advance(bar)
    tables = [
        *plans_tables(comparisons),
        *results_tables(cells),
        *(waiting_table(cells, model) for model, _ in models),
        reductions_table(cells),
        implied_table(),
    ]
    show_tables(console, tables)
    console.print("Published cells that contradict each other:", style="bold")
    for text in CONTRADICTIONS:
        console.print(f"- {text}", highlight=False)
    console.print(f"\n{ASSUMPTIONS} {CAVEAT}", highlight=False)
    files = []
    if figures is not None:
        files = draw_figures(figures, cells, errors)
        console.print(f"Figures: {', '.join(str(file) for file in files)}", highlight=False)
    result = evaluation(comparisons, cells, errors)
    result["seconds"] = time.perf_counter() - began
    write_json(json_target, result)


@contextmanager
def spread_over_processors(num_seeds: int) -> Iterator[Mapped]:
    """Yield a ``map`` over all processors when there is enough to do."""
    if num_seeds < _SEEDS_FOR_PROCESSES:
        yield map
        return
    # Spawned, not forked: the progress bar is a thread. Ctrl-C is for this process alone.
    ignored = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(
        mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignored
    )
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def show_tables(console: Console, tables: Sequence[Table]) -> None:
    """Print tables with what has to be read with them."""
    for table in tables:
        shown = RichTable(
            title=table.title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left"
        )
        for column in table.header:
            shown.add_column(column, no_wrap=column in _WHOLE)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        if table.note:
            console.print(table.note, highlight=False)
            console.print()

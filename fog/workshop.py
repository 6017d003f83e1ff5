"""The subcommands for measuring: `e2llm make-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fog.options import EXIT_FAILED, EXIT_USAGE, give_up
from fog.output import make_console


def make_model(
    like: Annotated[str, typer.Option("--like", metavar="SHAPE", help="As in qwen2.5-0.5b.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights.")] = 0,
) -> None:
    """Write a checkpoint of a real shape with random weights, to measure speed with."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from fog import made_model
    from fog.quantities import suggest
    from fog.shapes import SHAPES

    config = SHAPES.get(like)
    if config is None:
        give_up(f"e2llm: --like {like}: no such shape{suggest(like, list(SHAPES))}", EXIT_USAGE)
    console = make_console()
    total = made_model.checkpoint_bytes(config)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(like, total=total)
            made = made_model.make_model(
                config, out, seed=seed, progress=lambda n: progress.advance(task, n)
            )
    except made_model.NotEmptyError as error:
        give_up(f"e2llm: --out {error}", EXIT_USAGE)
    except OSError as error:
        give_up(f"e2llm: cannot write {out}: {error.strerror or error}", EXIT_FAILED)
    console.print(
        f"{like} with random weights in {out}: {made.num_parameters / 1e6:.0f} million parameters, "
        f"{made.num_bytes / 1e9:.2f} GB in {made.num_files} file{'s' * (made.num_files > 1)}.\n"
        f"Serve it: e2llm up --model {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )

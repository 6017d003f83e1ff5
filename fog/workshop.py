"""The subcommands for measuring: `e2llm make-model` and `e2llm bench`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from broker.architecture import WEIGHT_FORMATS
from fog.options import EXIT_FAILED, EXIT_USAGE, JsonOption, give_up
from fog.output import make_console, write_json
from fog.serving.command import serve

# Of `fog.shapes`, which takes long to import.
SHAPES: Final = ("qwen2.5-0.5b", "tinyllama-1.1b", "llama-3.2-1b", "qwen3-0.6b", "qwen3-moe-small")
_THREADS: Final = 2
_SHAPES_HELP: Final = f"One of {', '.join(SHAPES)}"

bench = typer.Typer(help="Measure this machine, or a server under load.", no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Measure this machine, or a server under load."""


bench.command()(serve)


@bench.command()
def engine(
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help=f"{_SHAPES_HELP}; default: the first two. May be repeated."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            help=f"One of {', '.join(WEIGHT_FORMATS)}; default: all. May be repeated.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="What each engine computes with; default: 2, or all cores."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One shape in int8, fewer batches and rounds.")
    ] = False,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="DIR",
            help="Where checkpoints are made and kept; default: ~/.cache/e2llm/shapes.",
        ),
    ] = None,
    json_target: JsonOption = None,
) -> None:
    """Tokens per second of prefill and decode, beside transformers in the same run."""
    from fog.bench import DEFAULT_SHAPES, BenchFailedError, BenchOptions, run_bench
    from fog.doctor import num_usable_cores
    from fog.quantities import suggest
    from fog.shapes import shapes as known_shapes

    shapes = shape or DEFAULT_SHAPES[: 1 if quick else None]
    formats = weights or (["int8"] if quick else WEIGHT_FORMATS)
    for option, names, known in (
        ("shape", shapes, list(known_shapes())),
        ("weights", formats, list(WEIGHT_FORMATS)),
    ):
        for name in names:
            if name not in known:
                give_up(f"e2llm: --{option} {name}: not known{suggest(name, known)}", EXIT_USAGE)
    cores = num_usable_cores()
    if threads is not None and threads > cores:
        give_up(
            f"e2llm: --threads {threads}: this machine lets {cores} cores compute, and threads "
            "that wait for a core measure nothing",
            EXIT_USAGE,
        )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    options = BenchOptions(
        shapes=shapes,
        weights=formats,
        threads=threads or min(_THREADS, cores),
        is_quick=quick,
        cache=models or home / "e2llm" / "shapes",
        json_target=json_target,
    )
    try:
        run_bench(options, make_console(json_target))
    except BenchFailedError as error:
        give_up(f"e2llm: {error}", EXIT_FAILED)
    except OSError as error:
        _cannot_write(options.cache, error)


def make_model(
    like: Annotated[str, typer.Option("--like", metavar="SHAPE", help=f"{_SHAPES_HELP}.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights.")] = 0,
    json_target: JsonOption = None,
) -> None:
    """Write a checkpoint of a real shape with random weights, to measure speed with."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from fog import made_model
    from fog.quantities import suggest
    from fog.shapes import shapes

    config = shapes().get(like)
    if config is None:
        give_up(f"e2llm: --like {like}: no such shape{suggest(like, list(shapes()))}", EXIT_USAGE)
    console = make_console(json_target)
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
        _cannot_write(out, error)
    write_json(json_target, {"folder": str(out), "shape": like, **dataclasses.asdict(made)})
    console.print(
        f"{like} with random weights in {out}: {made.num_parameters / 1e6:.0f} million parameters, "
        f"{made.num_bytes / 1e9:.2f} GB in {made.num_files} file{'s' * (made.num_files > 1)}.\n"
        f"Serve it: e2llm up --model {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _cannot_write(folder: Path, error: OSError) -> NoReturn:
    is_forbidden = isinstance(error, PermissionError)
    remedy = "; choose a folder in which you may write" if is_forbidden else ""
    where = error.filename or folder
    give_up(f"e2llm: cannot write {where}: {error.strerror or error}{remedy}", EXIT_FAILED)

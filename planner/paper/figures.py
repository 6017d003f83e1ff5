"""Figures like the paper's, drawn with matplotlib (the extra ``figures``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")  # Files only: no display is needed, nor a window system.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from planner.paper.errors import ErrorTerms
from planner.paper.published import PaperWorkload, Policy, load_published
from planner.paper.waiting import Cell, Model, finished_records

_COLORS: Final = {Policy.E2LLM: "tab:blue", Policy.ADAPTED_SPLITWISE: "tab:orange"}


def draw_figures(
    folder: Path, cells: Sequence[Cell], errors: ErrorTerms, seed: int = 0
) -> list[Path]:
    """Draw all figures into a folder, which is made when it is missing; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for workload in PaperWorkload:
        files.append(_draw_bars(folder, workload, cells))
        files.append(_draw_requests(folder, workload, errors, seed))
    return files


def _draw_bars(folder: Path, workload: PaperWorkload, cells: Sequence[Cell]) -> Path:
    """Draw mean waiting per period and policy: printed, ideal, with error (with P5 to P95)."""
    periods = load_published().periods_seconds
    models = list(dict.fromkeys(cell.model for cell in cells))
    figure, axes = plt.subplots(1, len(Policy), figsize=(10, 4), sharey=True, squeeze=False)
    width = 0.8 / (len(models) + 1)
    for plot, policy in zip(axes[0], Policy, strict=True):
        chosen = {
            (c.model, c.period_seconds): c
            for c in cells
            if c.workload is workload and c.policy is policy
        }
        printed = [chosen[models[0], period].published.waiting.mean for period in periods]
        places = range(len(periods))
        plot.bar([p - 0.4 for p in places], printed, width, align="edge", label="published")
        for index, model in enumerate(models, start=1):
            found = [chosen[model, period] for period in periods]
            heights = [cell.waiting_seconds for cell in found]
            spread = [
                [h - c.waiting_range[0] for h, c in zip(heights, found, strict=True)],
                [c.waiting_range[1] - h for h, c in zip(heights, found, strict=True)],
            ]
            plot.bar(
                [p - 0.4 + index * width for p in places],
                heights,
                width,
                yerr=spread,
                capsize=2,
                align="edge",
                label=f"ours, {model}",
            )
        plot.set_xticks(list(places), [f"{period:g} s" for period in periods])
        plot.set_title(str(policy))
        plot.set_xlabel("time between requests")
    axes[0][0].set_ylabel("mean waiting time, s")
    axes[0][-1].legend()
    return _save(figure, folder / f"waiting-{workload}.png", f"{workload}")


def _draw_requests(folder: Path, workload: PaperWorkload, errors: ErrorTerms, seed: int) -> Path:
    """Draw waiting time and decode speed of each request in the order of finishing."""
    periods = load_published().periods_seconds
    figure, axes = plt.subplots(2, len(periods), figsize=(14, 6.5), sharex=True, sharey="row")
    for (waits, speeds), period in zip(axes.T, periods, strict=True):
        for policy in Policy:
            published = load_published().result(workload, period, policy)
            records = finished_records(published, errors, seed)
            color = _COLORS[policy]
            waits.plot([r.waiting_seconds for r in records], color=color, label=str(policy))
            waits.axhline(published.waiting.mean, color=color, linestyle=":")
            speeds.plot([r.decode_speed for r in records], ".", color=color)
            speeds.axhline(published.decode.mean, color=color, linestyle=":")
        waits.set_title(f"T = {period:g} s")
        speeds.set_xlabel("finished request")
    axes[0][0].set_ylabel("waiting time, s")
    axes[1][0].set_ylabel("decode speed, tokens/s")
    axes[0][0].legend()
    title = f"{workload}, {Model.WITH_ERROR}, seed {seed}; dotted: published mean"
    return _save(figure, folder / f"requests-{workload}.png", title)


def _save(figure: Figure, path: Path, title: str) -> Path:
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path

"""Figures of a load, drawn with matplotlib (the extra ``figures``)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")  # Files only: no display is needed, nor a window system.

from matplotlib import pyplot as plt

from fog.serving.report import TIMES
from fog.serving.sample import Sample

_MOST_ROWS: Final = 300
"""Requests of a timeline; more are no longer told apart."""


def draw_figures(folder: Path, samples: Sequence[Sample], title: str) -> list[Path]:
    """Draw distributions and a timeline into a folder that exists; return the files."""
    finished = sorted((s for s in samples if s.is_finished), key=lambda sample: sample.due_at)
    if not finished:
        return []
    return [
        _draw_distributions(folder / "times.png", finished, title),
        _draw_timeline(folder / "timeline.png", finished[:_MOST_ROWS], title),
    ]


def _draw_distributions(path: Path, samples: Sequence[Sample], title: str) -> Path:
    """Draw for each time which share of the requests had at most it."""
    names = ("waiting_seconds", "ttft_seconds", "tpot_seconds")
    figure, plots = plt.subplots(1, len(names), figsize=(11, 3.5), sharey=True)
    for plot, name in zip(plots, names, strict=True):
        values = sorted(v for v in (getattr(s, name) for s in samples) if not isnan(v))
        shares = [(place + 1) / len(values) for place in range(len(values))]
        plot.step([0.0, *values], [0.0, *shares], where="post")
        plot.set_xlabel(f"{TIMES[name]}, seconds")
        plot.grid(alpha=0.3)
    plots[0].set_ylabel("share of requests")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _draw_timeline(path: Path, samples: Sequence[Sample], title: str) -> Path:
    """Draw one line per request: until its first token, and from there to its last."""
    figure, plot = plt.subplots(figsize=(11, 2 + len(samples) * 0.04))
    rows = range(len(samples))
    for label, starts, ends in (
        ("until the first token", [s.due_at for s in samples], [s.times[0] for s in samples]),
        ("answer", [s.times[0] for s in samples], [s.times[-1] for s in samples]),
    ):
        widths = [end - start for start, end in zip(starts, ends, strict=True)]
        plot.barh(rows, widths, left=starts, height=0.8, label=label)
    plot.invert_yaxis()
    plot.set_xlabel("seconds since the first request")
    plot.set_ylabel("request")
    plot.legend(loc="lower left")
    plot.set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path

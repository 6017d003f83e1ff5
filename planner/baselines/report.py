"""The comparison as Markdown and as a figure: which conditions hold, and all numbers. Pure.

Waiting time never stands alone: beside it are end-to-end time and the share of requests that
decode below 7 tokens per second, for both of which waiting can be traded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.baselines.systems import (
    E2LLM,
    NOTES,
    PLAN_SPEED,
    PLAN_SPLITWISE,
    POOLS,
    POOLS_LENDING,
    POOLS_MIXED,
    POOLS_SPEED,
)
from planner.paper.report import table as markdown_table

Entry = Mapping[str, Any]

# Never worse than the best baseline by more than this share, or so many seconds.
SHARE_LIMIT = 0.02
SECONDS_LIMIT = 0.2
_WAITING, _END_TO_END = "waiting_seconds", "end_to_end_seconds"


def rows_of(entry: Entry) -> dict[str, Entry]:
    """Return a cell's systems by name."""
    return {row["system"]: row for row in entry["systems"]}


def reduction(entry: Entry, rival: str, quantity: str = _WAITING) -> float:
    """Return the share of a rival's time that ours saves; negative when ours takes longer."""
    rows = rows_of(entry)
    return 1 - float(rows["ours"][quantity]) / float(rows[rival][quantity])


def best_baseline(entry: Entry) -> Entry:
    """Return the baseline with the least mean waiting plus mean end-to-end time."""
    rows = [row for row in entry["systems"] if row["system"] != "ours"]
    return min(rows, key=lambda row: row[_WAITING] + row[_END_TO_END])


def excess(entry: Entry, quantity: str) -> float:
    """Return by how many seconds ours is beyond the best baseline."""
    return float(rows_of(entry)["ours"][quantity]) - float(best_baseline(entry)[quantity])


def is_never_worse(entry: Entry, quantity: str) -> bool:
    """Whether ours is worse than the best baseline by at most the limits."""
    limit = max(SHARE_LIMIT * best_baseline(entry)[quantity], SECONDS_LIMIT)
    return excess(entry, quantity) <= float(limit)


def conditions(entries: Sequence[Entry]) -> str:
    """Return which of the promised conditions hold, in each cell where they are promised."""
    lines = []
    for entry in entries:
        if entry["fog"] == "paper" and float(entry["load"]) <= 1:
            wanted = 0.15 if entry["workload"] == "extended" else 0.30
            lines += [
                _reduced(entry, E2LLM, wanted),
                _end_to_end(entry),
                _reduced(entry, POOLS, 0.50),
                _reduced(entry, POOLS_SPEED, 0.25),
                _reduced(entry, POOLS_MIXED, None),
                _reduced(entry, POOLS_LENDING, None),
                _reduced(entry, PLAN_SPLITWISE, None),
                _reduced(entry, PLAN_SPEED, None),
            ]
    header = ("cell", "compared with", "condition", "measured", "holds")
    never = []
    for entry in entries:
        best, ours = best_baseline(entry), rows_of(entry)["ours"]
        never.append(
            (
                _name(entry),
                best["system"],
                *(f"{best[q]:.2f} / {ours[q]:.2f}" for q in (_WAITING, _END_TO_END)),
                f"{best['slow_share']:.0%} / {ours['slow_share']:.0%}",
                *("yes" if is_never_worse(entry, q) else "no" for q in (_WAITING, _END_TO_END)),
            )
        )
    never_header = (
        "cell",
        "best baseline",
        "waiting: theirs / ours, s",
        "end to end, s",
        "under 7 tokens/s",
        "waiting within limit",
        "end to end within limit",
    )
    text = f"## Never worse than the best baseline\n\n{markdown_table(never_header, never)}"
    if lines:
        return f"## The paper's fog in overload\n\n{markdown_table(header, lines)}\n\n{text}"
    return text


def _reduced(entry: Entry, rival: str, wanted: float | None) -> tuple[str, ...]:
    found = reduction(entry, rival)
    condition = "reported" if wanted is None else f"waiting {wanted:.0%} less"
    holds = "" if wanted is None else "yes" if found >= wanted else "no"
    return _name(entry), rival, condition, f"{found:.1%} less", holds


def _end_to_end(entry: Entry) -> tuple[str, ...]:
    found = reduction(entry, E2LLM, _END_TO_END)
    holds = "yes" if found >= 0 else "no"
    return _name(entry), E2LLM, "end to end no worse", f"{found:.1%} less", holds


def _name(entry: Entry) -> str:
    return f"{entry['fog']}, {entry['workload']}, {entry['load']}"


def table(entries: Sequence[Entry]) -> str:
    """Return all cells: seconds of waiting, end to end, 90th percentile, and slow requests."""
    sections = ["## All systems"]
    sections.append("\n".join(f"- **{name}**: {note}" for name, note in NOTES.items()))
    header = (
        "system",
        "waiting, s",
        "P90, s",
        "first token, s",
        "end to end, s",
        "under 7 tokens/s",
        "routing",
        "replicas (slots)",
    )
    for entry in entries:
        rows = [
            (
                row["system"],
                f"{row[_WAITING]:.2f}",
                f"{row['waiting_p90_seconds']:.1f}",
                f"{row['ttft_seconds']:.2f}",
                f"{row[_END_TO_END]:.2f}",
                f"{row['slow_share']:.0%}",
                row["routing"],
                "; ".join(row["plan"]),
            )
            for row in sorted(entry["systems"], key=lambda row: row[_WAITING])
        ]
        title = f"### {_name(entry)} (a request every {entry['period_seconds']:.3g} s)"
        sections.append(f"{title}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(sections)


def figure(entries: Sequence[Entry], path: Path) -> None:
    """Draw waiting and, above it, the rest of the end-to-end time of every system.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # An extra: only who draws needs it.

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "e2llm"
    from matplotlib import pyplot as plt

    columns = 4 if len(entries) > 3 else len(entries)
    lines = -(-len(entries) // columns)
    size = (4.2 * columns, 3.2 * lines)
    drawing, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(entries) :]:
        axis.set_visible(False)
    for axis, entry in zip(axes.flat, entries, strict=False):
        rows = sorted(entry["systems"], key=lambda row: row[_WAITING], reverse=True)
        names = [row["system"] for row in rows]
        waiting = [row[_WAITING] for row in rows]
        rest = [max(row[_END_TO_END] - row[_WAITING], 0.0) for row in rows]
        colours = ["#c0392b" if name == "ours" else "#2c5f8a" for name in names]
        axis.barh(names, waiting, color=colours, label="waiting")
        axis.barh(names, rest, left=waiting, color="#d5d8dc", label="decoding")
        # One system that is far off would hide all differences between the others.
        totals = sorted(row[_END_TO_END] for row in rows)
        axis.set_xlim(0, min(totals[-1], 3 * totals[len(totals) // 2]) * 1.05)
        axis.set_title(_name(entry), fontsize=9)
        axis.tick_params(labelsize=6)
        axis.set_xlabel("mean seconds per request", fontsize=7)
    axes.flat[0].legend(fontsize=6)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(drawing)

"""The comparison as Markdown and as a figure: which conditions hold, and all numbers. Pure.

Waiting time never stands alone: beside it are end-to-end time and the share of requests that
decode below 7 tokens per second, for both of which waiting can be traded.

The rule by which ours is worse than the best baseline or not was fixed before the runs: the
best baseline of a cell is the one whose mean waiting plus mean end-to-end time, over the
reported seeds, is least, and ours is compared with it in that sum. Beside it stand two
stricter views: waiting against the baseline that waits least, and end to end against the one
that ends first, which may be two different baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.baselines.systems import (
    E2LLM,
    LIVE,
    LIVE_MIXED,
    NOT_BASELINES,
    NOTES,
    OURS,
    OURS_GATEWAY,
    OURS_UNHURRIED,
    PIPELINE,
    PLAN_SPEED,
    PLAN_SPLITWISE,
    POOLS,
    POOLS_LENDING,
    POOLS_MIXED,
    POOLS_SPEED,
    RANDOM,
)
from planner.paper.report import table as markdown_table

Entry = Mapping[str, Any]

# Never worse than the best baseline by more than this share, or so many seconds.
SHARE_LIMIT = 0.02
SECONDS_LIMIT = 0.2
_WAITING, _END_TO_END = "waiting_seconds", "end_to_end_seconds"
SUM = "waiting plus end to end"
_NOT_DRAWN = (OURS_UNHURRIED, PLAN_SPLITWISE, PLAN_SPEED, *(f"{RANDOM} {k}" for k in range(1, 4)))
_SHOWN_SLOW_SHARE = 0.1
_COLUMNS = {SUM: (_WAITING, _END_TO_END), "waiting": (_WAITING,), "end to end": (_END_TO_END,)}


def rows_of(entry: Entry) -> dict[str, Entry]:
    """Return a cell's systems by name."""
    return {row["system"]: row for row in entry["systems"]}


def seconds_of(row: Entry, measure: str = SUM) -> float:
    """Return a system's mean seconds by a measure: the sum, waiting, or end to end."""
    return sum(float(row[column]) for column in _COLUMNS[measure])


def reduction(entry: Entry, rival: str, measure: str = "waiting") -> float:
    """Return the share of a rival's time that ours saves; negative when ours takes longer."""
    rows = rows_of(entry)
    return 1 - seconds_of(rows[OURS], measure) / seconds_of(rows[rival], measure)


def best_baseline(entry: Entry, measure: str = SUM) -> Entry:
    """Return the baseline that is best by a measure."""
    rows = [row for row in entry["systems"] if row["system"] not in NOT_BASELINES]
    return min(rows, key=lambda row: seconds_of(row, measure))


def is_never_worse(entry: Entry, measure: str = SUM, system: str = OURS) -> bool:
    """Whether ours is worse than the best baseline by a measure by at most the limits."""
    best = seconds_of(best_baseline(entry, measure), measure)
    found = seconds_of(rows_of(entry)[system], measure)
    return found - best <= max(SHARE_LIMIT * best, SECONDS_LIMIT)


def conditions(entries: Sequence[Entry]) -> str:
    """Return which of the promised conditions hold, in each cell where they are promised."""
    sections = [
        _overload(entries),
        _capacity(entries),
        _never_worse(entries),
        _stricter(entries),
        _live(entries),
    ]
    return "\n\n".join(section for section in sections if section)


def _overload(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        if entry["fog"] == "paper":
            wanted = 0.15 if entry["workload"] == "extended" else 0.30
            # Promised for overload: beyond what the best plan serves.
            is_promised = float(entry["load"]) <= 1
            lines += [
                _reduced(entry, E2LLM, wanted if is_promised else None),
                _end_to_end(entry),
                _reduced(entry, POOLS, 0.50 if is_promised else None),
                _reduced(entry, POOLS_SPEED, 0.25 if is_promised else None),
                _reduced(entry, POOLS_MIXED, None),
                _reduced(entry, POOLS_LENDING, None),
                _reduced(entry, PLAN_SPLITWISE, None),
                _reduced(entry, PLAN_SPEED, None),
            ]
    header = ("cell", "compared with", "condition", "measured", "holds")
    return f"## The paper's fog\n\n{markdown_table(header, lines)}" if lines else ""


def _capacity(entries: Sequence[Entry]) -> str:
    """Return the seconds per request that no routing gets below."""
    lines = {}
    names = (E2LLM, PIPELINE)
    for entry in entries:
        rows = rows_of(entry)
        shown = [rows[name]["request_seconds"] for name in names]
        seconds = [f"{value:.3f}" for value in (*shown, entry["least_request_seconds"])]
        lines[entry["fog"], entry["workload"]] = (entry["fog"], entry["workload"], *seconds)
    header = ("fog", "workload", *names, "best candidate of any roles")
    title = "## Seconds per request at full load, by the analytic objective"
    return f"{title}\n\n{markdown_table(header, list(lines.values()))}"


def _never_worse(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        best, ours = best_baseline(entry), rows_of(entry)[OURS]
        lines.append(
            (
                _name(entry),
                best["system"],
                *(f"{seconds_of(best, m):.2f} / {seconds_of(ours, m):.2f}" for m in _COLUMNS),
                f"{best['slow_share']:.0%} / {ours['slow_share']:.0%}",
                _yes(is_never_worse(entry)),
                _yes(is_never_worse(entry, system=OURS_GATEWAY)),
            )
        )
    header = (
        "cell",
        "best baseline",
        *(f"{measure}: theirs / ours, s" for measure in _COLUMNS),
        "under 7 tokens/s",
        "sum within limit",
        "also with the gateway's default routing",
    )
    return f"## Never worse than the best baseline\n\n{markdown_table(header, lines)}"


def _stricter(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        ours = rows_of(entry)[OURS]
        line = [_name(entry)]
        for measure in ("waiting", "end to end"):
            best = best_baseline(entry, measure)
            times = f"{seconds_of(best, measure):.2f} / {seconds_of(ours, measure):.2f}"
            line += [best["system"], times, _yes(is_never_worse(entry, measure))]
        lines.append(line)
    header = (
        "cell",
        "waits least",
        "waiting: theirs / ours, s",
        "within limit",
        "ends first",
        "end to end: theirs / ours, s",
        "within limit",
    )
    title = "## Each measure against the baseline that is best at it alone"
    return f"{title}\n\n{markdown_table(header, lines)}"


def _live(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        rows, best = rows_of(entry), best_baseline(entry)
        shown = [rows[name] for name in (LIVE, LIVE_MIXED, OURS_GATEWAY, OURS_UNHURRIED, OURS)]
        lines.append((_name(entry), *(_times(row) for row in (rows[E2LLM], best, *shown))))
    header = (
        "cell: waiting / end to end in s (under 7 tokens/s)",
        E2LLM,
        "best baseline",
        "live planner",
        "live planner, mixed roles",
        "chosen by simulation for the gateway's routing",
        "chosen for few slow answers",
        "chosen with any routing",
    )
    return f"## What production does\n\n{markdown_table(header, lines)}"


def _times(row: Entry) -> str:
    return f"{row[_WAITING]:.2f} / {row[_END_TO_END]:.2f} ({row['slow_share']:.0%})"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _reduced(entry: Entry, rival: str, wanted: float | None) -> tuple[str, ...]:
    found = reduction(entry, rival)
    condition = "reported" if wanted is None else f"waiting {wanted:.0%} less"
    holds = "" if wanted is None else _yes(found >= wanted)
    return _name(entry), rival, condition, f"{found:.1%} less", holds


def _end_to_end(entry: Entry) -> tuple[str, ...]:
    found = reduction(entry, E2LLM, "end to end")
    return _name(entry), E2LLM, "end to end no worse", f"{found:.1%} less", _yes(found >= 0)


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
    """Draw waiting and, beside it, the rest of the end-to-end time of the main systems.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # An extra: only who draws needs it.

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "e2llm"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    columns = 4 if len(entries) > 3 else len(entries)
    lines = -(-len(entries) // columns)
    size = (4.2 * columns, 3.2 * lines)
    drawing, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(entries) :]:
        axis.set_visible(False)
    for axis, entry in zip(axes.flat, entries, strict=False):
        shown = [row for row in entry["systems"] if row["system"] not in _NOT_DRAWN]
        rows = sorted(shown, key=seconds_of, reverse=True)
        names = [row["system"] for row in rows]
        waiting = [row[_WAITING] for row in rows]
        rest = [max(row[_END_TO_END] - row[_WAITING], 0.0) for row in rows]
        colours = ["#c0392b" if name in NOT_BASELINES else "#2c5f8a" for name in names]
        labels = [_label(row) for row in rows]
        axis.barh(labels, waiting, color=colours, label="waiting (red: ours)")
        axis.barh(labels, rest, left=waiting, color="#d5d8dc", label="rest of end to end")
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


def _label(row: Entry) -> str:
    slow = float(row["slow_share"])
    name = str(row["system"])
    return f"{name} [{slow:.0%} slow]" if slow >= _SHOWN_SLOW_SHARE else name

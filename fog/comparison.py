"""Outcomes of a simulation side by side, as tables for a terminal and as JSON. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from fog.quantities import format_seconds

if TYPE_CHECKING:
    from broker.plan import Plan
    from planner.simulation import Summary
    from planner.whatif.outcomes import Outcome

NOT_USED: Final = "not used"

_TIMES: Final = {
    "waiting": "waiting (arrival to decode)",
    "ttft": "TTFT (arrival to first token)",
    "tpot": "TPOT (each further token)",
    "end_to_end": "end to end",
}
_STATISTICS: Final = {"mean": "mean", "p50": "P50", "p90": "P90", "p99": "P99"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is shown side by side.

    Attributes:
        devices: All of them, in the order in which they are listed.
        after: None when nothing changes.
        alone: The best single device before the change, by itself; None when there is none,
            or the plan is that device.
        titles: Of the two first columns.
        lost: Devices that stop in ``after``.
    """

    devices: tuple[str, ...]
    before: Outcome
    after: Outcome | None = None
    alone: Outcome | None = None
    titles: tuple[str, str] = ("before", "after")
    lost: frozenset[str] = frozenset()

    @property
    def columns(self) -> list[tuple[str, Outcome]]:
        """Titles and outcomes, in the order in which they are shown."""
        found = [(self.titles[0] if self.after else "fog", self.before)]
        if self.after is not None:
            found.append((self.titles[1], self.after))
        if self.alone is not None:
            single = self.before.plan.best_single_device
            device = single.device if single else ""
            # By itself it would be no comparison once it is gone.
            found.append((f"{device} alone{', not lost' * (device in self.lost)}", self.alone))
        return found


# --- which device does what ---------------------------------------------------------------


def devices_table(comparison: Comparison) -> Table:
    """Return a row for each device: role, group, stage, layers, and how busy it is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("device", no_wrap=True)
    columns: list[Mapping[str, str]] = []
    for title, outcome in comparison.columns:
        if outcome is comparison.alone:
            continue
        table.add_column(title)
        table.add_column("busy", justify="right")
        columns += [placements(outcome.plan), _busy_texts(outcome)]
        for following in outcome.later:
            table.add_column(f"from {following.active_from_seconds:.0f} s on")
            columns.append(placements(following.plan))
    for device in comparison.devices:
        table.add_row(Text(device), *(Text(column.get(device, "-")) for column in columns))
    return table


def placements(plan: Plan) -> dict[str, str]:
    """Return what each device does: ``decode B 2/3: layers 3-4``; the letter is the group."""
    places = {}
    for number, replica in enumerate(plan.replicas):
        letter = chr(ord("A") + number) if number < 26 else f"{number + 1}"
        for index, stage in enumerate(replica.stages):
            start, end = stage.layers.start, stage.layers.end
            layers = f"layers {start}-{end - 1}" if end - start > 1 else f"layer {start}"
            where = f" {index + 1}/{len(replica.stages)}: {layers}"
            whole = ": whole model"
            places[stage.device] = (
                f"{replica.role} {letter}{where if len(replica.stages) > 1 else whole}"
            )
    places.update({entry.device: NOT_USED for entry in plan.idle})
    return places


def _busy_texts(outcome: Outcome) -> dict[str, str]:
    return {device: f"{share:.0%}" for device, share in outcome.busy.items()}


# --- numbers ------------------------------------------------------------------------------


def metrics_table(comparison: Comparison) -> Table:
    """Return predictions and simulated figures, with the change from before to after."""
    columns = comparison.columns
    has_change = comparison.after is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("")
    for index, (title, _) in enumerate(columns):
        table.add_column(title, justify="right")
        if has_change and index == 1:
            table.add_column("change", justify="right")
    for row in _rows([outcome for _, outcome in columns]):
        cells = [cell.text for cell in row.cells]
        if has_change:
            cells.insert(2, _change(row.cells[0].number, row.cells[1].number))
        table.add_row(row.section, row.label, *cells, end_section=row.is_last)
    return table


class _Cell(NamedTuple):
    text: str
    number: float = nan
    """NaN where a change in percent would say nothing."""


class _Row(NamedTuple):
    section: str
    label: str
    cells: Sequence[_Cell]
    is_last: bool = False
    """Of its section."""


def _rows(outcomes: Sequence[Outcome]) -> Iterator[_Row]:
    rates = [outcome.plan.predicted for outcome in outcomes]
    summaries = [outcome.summary for outcome in outcomes]
    most = [_number(rate.requests_per_second) for rate in rates]
    yield _Row("planned", "requests/s at most", most)
    if any(outcome.within_targets is not None for outcome in outcomes):
        good = [_number(rate.good_requests_per_second) for rate in rates]
        yield _Row("", "within the targets", good)
    yield _Row("", "lone request: TTFT", [_time(rate.ttft_seconds) for rate in rates])
    yield _Row("", "lone request: TPOT", [_time(rate.tpot_seconds) for rate in rates], True)
    # The few that finish before a fog breaks down are not slower for it.
    are_comparable = len({summary.num_finished for summary in summaries[:2]}) == 1
    for attribute, label in _TIMES.items():
        for name, title in _STATISTICS.items():
            cells = [_time(getattr(getattr(s, attribute), name)) for s in summaries]
            if not are_comparable:
                cells = [_Cell(cell.text) for cell in cells]
            yield _Row(label if name == "mean" else "", title, cells, name == "p99")
    yield _Row("simulated", "tokens/s", [_number(s.tokens_per_second) for s in summaries])
    yield _Row("", "requests/s", [_number(s.requests_per_second) for s in summaries])
    if any(outcome.within_targets is not None for outcome in outcomes):
        yield _Row("", "within the targets", [_share(o.within_targets or 0.0) for o in outcomes])
    for index, least in enumerate((7, 15)):
        shares = [_share(summary.below_qos[index]) for summary in summaries]
        yield _Row("", f"slower than {least} tokens/s", shares)
    yield _Row("", "stages busy", [_share(summary.utilisation) for summary in summaries])
    for label, counts in _counts(summaries).items():
        # Most runs leave nothing undone, and need no line to say so.
        if label == "finished" or any(counts):
            yield _Row("", label, [_Cell(str(count)) for count in counts])


def _number(value: float | None) -> _Cell:
    return _Cell("-") if value is None else _Cell(f"{value:.3g}", value)


def _time(value: float | None) -> _Cell:
    if value is None or isnan(value):
        return _Cell("-")
    return _Cell(format_seconds(value), value)


def _share(value: float) -> _Cell:
    return _Cell(f"{value:.0%}")


def _counts(summaries: Sequence[Summary]) -> dict[str, list[int]]:
    return {
        "finished": [s.num_finished for s in summaries],
        "unfinished": [s.num_unfinished for s in summaries],
        "begun again": [s.num_retries for s in summaries],
    }


def _change(before: float, after: float) -> str:
    from planner.explain import change_text

    if isnan(before) or isnan(after) or before == 0:
        return ""
    return change_text(after / before - 1)


# --- JSON ---------------------------------------------------------------------------------


def outcome_entry(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON values; what does not exist is null."""
    return {
        "plan": msgspec.to_builtins(outcome.plan),
        "later_plans": [
            {
                "active_from_seconds": following.active_from_seconds,
                "load_seconds": following.load_seconds,
                "slowest_to_load": following.slowest,
                "plan": msgspec.to_builtins(following.plan),
            }
            for following in outcome.later
        ],
        "notes": list(outcome.notes),
        "busy": dict(outcome.busy),
        "within_targets": outcome.within_targets,
        "metrics": _without_nan(asdict(outcome.summary)),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value

"""The paper's evaluation beside ours: neutral tables, JSON values, and what disagrees. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from planner.paper.implied import implied_request_seconds, implied_waiting_seconds
from planner.paper.plans import Comparison
from planner.paper.published import PaperWorkload, Policy, load_published
from planner.paper.published import Summary as PublishedSummary
from planner.paper.report import table
from planner.paper.waiting import ANSWER_CV, NEAR, PROMPT_CV, Cell, Model
from planner.simulation import Distribution

NEAR_POINTS: Final = 0.15
"""A reduction counts as near when it is off by at most so many points."""

ASSUMPTIONS: Final = (
    "Each run has 100 requests at a fixed period. Their lengths are drawn independently from "
    f"lognormal distributions with the printed means and coefficients of variation of {PROMPT_CV} "
    f"(prompts) and {ANSWER_CV} (answers), which are assumed: the paper prints means alone. A seed "
    "has the same lengths for both policies and all periods."
)
"""What is drawn for a run."""

CONTRADICTIONS: Final = (
    "Splitwise, extended, T = 2 and 3 s: under overload the mean wait of 100 requests is about "
    "50 (s - T), s being seconds per request. 147.5 s and 17.1 s need s = 4.9 and then 3.3; the "
    "printed decode speeds give 3.4 and 2.9 with 17 slots. No model that does not change "
    "between the runs meets both.",
    "Splitwise, custom, T = 0.5 and 1 s: the printed wait rises from 246.9 to 275.2 s although "
    "requests come half as fast. Every queue gives less wait then; both can be near, the rise "
    "cannot.",
    "E2LLM, extended, T = 1 s: 17.4 tokens/s in 22 slots are 1.54 s per request, hence about "
    "27 s of waiting under overload; 56.1 s are printed.",
)
"""Published cells that contradict each other or their own decode speeds."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with what has to be read with it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as a section of a Markdown page."""
        parts = [f"### {self.title}", table(self.header, self.rows), self.note]
        return "\n\n".join(part for part in parts if part)


# --- tables -------------------------------------------------------------------------------


def plans_tables(comparisons: Iterable[Comparison]) -> list[Table]:
    """Return each of the four plans: printed, and the optimum under the calibration."""
    return [_plan_table(comparison) for comparison in comparisons]


def _plan_table(comparison: Comparison) -> Table:
    best, literal = comparison.best, comparison.literal
    published = sorted(_lines(literal.replicas))
    ours = sorted(_lines(best.replicas))
    length = max(len(published), len(ours))
    padded = [[*lines, *[("", "", "")] * (length - len(lines))] for lines in (published, ours)]
    same = "the same plan" if comparison.is_published else "another plan"
    return Table(
        title=f"Plan of {best.policy} for {best.workload}: {same}",
        header=("role", "published", "slots", "role", "ours (exact optimum)", "slots"),
        rows=tuple((*left, *right) for left, right in zip(*padded, strict=True)),
        note=(
            f"Objective in seconds per request: published plan {literal.objective_seconds:.3f}, "
            f"ours {best.objective_seconds:.3f}; decoder slots "
            f"{comparison.published.decoder_slots} and {best.decoder_slots}."
        ),
    )


def _lines(replicas: Iterable[Any]) -> list[tuple[str, str, str]]:
    return [
        (
            str(replica.role),
            " + ".join(
                f"{s.device}×{s.num_blocks}" + (f"({s.offloads})" if s.offloads else "")
                for s in replica.stages
            ),
            str(replica.slots) if replica.role == "decode" else "",
        )
        for replica in replicas
    ]


def results_tables(cells: Sequence[Cell]) -> list[Table]:
    """Return Tables VII and VIII, one for each of their metrics, with our rows beside theirs."""
    return [
        _results_table(workload, metric, cells)
        for workload in PaperWorkload
        for metric in ("prefill", "decode", "waiting")
    ]


_FIVE: Final = (
    "Each: mean/deviation/P50/P90/P99 over the requests of a run; ours is the mean of each over "
    "the seeds."
)


def _results_table(workload: PaperWorkload, metric: str, cells: Sequence[Cell]) -> Table:
    of_workload = [cell for cell in cells if cell.workload is workload]
    models = list(dict.fromkeys(cell.model for cell in of_workload))
    rows = []
    for period, policy in dict.fromkeys((c.period_seconds, c.policy) for c in of_workload):
        group = [c for c in of_workload if (c.period_seconds, c.policy) == (period, policy)]
        printed = _five(getattr(group[0].published, metric))
        rows.append(
            (f"{period:g}", str(policy), printed, *(_five(getattr(c, metric)) for c in group))
        )
    number = "VII" if workload is PaperWorkload.EXTENDED else "VIII"
    unit = "time, s" if metric == "waiting" else "speed, tokens/s"
    return Table(
        title=f"Table {number}, {workload}: {metric} {unit}",
        header=("T, s", "policy", "published", *(f"ours, {model}" for model in models)),
        rows=tuple(rows),
        note=_FIVE if metric == "waiting" else "",
    )


def _five(values: Distribution | PublishedSummary) -> str:
    five = (values.mean, values.deviation, values.p50, values.p90, values.p99)
    return "/".join(f"{value:.1f}" for value in five)


def waiting_table(cells: Sequence[Cell], model: Model) -> Table:
    """Return the sixteen mean waiting times of a model beside the published ones."""
    chosen = [cell for cell in cells if cell.model is model]
    near = sum(cell.is_near for cell in chosen)
    either = sum(cell.is_near or cell.is_inside for cell in chosen)
    exact = sum(cell.chance_if_exact for cell in chosen)
    return Table(
        title=f"Mean waiting time, {model}",
        header=(
            "workload",
            "T, s",
            "policy",
            "published",
            "ours",
            "P5 to P95",
            "off by",
            "near",
            "end to end",
            "under 7 tokens/s",
        ),
        rows=tuple(
            (
                str(cell.workload),
                f"{cell.period_seconds:g}",
                str(cell.policy),
                f"{cell.published.waiting.mean:.1f}",
                f"{cell.waiting_seconds:.1f}",
                "{:.1f} to {:.1f}".format(*cell.waiting_range),
                f"{cell.deviation:+.0%}",
                _nearness(cell),
                f"{cell.end_to_end_seconds:.1f}",
                f"{cell.below_seven:.0%}",
            )
            for cell in chosen
        ),
        note=(
            f"Seconds; ours is the median over {len(chosen[0].runs)} seeds of a run's mean. "
            f"{near} of {len(chosen)} cells are within {NEAR:.0%}, {either} within it or within "
            f"our P5 to P95. Were the model exact, {exact:.1f} would be within {NEAR:.0%}: one run "
            "of each was published."
        ),
    )


def _nearness(cell: Cell) -> str:
    if cell.is_near:
        return "yes"
    return "in range" if cell.is_inside else "no"


def implied_table() -> Table:
    """Return the waiting times that the printed speeds imply beside the printed ones."""
    results = load_published().results
    errors = [implied_waiting_seconds(one) / one.waiting.mean - 1 for one in results]
    near = sum(abs(error) <= NEAR for error in errors)
    return Table(
        title="Mean waiting times that the printed speeds imply",
        header=("workload", "T, s", "policy", "s per request", "implied", "published", "off by"),
        rows=tuple(
            (
                str(one.workload),
                f"{one.period_seconds:g}",
                str(one.policy),
                f"{implied_request_seconds(one):.2f}",
                f"{implied_waiting_seconds(one):.1f}",
                f"{one.waiting.mean:.1f}",
                f"{error:+.0%}",
            )
            for one, error in zip(results, errors, strict=True)
        ),
        note=(
            "Printed numbers alone, no simulation: seconds per request s = max(N_P / PS, N_D / "
            "(slots DS)), wait = 49.5 (s - T), then prefill and KV transfer. "
            f"{near} of {len(results)} are within {NEAR:.0%} of the printed wait. Where one is "
            "not, the paper's numbers disagree with each other, and so does any model that "
            "meets its speeds."
        ),
    )


def reductions(cells: Sequence[Cell], model: Model) -> list[tuple[PaperWorkload, float, float]]:
    """Return for each workload and period what E2LLM saves of Splitwise's waiting, in shares."""
    seconds = {
        (c.workload, c.period_seconds, c.policy): c.waiting_seconds
        for c in cells
        if c.model is model
    }
    return [
        (
            workload,
            period,
            1
            - seconds[workload, period, Policy.E2LLM]
            / seconds[workload, period, Policy.ADAPTED_SPLITWISE],
        )
        for workload in PaperWorkload
        for period in load_published().periods_seconds
    ]


def reductions_table(cells: Sequence[Cell]) -> Table:
    """Return the reductions against adapted Splitwise, printed and ours."""
    published = load_published()
    models = list(dict.fromkeys(cell.model for cell in cells))
    ours = [reductions(cells, model) for model in models]
    rows, near = [], [0] * len(models)
    for found in zip(*ours, strict=True):
        workload, period, _ = found[0]
        printed = published.waiting_reduction(workload, period)
        for index, (_, _, share) in enumerate(found):
            near[index] += abs(share - printed) <= NEAR_POINTS
        rows.append(
            (str(workload), f"{period:g}", f"{printed:.0%}", *(f"{r:.0%}" for *_, r in found))
        )
    counts = ", ".join(f"{n} ({model})" for n, model in zip(near, models, strict=True))
    return Table(
        title="What E2LLM saves of adapted Splitwise's mean waiting time",
        header=("workload", "T, s", "published", *(f"ours, {model}" for model in models)),
        rows=tuple(rows),
        note=f"Of {len(rows)} cells within {NEAR_POINTS * 100:.0f} points: {counts}.",
    )

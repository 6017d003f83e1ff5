"""A load's samples as numbers: summary, table, JSON. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table

from fog.quantities import format_seconds
from fog.serving.sample import Sample

if TYPE_CHECKING:
    from planner.simulation.metrics import Distribution

TIMES: Final = {
    "waiting_seconds": "waiting for decode",
    "ttft_seconds": "first token (TTFT)",
    "tpot_seconds": "each later token (TPOT)",
    "longest_gap_seconds": "longest gap",
    "end_to_end_seconds": "whole answer",
}
"""Properties of `Sample` to what a person calls them."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a good answer keeps; None is no target."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None

    def __bool__(self) -> bool:
        return (self.ttft_seconds, self.tpot_seconds) != (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Distributions of the finished requests, and rates over the load's duration.

    Attributes:
        times: By the names of `TIMES`, in seconds.
        goodput_per_second: Requests that kept the targets; None without targets.
        most_late_seconds: By how much the generator itself sent a request too late.
        errors: What went wrong to how often, the most frequent first.
    """

    num_requests: int
    num_finished: int
    duration_seconds: float
    prompt_tokens: int
    answer_tokens: int
    times: dict[str, Distribution]
    num_good: int | None
    most_late_seconds: float
    errors: dict[str, int]

    @property
    def requests_per_second(self) -> float:
        """Finished requests."""
        return self.num_finished / self.duration_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers, unfinished ones included."""
        return self.answer_tokens / self.duration_seconds

    @property
    def goodput_per_second(self) -> float | None:
        """Requests that finished within the targets."""
        return None if self.num_good is None else self.num_good / self.duration_seconds


def summarise(samples: Sequence[Sample], targets: Targets, num_requests: int) -> Summary:
    """Return what a load of so many requests came to, of which some may not have been sent."""
    from planner.simulation.metrics import distribution

    finished = [sample for sample in samples if sample.is_finished]
    ends = [sample.times[-1] for sample in samples if sample.times]
    errors = Counter(sample.error for sample in samples if sample.error)
    good = sum(s.meets(targets.ttft_seconds, targets.tpot_seconds) for s in finished)
    return Summary(
        num_requests=num_requests,
        num_finished=len(finished),
        # From the first arrival, which is 0, to the last token.
        duration_seconds=max(max(ends, default=0.0), 1e-9),
        prompt_tokens=sum(sample.prompt_tokens for sample in finished),
        answer_tokens=sum(sample.answer_tokens for sample in samples),
        times={
            name: distribution([getattr(sample, name) for sample in finished]) for name in TIMES
        },
        num_good=good if targets else None,
        most_late_seconds=max((s.sent_at - s.due_at for s in samples), default=0.0),
        errors=dict(errors.most_common()),
    )


def as_json(summary: Summary, samples: Sequence[Sample], about: dict[str, Any]) -> dict[str, Any]:
    """Return the object of ``--json``; a time that does not exist is null."""
    rates = ("requests_per_second", "tokens_per_second", "goodput_per_second")
    times = {
        name: {key: _known(value) for key, value in asdict(found).items()}
        for name, found in summary.times.items()
    }
    counts = {key: value for key, value in asdict(summary).items() if key != "times"}
    return {
        **about,
        **counts,
        **{name: getattr(summary, name) for name in rates},
        **times,
        "rows": [_row(sample) for sample in sorted(samples, key=lambda sample: sample.due_at)],
    }


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.answer_id or None,
        "due_at": sample.due_at,
        "sent_at": sample.sent_at,
        "prompt_tokens": sample.prompt_tokens,
        "answer_tokens": sample.answer_tokens,
        **{name: _known(getattr(sample, name)) for name in TIMES},
        "error": sample.error or None,
    }


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def times_table(summary: Summary) -> Table:
    """Return one row per time, with its mean and percentiles."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right")
    for name, title in TIMES.items():
        found = summary.times[name]
        values = (found.mean, found.p50, found.p90, found.p99)
        table.add_row(title, *("-" if isnan(v) else format_seconds(v) for v in values))
    return table


def lines(summary: Summary, targets: Targets) -> list[str]:
    """Return rates, goodput and errors for a person."""
    found = [
        f"{summary.num_finished} of {summary.num_requests} requests finished in "
        f"{format_seconds(summary.duration_seconds)}: {summary.requests_per_second:.3g} "
        f"requests/s, {summary.tokens_per_second:.4g} tokens/s"
    ]
    if summary.num_good is not None:
        kept = " and ".join(
            f"{name} {format_seconds(target)}"
            for name, target in (("TTFT", targets.ttft_seconds), ("TPOT", targets.tpot_seconds))
            if target is not None
        )
        found.append(
            f"goodput ({kept} kept): {summary.goodput_per_second:.3g} requests/s, "
            f"{summary.num_good} of them"
        )
    found += [f"failed, {times} times: {error}" for error, times in summary.errors.items()]
    if summary.most_late_seconds > _LATE_SECONDS:
        found.append(
            f"warning: this program sent a request {format_seconds(summary.most_late_seconds)} "
            "late; it had too little processor time, and times are counted from when a request "
            "was due"
        )
    return found


_LATE_SECONDS: Final = 0.1

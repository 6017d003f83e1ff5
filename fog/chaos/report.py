"""What a run of faults came to: as JSON, and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fog.chaos.load import Outcome
from fog.chaos.scenario import SERVICES, Fault
from fog.chaos.verdict import TOKENS_PER_TIE, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A fault as it happened.

    Attributes:
        name: The device or service that it met.
        at: When, by the clock of the load.
        seconds_to_new_plan: Until a plan without the device was active; None: none came.
        longest_pause_seconds: Of all answers that paused because of it.
        skipped: Why it did not happen; "" when it did.
    """

    fault: Fault
    name: str
    at: float
    seconds_to_new_plan: float | None = None
    longest_pause_seconds: float = 0.0
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An outcome with its verdict; None for a lost request."""

    outcome: Outcome
    verdict: Verdict | None
    what: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run.

    Attributes:
        num_hanging: Requests that had not ended when the run did; they count as lost.
        num_plans: Versions of the plan that were active.
        is_interrupted: Ctrl-C ended it before its last fault.
    """

    seed: int
    seconds: float
    streams: int
    weights: str
    incidents: Sequence[Incident]
    judged: Sequence[Judged]
    num_hanging: int = 0
    num_plans: int = 0
    is_interrupted: bool = False

    @property
    def happened(self) -> list[Incident]:
        """The faults that were not skipped."""
        return [incident for incident in self.incidents if not incident.skipped]

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.num_hanging + sum(each.verdict is None for each in self.judged)

    def count(self, verdict: Verdict) -> int:
        """Answers with a verdict."""
        return sum(each.verdict is verdict for each in self.judged)

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        answers = [each.outcome.answer for each in self.judged]
        return sum(len(answer.token_ids) for answer in answers if answer is not None)

    @property
    def longest_pause_seconds(self) -> float:
        """Longest time between two tokens of an answer."""
        answers = [each.outcome.answer for each in self.judged]
        return max((a.longest_pause_seconds for a in answers if a is not None), default=0.0)

    @property
    def seconds_to_new_plan(self) -> float | None:
        """Longest time until a plan did without a device that had gone; None: none had to."""
        found = [i.seconds_to_new_plan for i in self.happened if i.seconds_to_new_plan is not None]
        return max(found, default=None)

    @property
    def problems(self) -> list[str]:
        """Why the run has failed; empty when it has not."""
        problems = []
        if self.lost:
            problems.append(f"{self.lost} requests were lost")
        if wrong := self.count(Verdict.WRONG):
            problems.append(f"{wrong} answers are wrong")
        ties, allowed = self.count(Verdict.TIE), max(1, self.num_tokens // TOKENS_PER_TIE)
        if ties > allowed:
            problems.append(
                f"{ties} near ties in {self.num_tokens} tokens, more than one in {TOKENS_PER_TIE}"
            )
        return problems

    def as_json(self) -> dict[str, Any]:
        """Return the whole report as JSON."""
        return {
            "requests": len(self.judged) + self.num_hanging,
            "tokens": self.num_tokens,
            "faults": len(self.happened),
            "lost": self.lost,
            "wrong": self.count(Verdict.WRONG),
            "ties": self.count(Verdict.TIE),
            "longest_pause_seconds": round(self.longest_pause_seconds, 3),
            "seconds_to_new_plan": _rounded(self.seconds_to_new_plan),
            "plans": self.num_plans,
            "interrupted": self.is_interrupted,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "streams": self.streams,
            "weights": self.weights,
            "incidents": [_incident_json(incident) for incident in self.incidents],
            "differences": [
                {
                    "verdict": each.verdict.value if each.verdict is not None else "lost",
                    "what": each.what or each.outcome.error,
                    "began_at": round(each.outcome.began_at, 3),
                }
                for each in self.judged
                if each.verdict is not Verdict.EQUAL
            ],
        }

    def table(self) -> RenderableType:
        """Return the report for people."""
        rows = Table(box=box.SIMPLE, title_justify="left")
        columns = ("fault", "times", "longest pause", "until a plan without it")
        for number, column in enumerate(columns):
            rows.add_column(column, justify="right" if number else "left")
        for kind in sorted({_sort(incident) for incident in self.happened}):
            met = [incident for incident in self.happened if _sort(incident) == kind]
            waits = [i.seconds_to_new_plan for i in met if i.seconds_to_new_plan is not None]
            rows.add_row(
                kind,
                str(len(met)),
                f"{max(i.longest_pause_seconds for i in met):.2f} s",
                f"{max(waits):.1f} s" if waits else "-",
            )
        equal = self.count(Verdict.EQUAL)
        summary = Text(
            f"{len(self.judged) + self.num_hanging} answers with {self.num_tokens} tokens under "
            f"{len(self.happened)} faults in {self.seconds:.0f} s: {equal} equal, "
            f"{self.count(Verdict.TIE)} near ties, {self.count(Verdict.WRONG)} wrong, "
            f"{self.lost} lost; longest pause {self.longest_pause_seconds:.2f} s"
        )
        notes = [Text(f"  {each.what or each.outcome.error}") for each in self.judged
                 if each.verdict not in (Verdict.EQUAL, Verdict.TIE)]  # fmt: skip
        skipped = [incident.skipped for incident in self.incidents if incident.skipped]
        if skipped:
            notes.append(
                Text(f"  {len(skipped)} faults did nothing: {'; '.join(sorted(set(skipped)))}")
            )
        return Group(rows, summary, *notes)


def _sort(incident: Incident) -> str:
    met = incident.name if incident.name in SERVICES else "device"
    return f"{incident.fault.kind.value} {met}"


def _incident_json(incident: Incident) -> dict[str, Any]:
    fault = incident.fault
    return {
        "at_seconds": round(incident.at, 3),
        "kind": fault.kind.value,
        "target": fault.target,
        "name": incident.name,
        "lasts_seconds": fault.lasts_seconds,
        "longest_pause_seconds": round(incident.longest_pause_seconds, 3),
        "seconds_to_new_plan": _rounded(incident.seconds_to_new_plan),
        **({"skipped": incident.skipped} if incident.skipped else {}),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

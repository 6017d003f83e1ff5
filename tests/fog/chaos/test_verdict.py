"""When an answer counts as the undisturbed one, and what a report makes of it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fog.answer import Answer
from fog.chaos.load import Job, Outcome
from fog.chaos.report import Incident, Judged, Report
from fog.chaos.scenario import Fault, Kind
from fog.chaos.verdict import Difference, Verdict, first_difference, judge

GOOD = Answer(
    text="It is 12.",
    token_ids=[5, 6, 7, 8],
    ttft_seconds=0.1,
    tpot_seconds=0.02,
    finish_reason="length",
    prompt_token_ids=[1, 2],
    longest_pause_seconds=0.4,
)
KILL = Fault(at_seconds=1.0, kind=Kind.KILL, target="decode")


@pytest.mark.parametrize(
    ("actual", "expected", "difference"),
    [
        ([1, 2], [1, 2], None),
        ([1, 3], [1, 2], Difference(1, 2, 3)),
        ([1], [1, 2], Difference(1, 2, None)),
        ([1, 2, 2], [1, 2], Difference(2, None, 2)),
        ([], [], None),
    ],
    ids=["equal", "another", "missing", "repeated", "empty"],
)
def test_the_first_difference_is_found(
    actual: list[int], expected: list[int], difference: Difference | None
) -> None:
    assert first_difference(actual, expected) == difference


def test_a_difference_is_a_tie_only_where_both_tokens_scored_alike() -> None:
    asked: list[tuple[list[int], int, int]] = []

    def gap(ids: Sequence[int], right: int, wrong: int) -> float:
        asked.append((list(ids), right, wrong))
        return 5e-4 if wrong == 9 else 0.3

    tie, _ = judge(replace(GOOD, token_ids=[5, 6, 9, 1]), GOOD, gap)
    wrong, what = judge(replace(GOOD, token_ids=[5, 6, 3, 8]), GOOD, gap)

    assert (tie, wrong) == (Verdict.TIE, Verdict.WRONG)
    assert asked == [([5, 6], 7, 9), ([5, 6], 7, 3)]
    assert "token 2: 3 instead of 7" in what


def test_without_ties_every_difference_is_wrong_and_so_is_another_length_or_text() -> None:
    assert judge(GOOD, GOOD, None) == (Verdict.EQUAL, "")
    for changed in (
        replace(GOOD, token_ids=[5, 6, 9, 8]),
        replace(GOOD, token_ids=[5, 6, 7]),
        replace(GOOD, token_ids=[5, 6, 7, 8, 8]),
        replace(GOOD, text="It is"),
        replace(GOOD, finish_reason="stop"),
    ):
        assert judge(changed, GOOD, None)[0] is Verdict.WRONG


def judged(verdict: Verdict | None, answer: Answer | None = GOOD, error: str = "") -> Judged:
    job = Job(body={}, undisturbed=GOOD)
    outcome = Outcome(job=job, answer=answer, error=error, began_at=1.0, ended_at=2.0)
    return Judged(outcome=outcome, verdict=verdict)


def report(*all_judged: Judged, hanging: int = 0, incidents: tuple[Incident, ...] = ()) -> Report:
    return Report(
        seed=1,
        seconds=60.0,
        streams=2,
        weights="float32",
        incidents=incidents,
        judged=all_judged,
        num_hanging=hanging,
    )


def test_a_report_counts_what_became_of_the_requests() -> None:
    incidents = (
        Incident(fault=KILL, name="pi", at=1.0, seconds_to_new_plan=2.5),
        Incident(fault=KILL, name="pc", at=9.0, seconds_to_new_plan=1.5),
        Incident(fault=KILL, name="decode", at=9.5, skipped="2 devices are harmed already"),
    )

    made = report(
        judged(Verdict.EQUAL),
        judged(Verdict.TIE),
        judged(Verdict.WRONG),
        judged(None, None, "cut off"),
        hanging=2,
        incidents=incidents,
    )

    found = made.as_json()
    promised = {
        "requests": 6,
        "faults": 2,
        "lost": 3,
        "wrong": 1,
        "ties": 1,
        "longest_pause_seconds": 0.4,
        "seconds_to_new_plan": 2.5,
    }
    assert {key: found[key] for key in promised} == promised
    assert [each["verdict"] for each in found["differences"]] == ["tie", "wrong", "lost"]
    assert len(made.problems) == 2


def test_a_run_is_good_only_without_lost_wrong_and_too_many_ties() -> None:
    assert report(judged(Verdict.EQUAL), judged(Verdict.TIE)).problems == []
    assert "lost" in report(judged(Verdict.EQUAL), hanging=1).problems[0]
    assert "wrong" in report(judged(Verdict.WRONG)).problems[0]
    assert "ties" in report(judged(Verdict.TIE), judged(Verdict.TIE)).problems[0]


@pytest.mark.parametrize(("num_tokens", "num_ties"), [(8, 1), (99_999, 1), (100_000, 2)])
def test_one_near_tie_in_fifty_thousand_tokens_is_allowed_and_no_more(
    num_tokens: int, num_ties: int
) -> None:
    rest = judged(Verdict.EQUAL, replace(GOOD, token_ids=[0] * num_tokens))
    tie = judged(Verdict.TIE, replace(GOOD, token_ids=[]))

    assert report(rest, *[tie] * num_ties).problems == []
    (problem,) = report(rest, *[tie] * (num_ties + 1)).problems
    assert "more than one in 50000" in problem

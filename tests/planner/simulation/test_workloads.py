"""Arrivals, lengths and traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.simulation import SimRequest
from planner.simulation import workloads as w


def test_a_fixed_period_is_exact() -> None:
    assert w.fixed_period(4, 0.5).tolist() == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_variation_that_were_asked_for(cv: float) -> None:
    gaps = np.diff(w.bursty(200_000, 4.0, cv, np.random.default_rng(1)))

    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_poisson_arrivals_are_exponential_gaps() -> None:
    gaps = np.diff(w.poisson(100_000, 2.0, np.random.default_rng(2)))

    assert np.mean(gaps > 0.5) == pytest.approx(np.exp(-1), abs=0.01)


def test_lognormal_lengths_have_the_mean_and_variation_that_were_asked_for() -> None:
    lengths = w.lognormal(588, 0.7)(200_000, np.random.default_rng(3))

    assert lengths.mean() == pytest.approx(588, rel=0.01)
    assert lengths.std() / lengths.mean() == pytest.approx(0.7, rel=0.02)
    assert lengths.min() >= 1


@pytest.mark.parametrize(
    "statistics",
    [
        w.AZURE_CODE_PROMPT,
        w.AZURE_CODE_ANSWER,
        w.AZURE_CONVERSATION_PROMPT,
        w.AZURE_CONVERSATION_ANSWER,
    ],
)
def test_draws_from_a_traces_statistics_have_its_quantiles_and_mean(
    statistics: w.TokenStatistics,
) -> None:
    lengths = statistics.lengths()(400_000, np.random.default_rng(4))

    for share, tokens in statistics.points[:-1]:
        assert np.quantile(lengths, share) == pytest.approx(tokens, rel=0.02, abs=1)
    assert lengths.mean() == pytest.approx(statistics.mean, rel=0.02)


def test_quantiles_without_a_mean_are_joined_by_lines() -> None:
    lengths = w.quantiles([(0.0, 1.0), (0.5, 101.0), (1.0, 1101.0)])(
        200_000, np.random.default_rng(6)
    )

    assert np.quantile(lengths, 0.25) == pytest.approx(51, abs=1)
    assert np.quantile(lengths, 0.75) == pytest.approx(601, abs=5)


def test_equal_seeds_give_equal_requests_whatever_the_period() -> None:
    def lengths(period: float) -> list[tuple[int, int]]:
        drawn = w.requests(
            w.fixed_period(50, period),
            w.lognormal(100, 0.5),
            w.constant(9),
            np.random.default_rng(5),
        )
        return [(r.prompt_tokens, r.answer_tokens) for r in drawn]

    assert lengths(0.5) == lengths(3.0)
    assert {answer for _, answer in lengths(0.5)} == {9}


def test_a_trace_is_read_from_a_file_with_or_without_names(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_seconds,prompt,answer\n# a comment\n\n12.5,30,4\n10,20,3\n")

    assert w.read_trace(file) == (SimRequest(0.0, 20, 3), SimRequest(2.5, 30, 4))
    assert w.read_trace("1,2,3\n") == (SimRequest(0.0, 2, 3),)
    file.write_text('\ufeff"1", "2", "3"\r\n', "utf-8")
    assert w.read_trace(file) == (SimRequest(0.0, 2, 3),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1,2,3\n4,x,6\n", "line 2"),
        ("1,2\n", "line 1"),
        ("1,2,3\n2,0,4\n", "line 2.*at least 1 token"),
        ("0,2,3\n1,2.5,3\n", "line 2.*whole"),
        ("0,2,3\n1,inf,3\n", "line 2.*at most"),
        ("# times\n\n0,2,3\n1,2,\x00\n", "line 4"),
        ("0,2,3\n1,2,3,4\n", "line 2"),
        ("nan,2,3\n", "line 1"),
        ("0,2,3\n1e300,2,3\n", "longer than ten years"),
        ("a,b,c\n", "no requests"),
        ("", "no requests"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        w.read_trace(text)


def test_nonsense_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="period"):
        w.fixed_period(3, 0.0)
    with pytest.raises(ValueError, match="must be > 0"):
        w.bursty(3, 1.0, 0.0, rng)
    with pytest.raises(ValueError, match="mean >= 1"):
        w.lognormal(0.0, 1.0)
    with pytest.raises(ValueError, match="begin at probability 0"):
        w.quantiles([(0.0, 1.0), (0.9, 2.0)])
    with pytest.raises(ValueError, match="mean of 3"):
        w.quantiles([(0.0, 1.0), (1.0, 2.0)], 3.0)
    with pytest.raises(ValueError, match="must rise"):
        w.quantiles([(0.0, 5.0), (1.0, 2.0)])

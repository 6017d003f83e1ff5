"""Workloads by name, by file, by given lengths and arrivals."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import pytest

from planner.simulation import SimRequest
from planner.whatif.loads import LoadError, choose_load, cut_to_context


@pytest.mark.parametrize("name", ["extended", "custom", "chat", "azure-code", "azure-conversation"])
def test_a_named_workload_has_its_means(name: str) -> None:
    load = choose_load(name)

    drawn = load.requests(4000, 2.0, 0)

    mean = sum(request.prompt_tokens for request in drawn) / len(drawn)
    assert mean == pytest.approx(load.prompt_tokens, rel=0.1)


def test_a_trace_is_replayed_at_its_own_rate_or_another(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival,prompt,answer\n0,10,5\n10,20,6\n20,30,7\n", "utf-8")
    load = choose_load(str(path))

    assert load.trace_rate == pytest.approx(0.1)
    assert [r.arrival_seconds for r in load.requests(None, 0.1, 0)] == [0, 10, 20]
    assert [r.arrival_seconds for r in load.requests(2, 0.2, 0)] == [0, 5]


def test_a_wrong_trace_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("0,10,5\n1,x,5\n", "utf-8")

    with pytest.raises(LoadError, match="line 2"):
        choose_load(str(path))


def test_an_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(LoadError, match=r"known: .*azure-code"):
        choose_load("azure-cod")


def test_requests_are_cut_to_the_context_and_counted() -> None:
    found, num_cut = cut_to_context(
        (SimRequest(0, 10, 10), SimRequest(0, 10, 100), SimRequest(0, 100, 10)), 50
    )

    assert [(r.prompt_tokens, r.answer_tokens) for r in found] == [(10, 10), (10, 40), (49, 1)]
    assert num_cut == 2


def test_lengths_and_arrivals_can_be_given() -> None:
    load = choose_load("chat", prompt_tokens=500, answer_tokens=200, arrivals="bursty:6")

    drawn = load.requests(20_000, 2.0, 0)

    assert fmean(r.prompt_tokens for r in drawn) == pytest.approx(500, rel=0.05)
    assert fmean(r.answer_tokens for r in drawn) == pytest.approx(200, rel=0.05)
    times = [r.arrival_seconds for r in drawn]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.5, rel=0.15)
    assert stdev(gaps) / fmean(gaps) == pytest.approx(6, rel=0.15)
    assert load.text == (
        "chat: prompts of 500 and answers of 200 tokens on average, lognormal; "
        "bursty, gaps vary by 6 times their mean"
    )


def test_what_is_not_given_stays_that_of_the_named_workload() -> None:
    load, named = choose_load("azure-code", answer_tokens=50), choose_load("azure-code")

    drawn, original = load.requests(50, 1.0, 0), named.requests(50, 1.0, 0)

    assert [r.prompt_tokens for r in drawn] == [r.prompt_tokens for r in original]
    assert [r.arrival_seconds for r in drawn] == [r.arrival_seconds for r in original]
    assert load.answer_tokens == 50


def test_fixed_arrivals_have_one_period() -> None:
    drawn = choose_load("chat", arrivals="fixed").requests(4, 0.5, 0)

    assert [r.arrival_seconds for r in drawn] == [0, 2, 4, 6]


@pytest.mark.parametrize("arrivals", ["", "often", "bursty:", "bursty:0", "bursty:nan", "fixed:2"])
def test_unknown_arrivals_name_the_known_ones(arrivals: str) -> None:
    with pytest.raises(LoadError, match="use poisson, fixed, bursty"):
        choose_load("chat", arrivals=arrivals)


def test_a_trace_keeps_its_own_lengths_and_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("0,10,5\n", "utf-8")

    with pytest.raises(LoadError, match="lengths and arrivals of its own"):
        choose_load(str(path), prompt_tokens=5)


def test_a_trace_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"0,10,5\n\xff\xfe\n")

    with pytest.raises(LoadError, match="not UTF-8 text"):
        choose_load(str(path))

"""Lengths of requests as buckets, and what the cost model makes of them."""

from __future__ import annotations

import random

import pytest

import planner
from broker.control import DecodeTime, LayerTimes, PrefillTime
from broker.placement import kv_reserved_tokens
from planner.cost import device_cost, step_contexts
from planner.lengths import buckets_of, parse_buckets, piece_power, pieces
from planner.model import Bucket, Objective, Workload
from planner.replicas import Fog
from planner.simulation.workloads import (
    AZURE_CODE_ANSWER,
    AZURE_CODE_PROMPT,
    AZURE_CONVERSATION_ANSWER,
    AZURE_CONVERSATION_PROMPT,
    TokenStatistics,
    trace_buckets,
)
from tests.planner import fogs

TWO = (Bucket(0.75, 100, 40), Bucket(0.25, 500, 200))


def test_means_follow_from_the_buckets() -> None:
    work = Workload(prompt_tokens=1, answer_tokens=1, buckets=TWO)
    assert (work.prompt_tokens, work.answer_tokens) == (200, 80)
    assert work.prompt_shares == ((100, 0.75), (500, 0.25))


def test_long_answers_hold_slots_longer_than_their_share_of_requests() -> None:
    work = Workload(buckets=TWO)
    # 0.75 * 40 = 30 and 0.25 * 200 = 50 of 80 steps.
    assert [share for _, share in work.step_shares] == pytest.approx([3 / 8, 5 / 8])
    assert dict(step_contexts(work)) == pytest.approx({120: 3 / 8, 600: 5 / 8})
    assert work.step_context == round(3 / 8 * 120 + 5 / 8 * 600)


def test_buckets_are_cut_to_the_context_as_means_are() -> None:
    work = Workload(context_tokens=4096, buckets=TWO).fitted_to(400)
    assert work.buckets == (Bucket(0.75, 100, 40), Bucket(0.25, 200, 200))
    assert (work.prompt_tokens, work.answer_tokens) == (125, 80)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ((Bucket(0.5, 1, 1),), "must add up to 1"),
        ((Bucket(0.6, 1, 1), Bucket(0.6, 2, 2)), "must add up to 1"),
    ],
)
def test_shares_that_do_not_add_up_are_refused(buckets: tuple[Bucket, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload(buckets=buckets)


def test_a_bucket_without_requests_or_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="over 0"):
        Bucket(0.0, 1, 1)
    with pytest.raises(ValueError, match="at least one token"):
        Bucket(1.0, 1, 0)


def test_observed_lengths_keep_their_means_and_what_goes_together() -> None:
    rng = random.Random(1)
    # Long prompts have short answers here.
    seen = [(n, max(900 // n, 1)) for n in (rng.randint(10, 800) for _ in range(500))]
    found = buckets_of(seen, num_prompts=5, num_answers=2)
    assert 5 <= len(found) <= 10
    assert sum(b.share for b in found) == pytest.approx(1)
    for index, name in enumerate(("prompt_tokens", "answer_tokens")):
        mean = sum(b.share * getattr(b, name) for b in found)
        assert mean == pytest.approx(sum(pair[index] for pair in seen) / 500, abs=0.5)
    shortest, longest = found[0], found[-1]
    assert shortest.answer_tokens > longest.answer_tokens


def test_one_observed_request_is_one_bucket_and_none_is_an_error() -> None:
    assert buckets_of([(7, 9)]) == (Bucket(1.0, 7, 9),)
    assert buckets_of([(7, 9)] * 50) == (Bucket(1.0, 7, 9),)
    with pytest.raises(ValueError, match="at least one observed request"):
        buckets_of([])


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (AZURE_CODE_PROMPT, AZURE_CODE_ANSWER),
        (AZURE_CONVERSATION_PROMPT, AZURE_CONVERSATION_ANSWER),
    ],
)
def test_a_trace_s_quantiles_become_buckets_with_its_means(
    prompt: TokenStatistics, answer: TokenStatistics
) -> None:
    found = trace_buckets(prompt, answer)
    assert len(found) == 36
    work = Workload(context_tokens=20_000, buckets=found)
    assert work.prompt_tokens == pytest.approx(prompt.mean, abs=1)
    assert work.answer_tokens == pytest.approx(answer.mean, abs=1)
    longest = max(b.prompt_tokens for b in found)
    assert prompt.points[-2][1] <= longest <= prompt.points[-1][1]


def test_pieces_between_quantiles_have_the_mean_that_is_asked_for() -> None:
    points = ((0.0, 10.0), (0.5, 20.0), (1.0, 100.0))
    assert sum(share * mean for share, mean in pieces(points, 30.0)) == pytest.approx(30.0)
    # (10 + 20) / 2 is the least, and lines have (15 + 60) / 2.
    assert piece_power(points, 37.5) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no lengths with these quantiles"):
        piece_power(points, 15.0)


def test_buckets_are_read_from_a_setting() -> None:
    assert parse_buckets("3:100+40, 1:500+200") == TWO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5:100", "bucket '0.5:100': expected share:prompt"),
        ("0.5:100+4, x:1+1", "bucket 'x:1[+]1': expected"),
        ("1:100+4.5", "expected share:prompt"),
        ("0:100+4", "shares must be numbers greater than 0"),
        ("nan:100+4", "shares must be numbers greater than 0"),
        (" , ", "shares must be numbers greater than 0"),
        ("1:0+4", "at least one token"),
    ],
)
def test_a_malformed_bucket_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_buckets(text)


# --- the cost model -------------------------------------------------------------------------


def test_prompts_cost_the_mean_of_the_buckets_not_a_prompt_of_mean_length() -> None:
    # Nothing up to 200 tokens, then one second for every 100.
    times = LayerTimes(
        prefill=[PrefillTime(200, 0.0), PrefillTime(600, 4.0)],
        decode=[DecodeTime(1, 0, 0.0), DecodeTime(1, 1000, 1.0)],
    )
    device = fogs.device("a", 1, 1, blocks={"full": times}, embedding=times, head=times)
    cost = device_cost(device, fogs.model(2), Workload(buckets=TWO), 1)
    assert [prompt.layers[0] for prompt in cost.prompts] == pytest.approx([0.0, 3.0])
    assert cost.prefill.layers == pytest.approx([0.75, 0.75])
    assert cost.prefill.head == pytest.approx(0.75)
    # Steps are linear in the context, so here the mean context tells their mean time.
    assert cost.decode[0].layers[0] == pytest.approx(0.42)


def test_one_bucket_of_the_means_is_planned_as_the_means() -> None:
    devices, model = fogs.random_fog(3, 5)
    means = Workload(prompt_tokens=128, answer_tokens=96, context_tokens=512)
    bucket = Workload(context_tokens=512, buckets=(Bucket(1.0, 128, 96),))
    assert planner.plan(devices, model, bucket) == planner.plan(devices, model, means)


def test_kv_is_reserved_for_the_requests_that_fill_the_slots() -> None:
    devices, model = fogs.random_fog(3, 3)
    work = Workload(context_tokens=1024, buckets=TWO)
    fog = Fog(devices, model, work, Objective())
    short, long = kv_reserved_tokens(140), kv_reserved_tokens(700)
    assert fog.request_tokens == 3 / 8 * short + 5 / 8 * long


def test_prompts_of_unequal_length_take_longer_to_first_token_when_time_grows_faster() -> None:
    def ttft(work: Workload) -> float:
        times = LayerTimes(
            prefill=[PrefillTime(100, 0.1), PrefillTime(500, 2.5)],
            decode=[DecodeTime(1, 0, 0.01)],
        )
        whole = fogs.model().stage_bytes(0, 8, 4096)
        blocks = {"full": times}
        device = fogs.device("a", 1, whole, blocks=blocks, embedding=times, head=times)
        return Fog([device], fogs.model(), work, Objective()).performance([0], [8]).ttft_seconds

    unequal = Workload(context_tokens=1024, chunk_tokens=1024, buckets=TWO)
    equal = Workload(prompt_tokens=200, answer_tokens=80, context_tokens=1024, chunk_tokens=1024)
    # Of a straight line the mean is the value at the mean.
    assert ttft(unequal) == pytest.approx(ttft(equal))
    short = Workload(
        context_tokens=1024, chunk_tokens=1024, buckets=(Bucket(0.9, 50, 40), Bucket(0.1, 500, 40))
    )
    # Under 100 tokens nothing is gained: 0.9 * 0.1 + 0.1 * 2.5 for each of ten parts.
    assert ttft(short) == pytest.approx(10 * (0.9 * 0.1 + 0.1 * 2.5))

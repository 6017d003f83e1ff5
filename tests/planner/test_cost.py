"""Measured points to predicted times."""

from __future__ import annotations

import pytest

from broker.control import DecodeTime, LayerTimes, Link, PrefillTime
from planner.cost import (
    decode_seconds,
    device_cost,
    hop_seconds,
    prefill_seconds,
    table_batches,
)
from planner.model import Workload
from tests.planner import fogs


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [(1, 1.0), (32, 1.0), (64, 2.0), (96, 3.0), (128, 4.0), (256, 8.0)],
)
def test_prefill_is_linear_between_lengths_and_goes_on_beyond(tokens: int, seconds: float) -> None:
    times = [PrefillTime(128, 4.0), PrefillTime(32, 1.0)]
    assert prefill_seconds(times, tokens) == pytest.approx(seconds)


def test_a_longer_prompt_or_a_larger_batch_is_never_faster() -> None:
    noisy = [PrefillTime(32, 2.0), PrefillTime(64, 1.0), PrefillTime(128, 3.0)]
    assert prefill_seconds(noisy, 64) == 2.0
    steps = [DecodeTime(1, 0, 2.0), DecodeTime(4, 0, 1.0)]
    assert decode_seconds(steps, 4, 0) == 2.0
    assert decode_seconds(steps, 16, 0) == 2.0


def test_decode_is_linear_in_context_and_then_in_batch() -> None:
    times = [
        DecodeTime(1, 0, 1.0),
        DecodeTime(1, 100, 2.0),
        DecodeTime(3, 0, 3.0),
        DecodeTime(3, 100, 6.0),
    ]
    assert decode_seconds(times, 1, 50) == pytest.approx(1.5)
    assert decode_seconds(times, 2, 50) == pytest.approx(3.0)
    assert decode_seconds(times, 5, 0) == pytest.approx(5.0)


def test_one_measured_point_is_enough() -> None:
    assert prefill_seconds([PrefillTime(64, 0.5)], 7) == 0.5
    assert decode_seconds([DecodeTime(2, 9, 0.5)], 16, 1000) == 0.5


@pytest.mark.parametrize(
    ("most", "knots"), [(1, (1,)), (2, (1, 2)), (12, (1, 2, 4, 8, 12)), (16, (1, 2, 4, 8, 16))]
)
def test_decode_tables_have_knots_at_powers_of_two(most: int, knots: tuple[int, ...]) -> None:
    assert table_batches(most) == knots


def test_a_stage_costs_its_layers_and_the_ends_it_has() -> None:
    model = fogs.model(4, ("a", "b"))
    flat = {
        kind: LayerTimes(prefill=[PrefillTime(1, s)], decode=[DecodeTime(1, 0, s)])
        for kind, s in (("a", 1.0), ("b", 2.0))
    }
    end = LayerTimes(prefill=[PrefillTime(1, 10.0)], decode=[DecodeTime(1, 0, 10.0)])
    spec = fogs.device("x", 1.0, 1, blocks=flat, embedding=end, head=end, speed=0.5)
    cost = device_cost(spec, model, Workload(), 2)
    assert cost.prefill.stage_seconds(1, 3) == 2 * (2.0 + 1.0)
    assert cost.prefill.stage_seconds(0, 4) == 2 * (6.0 + 20.0)
    assert cost.decode[1].stage_seconds(2, 4) == 2 * (3.0 + 10.0)
    assert [(p.batch, p.seconds) for p in cost.decode_table(0, 1)] == [(1, 22.0), (2, 22.0)]


def test_a_hop_passes_both_links_and_none_leads_to_itself() -> None:
    model = fogs.model(activation_bytes=1000)
    slow = fogs.device("s", 1, 1, link=Link(latency_seconds=0.01, bytes_per_second=1e5))
    fast = fogs.device("f", 1, 1, link=Link(latency_seconds=0.001, bytes_per_second=1e6))
    one, other = (device_cost(spec, model, Workload(), 1) for spec in (slow, fast))
    assert hop_seconds(one, other) == pytest.approx(0.011 + 0.01 + 0.001)
    assert hop_seconds(one, other, rows=10) == pytest.approx(0.011 + 0.1 + 0.01)
    assert hop_seconds(one, one) == 0.0

"""Host memory for feed-forward weights, direct ways between devices, KV on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from broker.control import Link
from planner import InfeasiblePlanError, exact, plan
from planner.cost import device_cost, hop_seconds, link_seconds
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.paper import load_calibration
from planner.performance import Performance
from planner.replicas import Fog
from planner.transfer import kv_transfer
from tests.planner import fogs

WORKLOAD = Workload(prompt_tokens=128, answer_tokens=96, context_tokens=512, min_tps=1.0)
MODEL = fogs.model(8, ffn_bytes=(800_000,) * 8)
WHOLE = MODEL.stage_bytes(0, 8, 512)


def with_host(device: DeviceSpec, host_bytes: int, slower: float = 3.0) -> DeviceSpec:
    times = {"full": fogs.layer_times(device.blocks["full"].decode[0].seconds * slower)}
    return replace(device, host_memory_bytes=host_bytes, offloaded=times)


def fog_of(devices: Sequence[DeviceSpec], model: ModelSpec = MODEL) -> Fog:
    return Fog(devices, model, WORKLOAD, Objective(roles=Roles.MIXED))


def test_a_device_holds_with_host_memory_what_it_could_not_alone() -> None:
    small = fogs.device("a", 0.001, WHOLE - 1_500_000)
    assert fog_of([small]).options(1) is None
    found = fog_of([with_host(small, 10_000_000)]).options(1)
    assert found is not None
    # Two parts of 0.8 MB make room for what is missing; one would not, three need not.
    assert found.decode.offloads[0] >= 2
    assert found.prefill.kv_tokens >= 512
    roomy = fog_of([fogs.device("a", 0.001, 2 * WHOLE)]).options(1)
    assert roomy is not None
    assert found.decode.tpot_seconds > roomy.decode.tpot_seconds


def test_host_memory_that_is_not_needed_changes_nothing() -> None:
    devices = [fogs.device(name, 0.001, 10 * WHOLE) for name in ("a", "b")]
    more = [with_host(device, 10_000_000) for device in devices]
    without, beside = (plan(each, MODEL, WORKLOAD, Objective()) for each in (devices, more))
    stages = [
        [(r.role, [(s.device, s.layers) for s in r.stages], r.slots) for r in made.replicas]
        for made in (without, beside)
    ]
    assert stages[0] == stages[1]
    assert beside.predicted.requests_per_second == pytest.approx(
        without.predicted.requests_per_second
    )


def test_more_slots_may_cost_host_memory_and_never_promise_more_than_fits() -> None:
    device = with_host(fogs.device("a", 0.0001, WHOLE), 100_000_000, slower=1.1)
    fog = fog_of([device])
    found = fog.options(1)
    assert found is not None
    moved = found.decode.offloads[0] * 800_000
    kv = found.decode.kv_tokens * sum(MODEL.kv_bytes)
    assert MODEL.weight_bytes - moved + kv <= WHOLE
    assert found.decode.slots * fog.request_tokens <= found.decode.kv_tokens
    alone = fog_of([fogs.device("a", 0.0001, WHOLE)]).options(1)
    assert alone is not None
    assert found.decode.slots > alone.decode.slots


def test_a_plan_says_what_is_in_host_memory_and_what_would_be_missing() -> None:
    small = fogs.device("a", 0.001, WHOLE - 4_000_000)
    made = exact([with_host(small, 10_000_000)], MODEL, WORKLOAD)
    assert "are in host memory" in made.reasons["a"]
    with pytest.raises(InfeasiblePlanError, match="are missing"):
        exact([with_host(small, 1_000_000)], MODEL, WORKLOAD)


def test_host_memory_counts_only_for_a_model_with_movable_parts_and_times_for_them() -> None:
    device = with_host(fogs.device("a", 0.001, WHOLE), 10_000_000)
    movable = device_cost(device, MODEL, WORKLOAD, 4)
    assert movable.host_memory_bytes == 10_000_000
    assert movable.prefill.stage_seconds(0, 8, 2) > movable.prefill.stage_seconds(0, 8)
    assert device_cost(device, fogs.model(8), WORKLOAD, 4).host_memory_bytes == 0
    untimed = replace(device, offloaded={})
    assert device_cost(untimed, MODEL, WORKLOAD, 4).host_memory_bytes == 0


def test_parts_larger_than_their_block_are_refused() -> None:
    with pytest.raises(ValueError, match="ffn_bytes must be a part of every block"):
        fogs.model(2, ffn_bytes=(1_000_001, 1))


# --- ways -----------------------------------------------------------------------------------


def ring_of_four(near: Sequence[tuple[int, int]]) -> list[DeviceSpec]:
    names = ["a", "b", "c", "d"]
    return [
        fogs.device(
            name,
            0.001,
            WHOLE // 3,
            link=Link(latency_seconds=0.05, bytes_per_second=1e6),
            peers={
                names[to]: Link(latency_seconds=0.0001, bytes_per_second=1e9)
                for source, to in near
                if source == index
            },
        )
        for index, name in enumerate(names)
    ]


def test_a_direct_way_replaces_the_two_links_over_the_broker() -> None:
    devices = ring_of_four([(0, 2)])
    a, _, c, _ = (device_cost(device, MODEL, WORKLOAD, 4) for device in devices)
    assert hop_seconds(a, c, 2) == pytest.approx(0.0001 + 2 * 768 / 1e9)
    assert hop_seconds(c, a, 2) == pytest.approx(0.1 + 2 * 2 * 768 / 1e6)
    assert link_seconds(a, c, 2) == pytest.approx(2 * 768 / 1e9)
    assert link_seconds(c, a, 2) == pytest.approx(2 * 768 / 1e6)


def test_stages_follow_the_direct_ways() -> None:
    near = [(0, 2), (2, 1), (1, 3), (3, 0)]
    fog = fog_of(ring_of_four(near))
    found = fog.options(0b1111)
    assert found is not None
    order = found.decode.devices
    hops = {(order[i - 1], device) for i, device in enumerate(order)}
    assert hops == set(near)
    scattered = fog_of(ring_of_four([])).options(0b1111)
    assert scattered is not None
    assert found.decode.tpot_seconds < scattered.decode.tpot_seconds


# --- KV transfer ----------------------------------------------------------------------------


def stages(devices: Sequence[int], counts: Sequence[int]) -> Performance:
    return fogs.performance(devices=tuple(devices), counts=tuple(counts))


def test_kv_goes_at_the_pace_of_the_slower_link() -> None:
    rates = {"a": 1e6, "b": 4e6}
    devices = [
        fogs.device(n, 0.001, WHOLE, link=Link(latency_seconds=0.01, bytes_per_second=rate))
        for n, rate in rates.items()
    ]
    costs = fog_of(devices).costs
    moved = kv_transfer(costs, MODEL.kv_bytes, 100, stages([0], [8]), stages([1], [8]))
    assert moved.num_bytes == 100 * 8 * 1024
    assert moved.seconds == pytest.approx(0.02 + 100 * 8 * 1024 / 1e6)


def test_split_differently_stages_exchange_the_layers_that_both_hold_and_keep_their_own() -> None:
    link = Link(latency_seconds=0.0, bytes_per_second=1e6)
    costs = fog_of([fogs.device(n, 0.001, WHOLE, link=link) for n in ("a", "b", "c")]).costs
    # a holds 0 to 4 and b 4 to 8; then a holds 0 to 2 and c 2 to 8.
    moved = kv_transfer(costs, MODEL.kv_bytes, 10, stages([0, 1], [4, 4]), stages([0, 2], [2, 6]))
    layer = 10 * 1024
    assert moved.num_bytes == 6 * layer
    # All six arrive over the link of c.
    assert moved.seconds == pytest.approx(6 * layer / 1e6)
    same = stages([0, 1], [4, 4])
    assert kv_transfer(costs, MODEL.kv_bytes, 10, same, same).num_bytes == 0


def test_overlap_hides_kv_behind_prefill_but_for_the_last_chunk() -> None:
    link = Link(latency_seconds=0.0, bytes_per_second=1e6)
    costs = fog_of([fogs.device(n, 0.001, WHOLE, link=link) for n in ("a", "b")]).costs
    moved = kv_transfer(costs, (1000,) * 8, 125, stages([0], [8]), stages([1], [8]))
    assert moved.seconds == pytest.approx(1.0)
    assert moved.exposed_seconds(prefill_seconds=10.0) == pytest.approx(1.0)
    assert moved.exposed_seconds(prefill_seconds=10.0, num_chunks=4) == pytest.approx(0.25)
    assert moved.exposed_seconds(prefill_seconds=0.4, num_chunks=4) == pytest.approx(0.7)


@pytest.mark.parametrize(("tokens", "seconds"), [(576, 0.25), (2284, 0.98)])
def test_the_paper_s_prompts_take_a_quarter_of_a_second_and_a_second(
    tokens: int, seconds: float
) -> None:
    calibration = load_calibration()
    assert calibration.kv_bytes_per_token == 49_152
    assert calibration.kv_seconds(tokens) == pytest.approx(seconds, abs=0.005)

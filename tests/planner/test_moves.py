"""Moves of weights: what devices lack, and plans that stay near the running one."""

from __future__ import annotations

import msgspec.structs
import pytest

import planner
from broker.control import Link
from broker.placement import kv_reserved_tokens
from broker.plan import Plan, Role
from planner.live.triggers import decide
from planner.model import DeviceSpec, ModelSpec, Objective, Workload
from planner.moves import Holdings
from planner.owner import Owner
from planner.planning import plan_outcome, reassess
from tests.planner import fogs

WORKLOAD = Workload(prompt_tokens=128, answer_tokens=96, context_tokens=512)


def running_plan() -> tuple[Plan, ModelSpec]:
    devices, model = fogs.random_fog(9, 6)
    return planner.plan(devices, model, WORKLOAD), model


def stages_of(plan: Plan) -> set[tuple[str, int, int]]:
    return {(s.device, s.layers.start, s.layers.end) for r in plan.replicas for s in r.stages}


def test_what_the_running_plan_holds_need_not_be_loaded() -> None:
    plan, model = running_plan()
    held = Holdings.of(plan, model)
    for device, start, end in stages_of(plan):
        assert held.missing_bytes(device, start, end) == 0
    assert held.missing_bytes("another", 2, 4) == 2_000_000
    assert held.missing_bytes("another", 0, 1) == 1_500_000


def test_another_revision_s_weights_are_of_no_use() -> None:
    plan, model = running_plan()
    device, start, end = min(stages_of(plan))
    other = Holdings.of(msgspec.structs.replace(plan, revision="other"), model)
    assert other.missing_bytes(device, start, end) == model.stage_bytes(start, end)


@pytest.mark.parametrize(
    ("start", "end", "missing"),
    # The device holds layers 0 to 4 and the embedding of a model with tied ends.
    [(0, 4, 0), (0, 8, 4_000_000), (4, 8, 4_000_000), (2, 5, 1_000_000)],
)
def test_a_tied_matrix_is_loaded_once(start: int, end: int, missing: int) -> None:
    model = fogs.model(shared_bytes=500_000)
    whole = model.stage_bytes(0, 8, 1024)
    devices = [fogs.device(name, 0.001, whole * 6 // 10) for name in ("a", "b")]
    plan = planner.plan(devices, model, WORKLOAD)
    first = plan.replicas[0].stages[0]
    assert (first.layers.start, first.layers.end) == (0, 4)
    assert Holdings.of(plan, model).missing_bytes(first.device, start, end) == missing


def on_slow_links(model: ModelSpec, layers: int, **seconds: float) -> list[DeviceSpec]:
    """Devices by name and speed with room for so many layers, at 100 kB per second."""
    link = Link(latency_seconds=0.0005, bytes_per_second=1e5)
    room = model.stage_bytes(0, layers, 512) + model.head_bytes
    return [fogs.device(name, each, room, link=link) for name, each in seconds.items()]


def two_of_three() -> tuple[list[DeviceSpec], ModelSpec]:
    """A model of two layers, and three devices that hold one each; c is 2 % faster than b."""
    model = fogs.model(2, activation_bytes=8)
    return on_slow_links(model, 1, a=0.001, b=0.00102, c=0.001), model


def test_of_two_nearly_equal_plans_the_one_nearer_to_the_running_plan_wins() -> None:
    devices, model = two_of_three()
    objective = Objective(counts_kv=False, horizon_seconds=3600)
    running = planner.plan(devices[:2], model, WORKLOAD, objective)
    assert {s.device for s in running.replicas[0].stages} == {"a", "b"}

    fresh = plan_outcome(devices, model, WORKLOAD, objective)
    near = plan_outcome(devices, model, WORKLOAD, objective, running=running)

    used = {s.device for s in fresh.plan.replicas[0].stages}
    assert used == {"a", "c"}
    assert near.plan.replicas[0].id == running.replicas[0].id
    # A layer and an end take at least 15 s, which is more of an hour than is gained.
    assert near.score.objective_seconds < fresh.score.objective_seconds * (1 + 15 / 3600)


@pytest.mark.parametrize("horizon", [0.0, 1e9])
def test_a_move_is_free_when_it_should_not_count_or_the_plan_serves_for_ever(
    horizon: float,
) -> None:
    devices, model = two_of_three()
    objective = Objective(counts_kv=False, horizon_seconds=horizon)
    running = planner.plan(devices[:2], model, WORKLOAD, objective)
    found = plan_outcome(devices, model, WORKLOAD, objective, running=running).plan
    assert {s.device for s in found.replicas[0].stages} == {"a", "c"}


@pytest.mark.parametrize(("load_seconds", "prefills"), [(1.0, "fast"), (60.0, "near")])
def test_of_plans_that_serve_as_much_the_quicker_wins_unless_it_loads_for_long(
    load_seconds: float, prefills: str
) -> None:
    model = fogs.model()
    whole = model.stage_bytes(0, model.num_layers, 1024)
    link = Link(latency_seconds=0.0005, bytes_per_second=whole / load_seconds)

    def device(name: str, seconds: float, phase: Role) -> DeviceSpec:
        owner = Owner(phases=frozenset({phase}))
        return fogs.device(name, seconds, 3 * whole, link=link, owner=owner)

    objective = Objective(counts_kv=False, horizon_seconds=3600, rival_load=None)
    near = [device("decodes", 0.003, Role.DECODE), device("near", 0.0002, Role.PREFILL)]
    running = planner.plan(near, model, WORKLOAD, objective)
    devices = [*near, device("fast", 0.0001, Role.PREFILL)]
    found = plan_outcome(devices, model, WORKLOAD, objective, running=running).plan
    assert {s.device for r in found.replicas for s in r.stages} == {"decodes", prefills}


@pytest.mark.parametrize(
    ("kv_rooms", "c_seconds", "chosen"),
    # A device's room for KV, in longest requests; c is 2 % or 15 % faster than b.
    [(1, 0.00102, "b"), (2, 0.00102, "c"), (1, 0.0009, "c")],
)
def test_a_plan_that_fits_beside_the_running_one_wins_unless_it_serves_less(
    kv_rooms: int, c_seconds: float, chosen: str
) -> None:
    model = fogs.model(2, activation_bytes=8)
    link = Link(latency_seconds=0.0005, bytes_per_second=1e12)
    room = model.stage_bytes(0, 1, 512 * kv_rooms) + 8 * WORKLOAD.context_tokens
    devices = [
        fogs.device(name, seconds, room, link=link)
        for name, seconds in (("a", 0.001), ("b", 0.00104), ("c", c_seconds))
    ]
    objective = Objective(counts_kv=False, horizon_seconds=3600)
    running = planner.plan(devices[:2], model, WORKLOAD, objective)
    found = plan_outcome(devices, model, WORKLOAD, objective, running=running).plan
    # What the device that both plans use serves now stays until the other one is loaded.
    assert {s.device for s in found.replicas[0].stages} == {"a", chosen}


def test_weights_lie_beside_each_other_once_and_kv_for_each_stage() -> None:
    plan, model = running_plan()
    held = Holdings.of(plan, model)
    tokens = kv_reserved_tokens(WORKLOAD.context_tokens)
    device, start, end = min(stages_of(plan))
    kv = tokens * sum(model.kv_bytes[start:end])
    once = model.stage_bytes(start, end, tokens)
    assert model.held_bytes(held.held[device], tokens) == once
    assert held.bytes_beside(device, start, end) == once + kv
    assert held.bytes_beside("another", 2, 4) == model.stage_bytes(2, 4, tokens)


def test_a_running_split_is_kept_where_a_new_one_gains_less_than_its_loading_costs() -> None:
    model = fogs.model(activation_bytes=8)
    before = on_slow_links(model, 7, a=0.001, b=0.001)
    running = planner.plan(before, model, WORKLOAD)
    assert [len(s.layers) for s in running.replicas[0].stages] == [4, 4]
    slower = on_slow_links(model, 7, a=0.001, b=0.0018)

    fresh = plan_outcome(slower, model, WORKLOAD)
    hasty = plan_outcome(slower, model, WORKLOAD, Objective(horizon_seconds=30), running=running)
    patient = plan_outcome(slower, model, WORKLOAD, Objective(horizon_seconds=1e6), running=running)

    assert stages_of(fresh.plan) != stages_of(running)
    assert stages_of(hasty.plan) == stages_of(running)
    assert stages_of(patient.plan) == stages_of(fresh.plan)


def test_hysteresis_compares_what_is_left_after_loading() -> None:
    devices, model = two_of_three()
    objective = Objective(counts_kv=False, horizon_seconds=3600)
    running = planner.plan(devices[:2], model, WORKLOAD, objective)
    # Ten times as fast is worth loading.
    fast = on_slow_links(model, 1, a=0.0001, b=0.00102, c=0.0001)
    kept = reassess(running, fast, model, WORKLOAD, objective)
    assert kept is not None
    best = plan_outcome(fast, model, WORKLOAD, objective, running=running)
    decision = decide(running, kept, best, 0.10)
    assert not decision.is_kept
    gain = kept.score.objective_seconds / best.score.objective_seconds - 1
    assert decision.reason == f"{gain:.0%} more requests per second"
    # What is kept is loaded, and so has no penalty.
    assert kept.score.objective_seconds == kept.score.request_seconds
    assert best.score.objective_seconds > best.score.request_seconds

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest

from broker.plan import Role
from planner.model import Objective, Roles, Workload
from planner.performance import Member
from planner.replicas import Fog
from planner.roles import WORST, score
from planner.variations import in_other_groups, in_other_roles
from tests.planner.fogs import device, model

MODEL = model(num_layers=6)
WORK = Workload(prompt_tokens=100, answer_tokens=60, context_tokens=400, min_tps=7.0)


def fog(num_devices: int = 5, share: float = 2.0) -> Fog:
    """Devices of rising speed; ``share`` is what each holds of the model."""
    memory = int(MODEL.weight_bytes * share)
    devices = [device(f"d{n}", 0.004 / (n + 1), memory) for n in range(num_devices)]
    return Fog(devices, MODEL, WORK, Objective())


def members(table: Fog, *replicas: tuple[Role, int]) -> tuple[Member, ...]:
    """Return replicas of (role, bit mask of devices)."""
    made = []
    for role, group in replicas:
        options = table.options(group)
        assert options is not None
        made.append(Member(role, getattr(options, role.value)))
    return tuple(made)


def groups(plan: Sequence[Member]) -> set[tuple[Role, frozenset[int]]]:
    return {(member.role, frozenset(member.performance.devices)) for member in plan}


def without(devices: Sequence[int], plan: Sequence[Member]) -> set[tuple[Role, frozenset[int]]]:
    """Return the groups that are left when devices are taken away."""
    left = {(role, group - frozenset(devices)) for role, group in groups(plan)}
    return {(role, group) for role, group in left if group}


def used(plan: Sequence[Member]) -> frozenset[int]:
    return frozenset(device for _, group in groups(plan) for device in group)


def test_each_role_changes_alone_and_both_phases_stay_served() -> None:
    table = fog()
    plan = members(table, (Role.PREFILL, 0b11), (Role.DECODE, 0b100))
    found = [[member.role for member in near] for near in in_other_roles(table, plan)]
    # Two that prefill, or two that decode, would leave a phase to nobody.
    assert found == [[Role.BOTH, Role.DECODE], [Role.PREFILL, Role.BOTH]]


def test_one_device_moves_or_two_change_places() -> None:
    table = fog()
    plan = members(table, (Role.BOTH, 0b00011), (Role.BOTH, 0b01100))
    found = in_other_groups(table, plan, 1000)
    assert len({frozenset(groups(near)) for near in found}) == len(found) > 10
    for near in found:
        assert groups(near) != groups(plan)
        assert any(without(pair, near) == without(pair, plan) for pair in combinations(range(5), 2))
        assert score(near, table.workload, Roles.MIXED) < WORST


def test_an_idle_device_is_taken_in_and_a_slow_one_left_out() -> None:
    table = fog(num_devices=3)
    plan = members(table, (Role.BOTH, 0b011))
    found = {used(near) for near in in_other_groups(table, plan, 1000)}
    assert {frozenset({0, 1, 2}), frozenset({0}), frozenset({1})} <= found


def test_a_device_that_leaves_becomes_a_replica_of_its_own_in_any_role() -> None:
    table = fog(num_devices=2)
    plan = members(table, (Role.BOTH, 0b11))
    found = [groups(near) for near in in_other_groups(table, plan, 1000)]
    for role in Role:
        assert {(Role.BOTH, frozenset({0})), (role, frozenset({1}))} in found


def test_a_group_that_can_no_longer_hold_the_model_is_left_out() -> None:
    table = fog(num_devices=4, share=0.8)
    plan = members(table, (Role.BOTH, 0b0011), (Role.BOTH, 0b1100))
    found = [groups(near) for near in in_other_groups(table, plan, 1000)]
    assert all(len(group) >= 2 for near in found for _, group in near)
    assert {(Role.BOTH, frozenset({0, 1, 2}))} in found


@pytest.mark.parametrize("number", [0, 1, 5])
def test_only_those_are_returned_that_the_objective_likes_most(number: int) -> None:
    table = fog()
    plan = members(table, (Role.PREFILL, 0b00011), (Role.DECODE, 0b11100))
    every = in_other_groups(table, plan, 1000)
    found = in_other_groups(table, plan, number)
    assert len(found) == number
    best = min(score(near, table.workload, Roles.MIXED) for near in every)
    if number:
        assert score(found[0], table.workload, Roles.MIXED) == best
    if number > 1:
        fastest = min(score(near, table.workload, Roles.MIXED).latency_seconds for near in every)
        latencies = [score(near, table.workload, Roles.MIXED).latency_seconds for near in found]
        assert min(latencies) == fastest

"""What a plan says of itself holds beside every split, found without the planner's search."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import pytest

import planner
from broker.control import Link
from broker.plan import Role
from planner.bounds.least_links import least_receive_seconds, least_send_seconds
from planner.bounds.violations import BoundExceededWarning, is_exceeded
from planner.flow import flow_of
from planner.masks import members_of
from planner.model import InfeasiblePlanError, Objective, Roles, Workload
from planner.performance import Member, Performance
from planner.planning import plan_outcome
from planner.replicas import Fog
from tests.planner import fogs

SLOW_LINKS = Workload(prompt_tokens=256, answer_tokens=32, context_tokens=512, min_tps=0.1)
FREE = Objective(rival_load=None)


def all_splits(fog: Fog, group: int) -> Iterator[Performance]:
    num_layers = fog.model.num_layers
    members = members_of(group)
    for order in permutations(members):
        for cuts in combinations(range(1, num_layers), len(members) - 1):
            edges = [0, *cuts, num_layers]
            found = fog.performance(order, [b - a for a, b in pairwise(edges)])
            if fog.can_serve(found):
                yield found


def most_of_two_replicas(fog: Fog) -> float:
    """Return the most requests per second of two groups with separate roles, any splits."""
    everyone = (1 << fog.num_devices) - 1
    rates: dict[Role, dict[int, float]] = {Role.PREFILL: {}, Role.DECODE: {}}
    for group in range(1, everyone):
        for found in all_splits(fog, group) if fog.options(group) else ():
            # Beside one that is never the slower.
            free = fogs.performance(1e9, 1e9)
            for role, other in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
                flow = flow_of([Member(role, found), Member(other, free)], fog.workload)
                limit = found.send_seconds if role is Role.PREFILL else found.receive_seconds
                rate = min(flow.rate, 1 / limit)
                rates[role][group] = max(rates[role].get(group, 0.0), rate)
    return max(
        (
            min(prompts, answers)
            for one, prompts in rates[Role.PREFILL].items()
            for other, answers in rates[Role.DECODE].items()
            if not one & other
        ),
        default=0.0,
    )


def test_what_a_plan_says_of_itself_holds_for_every_split() -> None:
    num_certified = num_below = 0
    for seed in range(30):
        devices, model = fogs.random_fog(seed, 3, 4, 0.5, 1.0)
        try:
            found = plan_outcome(devices, model, SLOW_LINKS, FREE)
        except InfeasiblePlanError:
            continue
        rate = 1 / found.score.objective_seconds
        text = found.plan.optimality
        gap = 0.0
        if says := re.search(r"at most ([0-9.]+) % below what any split could", text):
            gap = float(says[1]) / 100
        else:
            assert text.startswith("certified optimal: the best of ") or "no split exceeds" in text
        if not found.score.is_mixed:
            most = most_of_two_replicas(Fog(devices, model, SLOW_LINKS, FREE))
            assert rate >= most * (1 - gap) * (1 - 1e-8), seed
            num_certified += not gap
            num_below += most > rate * (1 + 1e-6)
    assert num_certified > 5
    assert num_below > 0


def test_without_kv_transfer_the_fastest_splits_are_certified() -> None:
    for seed in range(4, 8):
        devices, model = fogs.random_fog(seed, 4, 5, 0.4, 0.8)
        found = planner.exact(devices, model, SLOW_LINKS, replace(FREE, counts_kv=False))
        assert found.optimality.startswith("certified optimal")


def test_no_split_does_more_than_the_most_of_a_group_and_its_links_no_less() -> None:
    num_groups = num_tight = 0
    for seed in range(12):
        devices, model = fogs.random_fog(seed, 3, 5, 0.3, 1.0)
        fog = Fog(devices, model, SLOW_LINKS, Objective())
        for group in range(1, 8):
            most, members = fog.most(group), members_of(group)
            found = list(all_splits(fog, group))
            assert (most is None) == (not found)
            if most is None:
                continue
            rounded = 1 + 1e-8
            assert max(p.prefill_rate for p in found) <= most.prefill_rate * rounded
            assert max(p.decode_rate for p in found) <= most.decode_rate * rounded
            assert min(p.ttft_seconds for p in found) * rounded >= most.ttft_seconds
            assert min(p.tpot_seconds for p in found) * rounded >= most.tpot_seconds
            sent = min(p.send_seconds for p in found)
            received = min(p.receive_seconds for p in found)
            assert least_send_seconds(fog, members) <= sent * rounded
            assert least_receive_seconds(fog, members) <= received * rounded
            num_groups += 1
            num_tight += least_send_seconds(fog, members) > 0.99 * sent
    assert num_tight > num_groups / 2


def test_no_order_of_six_devices_with_direct_ways_exceeds_the_bound() -> None:
    num_devices, kinds = 6, ("full", "win", "x")
    rng = random.Random(24)
    model = fogs.model(7, kinds)
    devices = [
        fogs.device(
            f"d{i}",
            0.001,
            2_900_000,
            blocks={kind: fogs.layer_times(0.001) for kind in kinds},
        )
        for i in range(num_devices)
    ]
    devices = [
        replace(
            device,
            blocks={kind: fogs.layer_times(0.001 * rng.uniform(0.2, 8)) for kind in kinds},
            peers={
                other.id: Link(latency_seconds=rng.uniform(0, 0.002), bytes_per_second=1e9)
                for other in devices
                if other.id != device.id
            },
        )
        for device in devices
    ]
    workload = Workload(prompt_tokens=1, answer_tokens=256, context_tokens=300, min_tps=0.01)
    objective = Objective(counts_kv=False, rival_load=None, max_slots=1, roles=Roles.MIXED)
    fog = Fog(devices, model, workload, objective)
    most = max(1 / fog.both_seconds(found) for found in all_splits(fog, (1 << num_devices) - 1))

    plan = planner.exact(devices, model, workload, objective)

    rate = plan.predicted.requests_per_second
    assert rate is not None
    assert rate < most, "the heuristic misses the best order"
    assert most <= planner.bound(devices, model, workload, objective)
    assert "orders of more than five devices by heuristic" in plan.optimality
    says = re.search(r"at most ([0-9.]+) % below", plan.optimality)
    assert says is not None
    assert rate >= most * (1 - float(says[1]) / 100)


def test_a_plan_over_a_bound_is_an_error_in_tests_and_said_to_be_wrong() -> None:
    assert not is_exceeded(1.0, 1.0)
    with pytest.warns(BoundExceededWarning, match="exceeds the bound of 1"):
        assert is_exceeded(1.01, 1.0)

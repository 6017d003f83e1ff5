"""What owners allow holds in every plan, and costs no more than it must."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations, product

import pytest

from broker.plan import LayerRange, Plan, Role
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec, Objective, Roles, Workload
from planner.owner import FREE, PHASES, ROLES, Owner, roles_of
from planner.performance import Member
from planner.planning import bound, exact, plan, plan_outcome, reassess
from planner.replicas import Fog
from planner.roles import WORST, Score, score
from planner.splits.partition import best_split
from planner.splits.split import Pace, SplitProblem
from tests.planner import fogs
from tests.planner.splits.test_partition import every_split, random_problem

WORKLOAD = Workload(prompt_tokens=64, answer_tokens=64, context_tokens=256)
PLAIN = Objective(counts_kv=False, rival_load=None)


def owners(rng: random.Random, num_layers: int) -> Owner:
    """A device with limits, or without."""
    kind = rng.randrange(6)
    start = rng.randrange(num_layers)
    return (
        FREE,
        Owner(phases=frozenset({Role.PREFILL})),
        Owner(phases=frozenset({Role.DECODE})),
        Owner(holds_text=False),
        Owner(layers=LayerRange(start, rng.randint(start + 1, num_layers))),
        Owner(frozenset({rng.choice(sorted(PHASES))}), holds_text=False),
    )[kind]


def owned_fog(seed: int, num_devices: int, num_layers: int) -> tuple[list[DeviceSpec], ModelSpec]:
    rng = random.Random(seed)
    devices, model = fogs.random_fog(seed, num_devices, num_layers, low=0.4, high=1.2)
    return [replace(device, owner=owners(rng, num_layers)) for device in devices], model


# --- splits -------------------------------------------------------------------------------


@pytest.mark.parametrize("equal", [True, False])
def test_the_best_allowed_split_equals_brute_force(equal: bool) -> None:
    rng = random.Random(7)
    found_any = 0
    for _ in range(150):
        problem = random_problem(rng, equal)
        devices, num_layers = range(len(problem.memory_bytes)), len(problem.layer_bytes)
        start = rng.randrange(num_layers)
        pin = LayerRange(start, rng.randint(start + 1, num_layers))
        limited = replace(
            problem,
            endless=[d for d in devices if rng.random() < 0.3],
            pinned={d: pin for d in devices if rng.random() < 0.2},
        )
        pace = Pace(rng.randint(1, 3), rng.choice((0.0, 1.0)), rng.choice((0.0, 0.5)))
        found, expected = best_split(limited, pace), brute_force(limited, pace)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            found_any += 1
            assert found.seconds == pytest.approx(expected)
    assert found_any > 30


def brute_force(problem: SplitProblem, pace: Pace) -> float | None:
    """Return the least value over all orders and cuts that the limits allow."""
    num_layers, best = len(problem.layer_bytes), None
    for order, counts in every_split(len(problem.memory_bytes), num_layers):
        stages, start = [], 0
        for device, count in zip(order, counts, strict=True):
            end = start + count
            owner = Owner(
                holds_text=device not in problem.endless, layers=problem.pinned.get(device)
            )
            is_first, is_last = start == 0, end == num_layers
            room = problem.memory_bytes[device] + problem.shared_bytes * (is_first and is_last)
            room -= problem.first_bytes * is_first + problem.last_bytes * is_last
            if sum(problem.layer_bytes[start:end]) > room or not owner.allows(
                start, end, num_layers
            ):
                break
            seconds = sum(problem.layer_seconds[device][start:end])
            seconds += problem.first_seconds[device] * is_first
            stages.append(seconds + problem.last_seconds[device] * is_last)
            start = end
        else:
            value = pace.seconds(max(stages), sum(stages))
            best = value if best is None else min(best, value)
    return best


# --- plans --------------------------------------------------------------------------------


def every_grouping(devices: Sequence[int]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every set of disjoint groups; devices in none of them are idle."""
    if not devices:
        yield []
        return
    first, *rest = devices
    yield from every_grouping(rest)
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            left = [device for device in rest if device not in others]
            yield from ([(first, *others), *more] for more in every_grouping(left))


def best_of_all(devices: list[DeviceSpec], model: ModelSpec) -> Score:
    """Return the best score over groupings, orders, cuts and roles that owners allow."""
    fog = Fog(devices, model, WORKLOAD, PLAIN)
    members: dict[tuple[int, ...], list[Member]] = {}
    for size in range(1, len(devices) + 1):
        for group in combinations(range(len(devices)), size):
            roles = roles_of(fog.costs[device].owner for device in group)
            members[group] = [
                Member(role, split)
                for order in permutations(group)
                for cuts in combinations(range(1, model.num_layers), size - 1)
                if fog.can_serve(split := fog.performance(order, _counts(cuts, model.num_layers)))
                for role in roles
            ]
            members[group] = _undominated(members[group])
    best = WORST
    for groups in every_grouping(range(len(devices))):
        for chosen in product(*(members[group] for group in groups)):
            if len(chosen) > 1 and any(member.role is Role.BOTH for member in chosen):
                continue
            if chosen and (found := score(chosen, WORKLOAD, Roles.SEPARATE, fog.terms)) < best:
                best = found
    return best


def _counts(cuts: Sequence[int], num_layers: int) -> list[int]:
    edges = [0, *cuts, num_layers]
    return [end - start for start, end in pairwise(edges)]


def _undominated(members: list[Member]) -> list[Member]:
    """Keep the fastest split of each role, which is all that the plain objective asks for."""
    rate = {
        Role.PREFILL: lambda m: (m.performance.prefill_rate,),
        Role.DECODE: lambda m: (m.performance.keeps_min_tps, m.performance.decode_rate),
        Role.BOTH: lambda m: (
            m.performance.keeps_min_tps,
            -1 / m.performance.prefill_rate - 1 / m.performance.decode_rate,
        ),
    }
    return [
        max(found, key=rate[role])
        for role in ROLES
        if (found := [m for m in members if m.role is role])
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_allowed_plan_equals_brute_force(seed: int) -> None:
    devices, model = owned_fog(seed, 4, 5)
    expected = best_of_all(devices, model)
    if expected == WORST:
        with pytest.raises(InfeasiblePlanError):
            plan(devices, model, WORKLOAD, PLAIN)
        return
    found = plan_outcome(devices, model, WORKLOAD, PLAIN)
    assert found.score.request_seconds == pytest.approx(expected.request_seconds, rel=1e-6)
    assert violations(found.plan, devices, model) == []
    certified = exact(devices, model, WORKLOAD, PLAIN)
    assert certified.predicted == found.plan.predicted
    rate = found.plan.predicted.requests_per_second or 0.0
    assert bound(devices, model, WORKLOAD, PLAIN) >= rate * (1 - 1e-9)


def violations(found: Plan, devices: Sequence[DeviceSpec], model: ModelSpec) -> list[str]:
    known = {device.id: device.owner for device in devices}
    broken = []
    for replica in found.replicas:
        allowed = roles_of(known[stage.device] for stage in replica.stages)
        if replica.role not in allowed:
            broken.append(f"{replica.id} is {replica.role}")
        broken += [
            f"{stage.device} holds {stage.layers}"
            for stage in replica.stages
            if not known[stage.device].allows(
                stage.layers.start, stage.layers.end, model.num_layers
            )
        ]
    return broken


def test_plans_of_many_devices_keep_to_what_owners_allow() -> None:
    devices, model = owned_fog(0, 8, 6)
    quick = Objective(population=8, generations=2, exact_devices=5)
    assert violations(plan(devices, model, WORKLOAD, quick), devices, model) == []


def test_limits_are_named_in_the_reasons() -> None:
    devices, model = fogs.random_fog(3, 4, low=0.9, high=1.3)
    owner = Owner(frozenset({Role.DECODE}), holds_text=False)
    devices = [replace(devices[0], owner=owner), *devices[1:]]
    reasons = plan(devices, model, WORKLOAD).reasons
    assert reasons["d0"].endswith("; its owner allows decode only, no embedding or head")
    assert "owner" not in reasons["d1"]


def test_a_fog_that_could_serve_if_owners_allowed_it_says_so() -> None:
    devices, model = fogs.random_fog(3, 3, low=1.1, high=1.3)
    private = [replace(device, owner=Owner(holds_text=False)) for device in devices]
    with pytest.raises(InfeasiblePlanError, match=r"owners allow now .d0: no embedding or head"):
        plan(private, model, WORKLOAD)


def test_a_running_replica_that_an_owner_does_not_allow_any_more_does_not_go_on() -> None:
    devices, model = fogs.random_fog(3, 4, low=0.5, high=0.8)
    running = plan(devices, model, WORKLOAD)
    held = running.replicas[0].stages[0]
    private = [
        replace(device, owner=Owner(holds_text=False)) if device.id == held.device else device
        for device in devices
    ]
    kept = reassess(running, private, model, WORKLOAD)
    ids = set() if kept is None else {replica.id for replica in kept.plan.replicas}
    assert running.replicas[0].id not in ids


@pytest.mark.parametrize(
    ("phases", "roles"),
    [
        ([PHASES, PHASES], ROLES),
        ([PHASES, {Role.PREFILL}], (Role.PREFILL,)),
        ([{Role.DECODE}, {Role.PREFILL}], ()),
    ],
)
def test_a_replica_has_the_roles_that_all_its_owners_allow(
    phases: list[set[Role]], roles: tuple[Role, ...]
) -> None:
    assert roles_of(Owner(frozenset(each)) for each in phases) == roles


def test_an_owner_who_allows_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="allows prefill, decode or both"):
        Owner(phases=frozenset())

"""The genetic algorithm and its parts: chromosomes, beginnings, prices, local search, roles."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest

import planner
from broker.plan import Role
from planner.baselines.random_fogs import random_fog
from planner.groupings.beginnings import beginnings
from planner.groupings.chromosomes import (
    Individual,
    edges,
    mutate,
    no_crossover,
    of_groups,
    random_individual,
    whole_groups,
)
from planner.groupings.climb import climb_by_score, climb_by_worth
from planner.groupings.evolve import CROSSOVERS, SELECTIONS, Operators, evolve
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import Groupings, GroupTable
from planner.groupings.worth import Rates, Worth, balanced_price
from planner.masks import members_of
from planner.model import Objective, Roles, Workload
from planner.paper.replicas import PaperFog
from planner.performance import Member, Options
from planner.replicas import Fog
from planner.roles import choose_roles, score
from planner.thresholds import promising_roles
from tests.planner import fogs

WORKLOAD = Workload(prompt_tokens=128, answer_tokens=96, context_tokens=512)
SMALL = Objective(population=16, generations=4, elites=4)


def table(kind: str, seed: int, num_devices: int = 7) -> GroupTable:
    fog = random_fog(seed, num_devices)
    if kind == "ours":
        return Fog(fog.devices, fog.model, fog.workload, Objective())
    return PaperFog(fog.devices, fog.model, fog.workload)


@pytest.mark.parametrize("kind", ["paper", "ours"])
def test_the_genetic_algorithm_equals_exact_enumeration_on_random_fogs(kind: str) -> None:
    for seed in range(3):
        fog = table(kind, seed)
        exact = enumerate_groupings(table(kind, seed), Roles.SEPARATE).score
        found = evolve(fog, Roles.SEPARATE, seed).score
        assert found >= exact
        assert found.num_slow == exact.num_slow
        assert found.objective_seconds == pytest.approx(exact.objective_seconds, rel=1e-9)


@pytest.mark.parametrize("selection", list(SELECTIONS))
def test_every_selection_plans_and_equal_seeds_give_equal_results(selection: str) -> None:
    fog = fogs.random_fog(3, 9, 4)
    operators = Operators(selection=selection)
    found = [
        evolve(Fog(*fog, WORKLOAD, SMALL), Roles.SEPARATE, 5, operators=operators) for _ in range(2)
    ]
    assert found[0].members
    assert found[0] == found[1]


@pytest.mark.parametrize("crossover", list(CROSSOVERS))
def test_every_crossover_keeps_all_devices_and_the_sizes_of_a_parent(crossover: str) -> None:
    random.seed(1)
    rng = random.Random(1)
    for _ in range(50):
        one, other = random_individual(9, rng), random_individual(9, rng)
        child = CROSSOVERS[crossover](one, other, rng)
        assert sorted(child.order) == list(range(9))
        assert child.sizes in (one.sizes, other.sizes)
        child.order.reverse()
        assert sorted(one.order) == sorted(other.order) == list(range(9))


def test_whole_groups_come_from_one_parent_or_the_other() -> None:
    rng = random.Random(2)
    one = Individual(list(range(8)), [0, 2, 2, 2, 2])
    child = whole_groups(one, Individual(list(range(8)), [0, 2, 2, 2, 2]), rng)
    assert child.key() == one.key()
    kept = [
        len(set(one.groups()) & set(whole_groups(one, random_individual(8, rng), rng).groups()))
        for _ in range(40)
    ]
    assert max(kept) >= 2


def test_edges_are_those_of_the_parents_wherever_some_are_left() -> None:
    rng = random.Random(4)
    ring = Individual(list(range(6)), [0, 6])
    child = edges(ring, Individual([5, 4, 3, 2, 1, 0], [0, 6]), rng)
    steps = {(b - a) % 6 for a, b in zip(child.order, child.order[1:], strict=False)}
    assert steps <= {1, 5}


def test_no_crossover_copies_a_parent() -> None:
    rng = random.Random(0)
    one, other = random_individual(5, rng), random_individual(5, rng)
    child = no_crossover(one, other, rng)
    assert (child.order, child.sizes) in [(p.order, p.sizes) for p in (one, other)]


def test_a_mutation_keeps_all_devices_and_all_sizes_positive_but_that_of_the_idle() -> None:
    rng = random.Random(3)
    individual = random_individual(7, rng)
    seen = set()
    for _ in range(300):
        mutate(individual, rng)
        assert sorted(individual.order) == list(range(7))
        assert sum(individual.sizes) == 7
        assert individual.sizes[0] >= 0
        assert all(size > 0 for size in individual.sizes[1:])
        seen.add(individual.key())
    assert len(seen) > 50


def test_groups_survive_their_chromosomes() -> None:
    individual = of_groups([0b0110, 0b1000], 5)
    assert individual.key() == (0b0110, 0b1000)
    assert individual.slices()[0] == [0, 4]


def test_a_search_begins_at_the_running_plan_and_is_never_worse() -> None:
    devices, model = fogs.random_fog(7, 8)
    objective = Objective(population=4, generations=1, elites=1, local_search=False)
    fog = Fog(devices, model, WORKLOAD, objective)
    best = enumerate_groupings(fog, Roles.SEPARATE)
    start = [[list(member.performance.devices) for member in best.members]]
    alone = evolve(fog, Roles.SEPARATE, 1, operators=Operators(constructs=False))
    assert alone.score > best.score
    assert evolve(fog, Roles.SEPARATE, 1, start=start).score == best.score


def test_the_local_search_is_a_setting_and_only_improves() -> None:
    better = 0
    for seed in range(4):
        devices, model = fogs.random_fog(seed, 10)
        scores = [
            evolve(
                Fog(
                    devices,
                    model,
                    WORKLOAD,
                    Objective(population=8, generations=2, elites=2, local_search=search),
                ),
                Roles.SEPARATE,
                seed,
            ).score
            for search in (False, True)
        ]
        assert scores[1] <= scores[0]
        better += scores[1] < scores[0]
    assert better


@pytest.mark.parametrize("num_devices", [6, 10])
def test_the_order_of_the_devices_never_changes_a_plan(num_devices: int) -> None:
    # Twins, so that many plans are equally good.
    model = fogs.model()
    whole = model.stage_bytes(0, 8, 1024)
    devices = [
        fogs.device(f"d{i}", 0.001 * (1 + i % 2), int(whole * 0.55)) for i in range(num_devices)
    ]
    rng = random.Random(1)
    plans = [
        planner.plan(rng.sample(devices, num_devices), model, WORKLOAD, SMALL, seed=3)
        for _ in range(3)
    ]
    assert plans[0] == plans[1] == plans[2]


def test_beginnings_are_disjoint_groups_of_which_some_hold_the_model() -> None:
    fog = table("ours", 1, 12)
    worth = Worth(fog)
    found = beginnings(fog, worth, random.Random(0))
    assert len(found) >= 3
    for groups in found:
        devices = [device for group in groups for device in members_of(group)]
        assert len(devices) == len(set(devices))
        assert any(worth.holds_model(group) for group in groups)


# --- prices and local search ----------------------------------------------------------------


def test_the_sum_at_the_balanced_price_is_the_least_and_no_choice_of_roles_exceeds_it() -> None:
    rng = random.Random(6)
    for _ in range(50):
        rates = [Rates(rng.uniform(0.1, 3), rng.uniform(0.1, 3)) for _ in range(5)]
        price = balanced_price(rates)
        earned = sum(found.at(price) for found in rates)
        grid = [sum(found.at(x / 200) for found in rates) for x in range(201)]
        assert earned <= min(grid) + 1e-9
        best = max(
            min(
                sum(r.prompts for r, prefills in zip(rates, chosen, strict=True) if prefills),
                sum(r.answers for r, prefills in zip(rates, chosen, strict=True) if not prefills),
            )
            for chosen in product((False, True), repeat=5)
        )
        assert best <= earned + 1e-9


def test_climbing_never_lowers_what_groups_are_worth() -> None:
    for seed in range(2):
        fog = table("ours", seed, 9)
        worth = Worth(fog)
        start = [0b000000111, 0b000111000, 0b111000000]
        groups = climb_by_worth(worth, start, 9, random.Random(seed), 10_000)
        devices = [device for group in groups for device in members_of(group)]
        assert len(devices) == len(set(devices))
        earned = []
        for found in (start, groups):
            rates = [worth.rates(group) for group in found]
            earned.append(sum(rate.at(balanced_price(rates)) for rate in rates))
        assert earned[1] >= earned[0]


def test_climbing_ends_where_no_move_and_no_exchange_of_devices_helps() -> None:
    devices, model = fogs.random_fog(5, 5)
    fog = Fog(devices, model, WORKLOAD, Objective())
    groupings = Groupings(fog, Roles.SEPARATE)
    found = climb_by_score([0b00011, 0b01100], 5, groupings, 10_000)
    groups = [sum(1 << d for d in member.performance.devices) for member in found.members]
    for device in range(5):
        for target in range(len(groups) + 1):
            moved = [group & ~(1 << device) for group in [*groups, 0]]
            moved[target] |= 1 << device
            assert groupings.solution(group for group in moved if group).score >= found.score


# --- roles ----------------------------------------------------------------------------------


def random_options(rng: random.Random, number: int) -> list[Options]:
    def performance() -> Options:
        found = [
            fogs.performance(
                rng.uniform(10, 500),
                rng.uniform(10, 500),
                keeps_min_tps=rng.random() < 0.8,
                ttft_seconds=rng.uniform(0.1, 2),
            )
            for _ in range(3)
        ]
        return Options(found[0], found[1], found[2])

    return [performance() for _ in range(number)]


@pytest.mark.parametrize("roles", list(Roles))
def test_few_replicas_get_the_best_of_all_assignments(roles: Roles) -> None:
    rng = random.Random(8)
    for _ in range(60):
        groups = random_options(rng, rng.randint(2, 5))
        allowed = list(Role) if roles is Roles.MIXED else [Role.PREFILL, Role.DECODE]
        brute = min(
            score(members_with(groups, chosen), WORKLOAD, roles)
            for chosen in product(allowed, repeat=len(groups))
        )
        assert choose_roles(groups, WORKLOAD, roles)[0] == brute


@pytest.mark.parametrize(("roles", "number"), [(Roles.SEPARATE, 10), (Roles.MIXED, 7)])
def test_roles_by_sums_are_within_two_hundredths_of_the_best_assignment(
    roles: Roles, number: int
) -> None:
    rng = random.Random(9)
    ratios = []
    for _ in range(15):
        found = [
            fogs.performance(rng.uniform(10, 500), rng.uniform(10, 500)) for _ in range(number)
        ]
        groups = [Options(one, one, one) for one in found]
        exact, _ = choose_roles(groups, WORKLOAD, roles)
        close, _ = choose_roles(groups, WORKLOAD, roles, max_enumerated=1)
        ratios.append(close.request_seconds / exact.request_seconds)
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) <= 1.02
    assert sum(ratio <= 1 + 1e-9 for ratio in ratios) >= 10


def test_promising_roles_name_every_replica_and_include_both_where_allowed() -> None:
    rng = random.Random(1)
    prompts, answers = ([rng.uniform(1, 9) for _ in range(50)] for _ in range(2))
    found = list(promising_roles(prompts, answers, True))
    assert all(len(chosen) == 50 for chosen in found)
    assert any(Role.BOTH in chosen for chosen in found)
    assert not any(Role.BOTH in chosen for chosen in promising_roles(prompts, answers, False))


def members_with(groups: Sequence[Options], chosen: Sequence[Role]) -> list[Member]:
    return [
        Member(role, getattr(group, role.value)) for role, group in zip(chosen, groups, strict=True)
    ]


def test_groups_that_only_leave_a_plan_behind_the_best_device_are_left_idle() -> None:
    model = fogs.model()
    whole = model.stage_bytes(0, 8, 1024)
    devices = [
        *(fogs.device(f"fast{i}", 0.001, 2 * whole) for i in range(4)),
        *(fogs.device(f"slow{i}", 0.02, 2 * whole) for i in range(6)),
    ]
    fog = Fog(devices, model, WORKLOAD, SMALL)
    groupings = Groupings(fog, Roles.SEPARATE)
    assert groupings.rival is not None
    most = 5 / groupings.rival.times.request
    worth = Worth(fog, groupings.rival, most)
    alone = [1 << device for device in range(10)]
    assert worth.good_groups(alone) == alone[:4]
    assert worth.rates(alone[9]).prompts < worth.rates(alone[0]).prompts / 1000
    found = evolve(fog, Roles.SEPARATE, 0, groupings)
    assert found.score.is_behind == 0
    assert len(found.members) >= 2

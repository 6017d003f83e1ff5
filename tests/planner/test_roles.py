"""Roles: the paper's measure, shared time, exact choice and the threshold for many."""

from __future__ import annotations

import random
from itertools import product

import pytest

from broker.control import Link
from broker.plan import Role
from planner import roles as roles_module
from planner.flow import Limit, balanced_parts, balanced_rate, request_seconds
from planner.model import Objective, Roles, Workload
from planner.performance import Member, Options
from planner.replicas import Fog
from planner.roles import WORST, choose_roles, score
from tests.planner import fogs

WORK = Workload(prompt_tokens=100, answer_tokens=50)


def options(prefill: float, decode: float) -> Options:
    found = fogs.performance(prefill, decode)
    return Options(found, found, found)


def test_the_slower_phase_counts() -> None:
    members = [
        Member(Role.PREFILL, fogs.performance(200, 1)),
        Member(Role.PREFILL, fogs.performance(300, 1)),
        Member(Role.DECODE, fogs.performance(1, 100)),
    ]
    # 100 / 500 against 50 / 100.
    assert request_seconds(members, WORK) == pytest.approx(0.5)


def test_a_lone_replica_takes_the_time_of_both_phases() -> None:
    assert request_seconds([Member(Role.BOTH, fogs.performance(200, 100))], WORK) == pytest.approx(
        1.0
    )


def test_shared_time_goes_where_it_is_needed() -> None:
    members = [
        Member(Role.PREFILL, fogs.performance(100, 1)),
        Member(Role.BOTH, fogs.performance(100, 100)),
    ]
    # One prompt a second from the first; the second gives x of its time: 1 + x = 2 - 2x.
    assert request_seconds(members, WORK) == pytest.approx(3 / 4)


def test_the_shares_are_the_best_of_a_fine_grid() -> None:
    rng = random.Random(5)
    for _ in range(20):
        shared = [(rng.uniform(0.1, 3), rng.uniform(0.1, 3)) for _ in range(2)]
        prompts, answers = rng.uniform(0, 2), rng.uniform(0, 2)
        grid = [i / 100 for i in range(101)]
        best = max(
            min(
                prompts + x * shared[0][0] + y * shared[1][0],
                answers + (1 - x) * shared[0][1] + (1 - y) * shared[1][1],
            )
            for x in grid
            for y in grid
        )
        found = balanced_rate(prompts, answers, shared)
        assert best <= found + 1e-9
        assert found <= best * 1.05 + 0.02


def test_links_bound_what_a_replica_hands_over() -> None:
    shared = [(3.0, 1.0), (1.0, 3.0)]
    # Without limits one prefills and the other decodes.
    assert balanced_parts(0, 0, shared) == pytest.approx([1.0, 0.0])
    # Alone, each serves 3/4 of a request per second and gives prefill 1/4 or 3/4 of its time.
    shut = [Limit(0.0, 0.0)] * 2
    assert balanced_parts(0, 0, shared, shut) == pytest.approx([0.25, 0.75])
    # The first may send one prompt a second beyond its own answers: 3x - (1 - x) = 1.
    narrow = [Limit(1.0, 0.0), Limit(0.0, 1.0)]
    assert balanced_parts(0, 0, shared, narrow) == pytest.approx([0.5, 0.5])


def test_equal_replicas_share_equally_so_that_nothing_has_to_move() -> None:
    parts = balanced_parts(0, 0, [(2.0, 6.0), (1.0, 3.0), (4.0, 12.0)])
    assert parts == pytest.approx([0.75] * 3)
    with_others = balanced_parts(1.0, 0, [(1.0, 3.0), (1.0, 3.0), (9.0, 1.0)])
    assert with_others[0] == pytest.approx(with_others[1])


def test_two_replicas_never_do_the_same_when_roles_are_separate() -> None:
    found, members = choose_roles([options(100, 50), options(50, 100)], WORK, Roles.SEPARATE)
    assert [member.role for member in members] == [Role.PREFILL, Role.DECODE]
    assert found.is_mixed == 0


def test_a_phase_without_a_replica_is_worst() -> None:
    assert score([Member(Role.PREFILL, fogs.performance(1, 1))], WORK, Roles.SEPARATE) == WORST
    assert choose_roles([], WORK, Roles.SEPARATE) == (WORST, ())


def test_streams_under_the_floor_count_before_throughput() -> None:
    slow = fogs.performance(100, 1000, keeps_min_tps=False)
    members = [Member(Role.PREFILL, fogs.performance(100, 1)), Member(Role.DECODE, slow)]
    worse = score(members, WORK, Roles.SEPARATE)
    members[1] = Member(Role.DECODE, fogs.performance(1, 10))
    assert score(members, WORK, Roles.SEPARATE) < worse


@pytest.mark.parametrize("roles", [Roles.SEPARATE, Roles.MIXED])
def test_the_threshold_with_repair_is_close_to_enumeration(
    roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    ratios = []
    for _ in range(40):
        groups = [options(rng.uniform(10, 500), rng.uniform(10, 500)) for _ in range(6)]
        exact, _ = choose_roles(groups, WORK, roles)
        with monkeypatch.context() as patch:
            patch.setattr(roles_module, "MAX_ENUMERATED", 1)
            close, members = choose_roles(groups, WORK, roles)
        assert len(members) == 6
        ratios.append(close.request_seconds / exact.request_seconds)
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) >= 25
    assert max(ratios) < 1.2


def test_roles_of_many_unequal_replicas_are_those_of_enumeration() -> None:
    rng = random.Random(4)
    for _ in range(30):
        num_groups = rng.randint(8, 10)
        groups = []
        for _ in range(num_groups):
            # Sizes from 1 to 300: what is right for the large ones leaves an uneven rest.
            prefill = 10 ** rng.uniform(0, 2.5)
            decode = fogs.performance(
                prefill, prefill * rng.uniform(0.1, 0.5), keeps_min_tps=rng.random() < 0.8
            )
            groups.append(Options(fogs.performance(prefill, 1), decode, decode))
        exact, _ = choose_roles(groups, WORK, Roles.SEPARATE)
        best = WORST
        for chosen in product((Role.PREFILL, Role.DECODE), repeat=num_groups):
            members = [
                Member(role, getattr(group, role.value))
                for role, group in zip(chosen, groups, strict=True)
            ]
            best = min(best, score(members, WORK, Roles.SEPARATE))
        quick, _ = choose_roles(groups, WORK, Roles.SEPARATE, max_enumerated=1)
        assert exact == best
        assert quick.num_slow == best.num_slow
        assert quick.request_seconds <= best.request_seconds * 1.001


def test_links_do_not_decide_roles_where_kv_caches_do_not_count() -> None:
    # Thirteen replicas, the faster ones with the slower links: too many for a last repair.
    devices = [
        fogs.device(
            f"d{i:02}",
            0.001 * (1 + i),
            10**9,
            link=Link(latency_seconds=0.001, bytes_per_second=1e4 * 2**i),
        )
        for i in range(13)
    ]
    fog = Fog(devices, fogs.model(4), WORK, Objective(counts_kv=False))
    groups = [found for d in range(13) if (found := fog.options(1 << d))]
    enumerated, _ = choose_roles(groups, fog.workload, Roles.SEPARATE, None, fog.terms, 2**13)
    quick, _ = choose_roles(groups, fog.workload, Roles.SEPARATE, None, fog.terms, 1)
    assert quick.request_seconds <= enumerated.request_seconds * 1.001


def test_many_replicas_get_roles_quickly() -> None:
    rng = random.Random(2)
    groups = [options(rng.uniform(10, 500), rng.uniform(10, 500)) for _ in range(60)]
    found, members = choose_roles(groups, WORK, Roles.SEPARATE)
    assert len(members) == 60
    assert found.request_seconds < 1

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from broker.plan import Role
from planner.baselines import (
    FogSite,
    PaperSite,
    System,
    baselines,
    candidates,
    live_systems,
)
from planner.baselines.fogs import TRAFFIC, fog_site
from planner.baselines.report import (
    best_baseline,
    conditions,
    is_never_worse,
    reduction,
    table,
)
from planner.baselines.searches import (
    all_both,
    best_pipeline,
    by_latency_under_load,
    by_slower_phase,
    by_total_latency,
    random_solution,
    search,
    tagged_by_speed,
)
from planner.baselines.systems import (
    ADAPTED,
    COLOCATED,
    DEVICE,
    E2LLM,
    HEXGEN,
    NOT_BASELINES,
    PIPELINE,
    POOLS,
    POOLS_MIXED,
    POOLS_SPEED,
)
from planner.candidates import (
    ROUTINGS,
    Candidate,
    Served,
    Trials,
    choose,
    mean,
    neighbours,
    serve,
    total_delay,
    unhurried_delay,
)
from planner.groupings.oracle import enumerate_groupings
from planner.model import Objective, Roles, Workload
from planner.paper.plans import best_plan
from planner.paper.published import PaperWorkload, Policy
from planner.performance import Member
from planner.planning import plan
from planner.roles import score
from planner.simulation import SimRequest
from planner.simulation.routing import (
    LEAST_ADDED,
    LEAST_FINISH,
    PAPER_JSQ,
    SPLITWISE,
)
from planner.simulation.workloads import constant, fixed_period, lognormal, requests
from tests.planner.fogs import device, model

PAPER = PaperWorkload.EXTENDED


@cache
def paper_site() -> PaperSite:
    return PaperSite(PAPER)


@cache
def paper_systems() -> dict[str, System]:
    return {system.name: system for system in baselines(paper_site())}


@cache
def small_site(num_devices: int = 5, exact_devices: int = 8) -> FogSite:
    rng = random.Random(7)
    spec = model(num_layers=6)
    devices = [
        device(f"d{n}", rng.uniform(0.001, 0.006), spec.weight_bytes * 2)
        for n in range(num_devices)
    ]
    work = Workload(prompt_tokens=100, answer_tokens=60, context_tokens=400, min_tps=7.0)
    return FogSite(devices, spec, work, Objective(rival_load=None, exact_devices=exact_devices))


def drawn(seed: int, period: float = 0.5, number: int = 25) -> tuple[SimRequest, ...]:
    rng = np.random.default_rng(seed)
    return requests(fixed_period(number, period), lognormal(576, 0.2), lognormal(588, 0.7), rng)


def small_requests(seed: int, period: float = 0.3) -> tuple[SimRequest, ...]:
    rng = np.random.default_rng(seed)
    return requests(fixed_period(20, period), constant(100), lognormal(60, 0.5), rng)


def groups_of(system: System) -> set[frozenset[int]]:
    return {frozenset(m.performance.devices) for m in system.candidate.members}


# --- baselines ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "policy"), [(E2LLM, Policy.E2LLM), (ADAPTED, Policy.ADAPTED_SPLITWISE)]
)
def test_the_papers_two_systems_are_its_exact_optima(name: str, policy: Policy) -> None:
    members = paper_systems()[name].candidate.members
    work = paper_site().table.workload
    found = score(members, work, Roles.SEPARATE).request_seconds
    assert found == pytest.approx(best_plan(PAPER, policy).objective_seconds, rel=1e-8)


def test_splitwise_pools_are_e2llms_groups_with_the_fastest_as_prompt_pool() -> None:
    pools, plan = paper_systems()[POOLS], paper_systems()[E2LLM]
    assert groups_of(pools) == groups_of(plan)
    table = paper_site().table
    speeds: dict[Role, list[float]] = {Role.PREFILL: [], Role.DECODE: []}
    for member in pools.candidate.members:
        options = table.options(sum(1 << d for d in member.performance.devices))
        assert options is not None
        speeds[member.role].append(options.prefill.prefill_rate)
    assert min(speeds[Role.PREFILL]) >= max(speeds[Role.DECODE])


def test_the_pools_differ_in_routing_only() -> None:
    systems = paper_systems()
    first = systems[POOLS].candidate
    others = [systems[name].candidate for name in (POOLS_SPEED, POOLS_MIXED)]
    assert all(other.members == first.members for other in others)
    assert len({first.routing, *(other.routing for other in others)}) == 3


def test_the_one_pipeline_serves_at_least_what_any_other_group_would() -> None:
    site = small_site()
    found = best_pipeline(site.table)
    assert found is not None
    for size in range(1, 6):
        for devices in combinations(range(5), size):
            options = site.table.options(sum(1 << d for d in devices))
            if options is not None:
                value, _ = all_both([options], site.table.workload)
                assert found.score <= value


def test_a_pipeline_climbed_to_is_as_good_as_the_enumerated_one() -> None:
    exact = best_pipeline(small_site().table)
    climbed = best_pipeline(small_site(exact_devices=2).table)
    assert exact is not None
    assert climbed is not None
    assert climbed.score == exact.score


def test_colocated_replicas_all_do_both_and_serve_most() -> None:
    members = paper_systems()[COLOCATED].candidate.members
    table = paper_site().table
    assert {member.role for member in members} == {Role.BOTH}
    mixed = enumerate_groupings(table, Roles.MIXED)
    ours = score(members, table.workload, Roles.MIXED)
    # Any roles serve at least what one role for all does.
    assert mixed.score.request_seconds <= ours.request_seconds
    single = paper_systems()[DEVICE].candidate.members
    assert ours.request_seconds < score(single, table.workload, Roles.MIXED).request_seconds


def test_the_best_device_is_one_device() -> None:
    (member,) = paper_systems()[DEVICE].candidate.members
    assert len(member.performance.devices) == 1
    assert member.role is Role.BOTH


def test_hexgen_leaves_no_device_idle_that_fits_and_has_the_least_latency_of_these() -> None:
    site = small_site()
    found = search(site.table, by_total_latency(5))[0]
    assert sum(len(m.performance.devices) for m in found.members) == 5
    others = search(site.table, by_total_latency(5), num_best=50)
    full = [o for o in others if o.score.num_slow == 0]
    assert found.score.objective_seconds == min(o.score.objective_seconds for o in full)


def test_low_latency_is_sought_only_among_what_serves_the_load() -> None:
    table = small_site().table
    most = search(table, all_both)[0].score.request_seconds
    light = search(table, by_latency_under_load(most * 100))[0]
    tight = search(table, by_latency_under_load(most * 1.26))[0]
    assert light.score.objective_seconds <= tight.score.objective_seconds
    assert all_both_seconds(tight.members) <= most * 1.26 / 1.25 * (1 + 1e-9)


def all_both_seconds(members: tuple[Member, ...]) -> float:
    return score(members, small_site().table.workload, Roles.MIXED).request_seconds


def test_random_plans_can_serve_and_are_repeatable() -> None:
    table = small_site().table
    plans = [random_solution(table, seed) for seed in range(5)]
    assert all(plan is not None and plan.members for plan in plans)
    assert plans == [random_solution(table, seed) for seed in range(5)]
    assert len({plan.score for plan in plans if plan is not None}) > 1


def test_a_fog_without_a_whole_model_on_any_device_has_no_best_device() -> None:
    spec = model(num_layers=6)
    devices = [device(f"d{n}", 0.001 * (n + 1), int(spec.weight_bytes * 0.8)) for n in range(4)]
    site = FogSite(devices, spec, Workload(prompt_tokens=50, answer_tokens=20, context_tokens=100))
    names = [system.name for system in baselines(site)]
    assert DEVICE not in names
    assert {E2LLM, COLOCATED, PIPELINE, HEXGEN} <= set(names)


def test_e2llm_has_the_best_groups_and_roles_of_a_small_fog() -> None:
    table = small_site(num_devices=7).table
    exact = enumerate_groupings(table, Roles.SEPARATE).score.request_seconds
    found = search(table, by_slower_phase(table, Roles.SEPARATE))[0].score.request_seconds
    assert found == exact


def test_tagging_needs_two_groups_and_else_leaves_one_that_does_both() -> None:
    table = small_site().table
    options = table.options(0b11111)
    assert options is not None
    _, members = tagged_by_speed([options], table.workload)
    assert [member.role for member in members] == [Role.BOTH]


def test_whoever_is_tagged_by_speed_leaves_no_faster_prefill_to_decode() -> None:
    table = small_site().table
    options = [option for d in range(5) if (option := table.options(1 << d)) is not None]
    _, members = tagged_by_speed(options, table.workload)
    rates = {role: [m.performance.prefill_rate for m in members if m.role is role] for role in Role}
    assert min(rates[Role.PREFILL]) >= max(rates[Role.DECODE])


def test_of_equally_fast_groups_the_slower_in_decode_is_tagged_for_prompts() -> None:
    table = small_site().table
    option = table.options(1)
    assert option is not None
    slower = replace(option, decode=replace(option.decode, decode_rate=1.0))
    for groups in ([option, slower], [slower, option]):
        value, members = tagged_by_speed(groups, table.workload)
        assert members[groups.index(slower)].role is Role.PREFILL
        assert value < tagged_by_speed([option], table.workload)[0]


@pytest.mark.parametrize("traffic", list(TRAFFIC))
def test_every_system_of_a_catalogue_fog_serves_every_request(traffic: str) -> None:
    site = fog_site(
        "one-gpu-box",
        traffic,
        Objective(rival_load=None, exact_devices=2, population=8, generations=2),
    )
    lengths = TRAFFIC[traffic]
    rng = np.random.default_rng(3)
    sample = requests(fixed_period(8, 5.0), lengths.prompt.lengths(), lengths.answer.lengths(), rng)
    for system in baselines(site):
        assert serve(site, system.candidate, sample).served_share == 1, system.name


# --- the choice -----------------------------------------------------------------------------


def test_what_is_chosen_is_no_worse_on_the_samples_than_any_baseline() -> None:
    site, systems = small_site(), baselines(small_site())
    samples = [small_requests(seed) for seed in range(3)]
    chosen = choose(Trials(site, samples), candidates(site, systems, [0.3]))
    ours = total_delay(mean([serve(site, chosen, s) for s in samples]))
    for system in systems:
        theirs = total_delay(mean([serve(site, system.candidate, s) for s in samples]))
        assert ours <= theirs * (1 + 1e-9), system.name


def test_a_choice_is_repeatable() -> None:
    site, systems = small_site(), baselines(small_site())
    samples = [small_requests(seed) for seed in range(2)]
    first = choose(Trials(site, samples), candidates(site, systems, [0.3]))
    again = choose(Trials(site, samples), candidates(site, baselines(site), [0.3]))
    assert first == again


def test_the_papers_plan_waits_less_when_requests_are_bound_late() -> None:
    site, plan = paper_site(), paper_systems()[E2LLM].candidate
    late = Candidate("late", plan.members, LEAST_FINISH)
    samples = [drawn(seed, number=60) for seed in range(4)]
    there = mean([serve(site, plan, s) for s in samples])
    ours = mean([serve(site, late, s) for s in samples])
    assert ours.waiting_seconds < there.waiting_seconds


def test_a_choice_without_climbing_is_one_of_those_given() -> None:
    site, members = paper_site(), paper_systems()[E2LLM].candidate.members
    given = [Candidate(r.bind, members, r) for r in (PAPER_JSQ, SPLITWISE)]
    assert choose(Trials(site, [drawn(0)]), given, max_climbs=0) in given


def test_climbing_finds_a_better_routing() -> None:
    site, members = paper_site(), paper_systems()[E2LLM].candidate.members
    blind = Candidate("blind", members, SPLITWISE)
    found = choose(Trials(site, [drawn(0), drawn(1)]), [blind])
    assert found.routing in set(ROUTINGS.values())


def test_climbing_moves_devices_out_of_a_poor_grouping() -> None:
    site = small_site()
    poor = random_solution(site.table, 1)
    assert poor is not None
    trials = Trials(site, [small_requests(0), small_requests(1)])
    given = [Candidate("poor", poor.members, LEAST_FINISH)]
    kept = choose(trials, given, routings=[LEAST_FINISH], max_regrouped=0)
    moved = choose(trials, given, routings=[LEAST_FINISH])
    assert total_delay(trials.served(moved)) < 0.9 * total_delay(trials.served(kept))


def test_neighbours_change_one_role_or_the_routing_and_can_serve() -> None:
    site, plan = paper_site(), paper_systems()[E2LLM].candidate
    roles = [member.role for member in plan.members]
    found = list(neighbours(site, plan, max_regrouped=0))
    assert found
    for near in found:
        changed = sum(a is not m.role for a, m in zip(roles, near.members, strict=True))
        assert changed + (near.routing != plan.routing) == 1
        held = {member.role for member in near.members}
        assert Role.BOTH in held or held == {Role.PREFILL, Role.DECODE}


def test_a_choice_needs_candidates_and_samples() -> None:
    site = paper_site()
    with pytest.raises(ValueError, match="at least one"):
        choose(Trials(site, [drawn(0)]), [])
    with pytest.raises(ValueError, match="at least one"):
        Trials(site, [])


def test_a_choice_for_one_routing_has_it_and_reuses_the_runs_of_others() -> None:
    site, systems = small_site(), baselines(small_site())
    trials = Trials(site, [small_requests(0), small_requests(1)])
    offered = candidates(site, systems, [0.3])
    anyhow = choose(trials, offered)
    late = choose(trials, offered, routings=[LEAST_FINISH])
    assert late.routing == LEAST_FINISH
    assert total_delay(trials.served(anyhow)) <= total_delay(trials.served(late))


def test_the_live_planners_plan_is_a_candidate_with_the_gateways_routing() -> None:
    site = small_site()
    live, mixed = (system.candidate for system in live_systems(site))
    expected = plan(site.devices, site.model, site.table.workload, site.table.objective)
    replicas = site.replicas(live.members)
    assert [(r.role, r.slots) for r in replicas] == [(r.role, r.slots) for r in expected.replicas]
    assert {live.routing, mixed.routing} == {LEAST_ADDED}
    assert score(mixed.members, site.table.workload, Roles.MIXED) <= score(
        live.members, site.table.workload, Roles.MIXED
    )


def test_slow_answers_weigh_as_a_longer_delay() -> None:
    quick, slow = Served(5.0, 10.0, 5.0, 9.0, 0.0, 1.0), Served(4.0, 9.0, 4.0, 9.0, 0.5, 1.0)
    assert total_delay(slow) < total_delay(quick)
    assert unhurried_delay(quick) < unhurried_delay(slow)


def test_candidates_that_refuse_requests_are_never_chosen() -> None:
    site = small_site()
    plan = baselines(site)[0].candidate
    with pytest.raises(ValueError, match="no candidate serves"):
        choose(Trials(site, [[SimRequest(0.0, 10**6, 10)]]), [plan])


def test_an_unserved_request_outweighs_any_delay() -> None:
    served = Served(1e6, 1e6, 1e6, 1e6, 1.0, 1.0)
    refused = Served(0.0, 0.0, 0.0, 0.0, 0.0, 0.99)
    assert total_delay(refused) > total_delay(served)


# --- the report -----------------------------------------------------------------------------


def row(name: str, waiting: float, end_to_end: float) -> dict[str, object]:
    return {
        "system": name,
        "waiting_seconds": waiting,
        "end_to_end_seconds": end_to_end,
        "ttft_seconds": waiting,
        "waiting_p90_seconds": waiting,
        "slow_share": 0.1,
        "plan": ["both a (3)"],
        "routing": "jsq",
        "request_seconds": 2.0,
    }


def entry(ours: float) -> dict[str, object]:
    family = [row(name, ours, ours + 5) for name in NOT_BASELINES]
    return {
        "fog": "f",
        "workload": "w",
        "load": "light",
        "period_seconds": 1.0,
        "least_request_seconds": 1.5,
        "systems": [*family, row(E2LLM, 9, 40), row(PIPELINE, 10, 15)],
    }


def test_the_best_baseline_has_the_least_delay_and_reductions_are_shares() -> None:
    assert best_baseline(entry(5))["system"] == PIPELINE
    assert best_baseline(entry(5), "waiting")["system"] == E2LLM
    assert reduction(entry(4.5), E2LLM) == pytest.approx(0.5)


@pytest.mark.parametrize(("ours", "expected"), [(9.0, True), (10.24, True), (10.26, False)])
def test_worse_than_the_best_is_two_per_cent_or_a_fifth_of_a_second(
    ours: float, expected: bool
) -> None:
    assert is_never_worse(entry(ours)) is expected


def test_the_stricter_views_compare_with_whoever_is_best_at_one_measure() -> None:
    assert is_never_worse(entry(9.2), "waiting")
    assert not is_never_worse(entry(9.5), "waiting")
    assert is_never_worse(entry(9.5), "end to end")


def test_a_cell_that_breaks_a_condition_says_no() -> None:
    line = next(x for x in conditions([entry(12.0)]).splitlines() if x.startswith("| f, w, light"))
    assert "| one pipeline (EdgeShard) | 25.00 / 29.00 |" in line
    assert line.endswith("| no | no |")


def test_what_no_routing_gets_below_stands_once_for_each_workload() -> None:
    lines = conditions([entry(1.0), {**entry(2.0), "load": "heavy"}]).splitlines()
    (line,) = [line for line in lines if line.startswith("| f | w | ")]
    assert line == "| f | w | 2.000 | 2.000 | 1.500 |"


def test_waiting_never_stands_alone_in_the_table() -> None:
    header = next(line for line in table([entry(1.0)]).splitlines() if line.startswith("| system"))
    assert header.index("waiting") < header.index("end to end") < header.index("under 7")

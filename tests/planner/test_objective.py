"""The objective's terms: KV transfer, goodput, energy; and that everything agrees on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest

import planner
from broker.control import Link
from broker.grouping import best_grouping
from broker.plan import Plan, Role
from planner.flow import Flow, flow_of
from planner.groupings.evolve import evolve
from planner.groupings.oracle import enumerate_groupings
from planner.model import Bucket, DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.performance import Energy, Member, Performance
from planner.planning import plan_outcome
from planner.replicas import Fog
from planner.roles import score
from planner.terms import Terms
from tests.planner import fogs

WORKLOAD = Workload(prompt_tokens=128, answer_tokens=96, context_tokens=512)
PAPER = Objective(counts_kv=False, rival_load=None)


def whole_devices(rates: Sequence[float], **changes: object) -> tuple[list[DeviceSpec], ModelSpec]:
    """Equal devices that hold the model each, with these link rates."""
    model = fogs.model()
    room = model.stage_bytes(0, 8, 16 * 1024)
    devices = [
        fogs.device(f"d{i}", 0.001, room, link=Link(latency_seconds=0.01, bytes_per_second=rate))
        for i, rate in enumerate(rates)
    ]
    return [replace(device, **changes) for device in devices], model  # type: ignore[arg-type]


def random_objective(rng: random.Random) -> Objective:
    return Objective(
        roles=rng.choice(list(Roles)),
        counts_kv=rng.random() < 0.8,
        ttft_seconds=rng.choice((None, rng.uniform(0.1, 2))),
        tpot_seconds=rng.choice((None, rng.uniform(0.01, 0.1))),
        energy_weight=rng.choice((0.0, rng.uniform(0, 2))),
    )


def powered(devices: Sequence[DeviceSpec], rng: random.Random) -> list[DeviceSpec]:
    found = []
    for device in devices:
        idle = rng.uniform(1, 20)
        found.append(replace(device, idle_watts=idle, busy_watts=idle * rng.uniform(1, 5)))
    return found


THREE_LENGTHS = (Bucket(0.5, 64, 64), Bucket(0.3, 128, 96), Bucket(0.2, 256, 160))


def prefilling(plan: Plan) -> set[str]:
    """Devices of the replicas that prefill, alone or beside decode."""
    return {s.device for r in plan.replicas if r.role is not Role.DECODE for s in r.stages}


# --- the paper's objective is one setting ---------------------------------------------------


def test_without_kv_targets_and_energy_the_score_is_the_paper_s() -> None:
    for seed in range(5):
        devices, model = fogs.random_fog(seed, 5)
        fog = Fog(devices, model, WORKLOAD, PAPER)
        found = enumerate_groupings(fog, Roles.SEPARATE)
        assert found.score == score(found.members, fog.workload, Roles.SEPARATE)
        assert found.score.objective_seconds == found.score.request_seconds


# --- KV transfer ----------------------------------------------------------------------------


def test_the_kv_cache_of_every_prompt_leaves_over_one_link_and_arrives_over_another() -> None:
    devices, model = whole_devices([2e5, 1e9])
    plan = planner.plan(devices, model, WORKLOAD)
    kv = 128 * 8 * 1024
    # 1 MB per prompt at 200 kB per second: five seconds, much longer than either phase.
    assert {r.role for r in plan.replicas} == {Role.BOTH}
    roles = {Role.PREFILL, Role.DECODE}
    forced = planner.plan(devices, model, WORKLOAD, PAPER)
    assert {r.role for r in forced.replicas} == roles
    fog = Fog(devices, model, WORKLOAD, Objective())
    alone = [fog.performance([d], [8]) for d in (0, 1)]
    members = [Member(Role.PREFILL, alone[0]), Member(Role.DECODE, alone[1])]
    assert flow_of(members, WORKLOAD, fog.terms).rate == pytest.approx(2e5 / kv)
    assert flow_of(members, WORKLOAD).rate > 10 * 2e5 / kv


def test_links_carry_hidden_states_beside_kv() -> None:
    model = fogs.model()
    room = model.stage_bytes(0, 8, 1024) * 6 // 10
    link = Link(latency_seconds=0.001, bytes_per_second=1e6)
    devices = [fogs.device(name, 0.001, room, link=link) for name in ("a", "b")]
    found = Fog(devices, model, WORKLOAD, Objective()).performance([0, 1], [3, 5])
    # Out of a: KV of three layers and hidden states; out of b: KV of five layers alone.
    assert found.send_seconds == pytest.approx(128 * max(3 * 1024 + 768, 5 * 1024) / 1e6)
    # Into b: KV of five layers, and the hidden states of every token of the answer.
    assert found.receive_seconds == pytest.approx((128 * 5 * 1024 + 96 * 768) / 1e6)


def test_a_lone_request_waits_for_what_is_left_of_the_transfer() -> None:
    devices, model = whole_devices([1e7, 1e7])
    with_kv = Fog(devices, model, WORKLOAD, Objective())
    alone = [with_kv.performance([d], [8]) for d in (0, 1)]
    members = [Member(Role.PREFILL, alone[0]), Member(Role.DECODE, alone[1])]
    free = score(members, WORKLOAD, Roles.SEPARATE)
    counted = score(members, WORKLOAD, Roles.SEPARATE, with_kv.terms)
    # One chunk, so nothing overlaps: both ways' latency and 1 MB at 10 MB per second.
    transfer = 0.02 + 128 * 8 * 1024 / 1e7
    assert counted.latency_seconds == pytest.approx(free.latency_seconds + transfer)
    half = Terms(with_kv.costs, model, replace(WORKLOAD, chunk_tokens=64), Objective())
    overlapped = half.kv_times(members, flow_of(members, WORKLOAD))
    assert overlapped.seconds == pytest.approx(transfer)
    assert overlapped.exposed_seconds == pytest.approx(transfer / 2)


def test_a_transfer_in_whole_numbers_is_priced_by_the_bytes_that_it_sends() -> None:
    devices, model = whole_devices([1e7, 1e7])
    packed = replace(model, kv_transfer="int8", packed_kv_bytes=(256,) * 8)
    predicted = [planner.plan(devices, m, WORKLOAD).predicted for m in (model, packed)]
    assert [p.kv_seconds for p in predicted] == [
        pytest.approx(0.02 + 128 * 8 * num_bytes / 1e7) for num_bytes in (1024, 256)
    ]


def test_what_is_decoded_where_it_was_prefilled_moves_nothing() -> None:
    devices, model = whole_devices([1e6, 1e6])
    fog = Fog(devices, model, WORKLOAD, Objective())
    both = [Member(Role.BOTH, fog.performance([d], [8])) for d in (0, 1)]
    flow = flow_of(both, WORKLOAD, fog.terms)
    assert fog.terms.kv_times(both, flow).seconds == 0.0
    # One prefills three quarters of all and decodes half, so a quarter moves.
    uneven = fog.terms.kv_times(both, Flow((3.0, 1.0), (2.0, 2.0)))
    assert uneven.seconds == pytest.approx((0.02 + 128 * 8 * 1024 / 1e6) / 4)


def test_a_direct_way_takes_the_kv_cache_off_the_slow_links() -> None:
    devices, model = whole_devices([2e5, 2e5])
    fast = Link(latency_seconds=0.001, bytes_per_second=1e9)
    near = [replace(devices[0], peers={"d1": fast}), devices[1]]
    rates = []
    for fog in (Fog(d, model, WORKLOAD, Objective()) for d in (devices, near)):
        members = [
            Member(Role.PREFILL, fog.performance([0], [8])),
            Member(Role.DECODE, fog.performance([1], [8])),
        ]
        rates.append(flow_of(members, WORKLOAD, fog.terms).rate)
    assert rates[0] == pytest.approx(2e5 / (128 * 8 * 1024))
    assert rates[1] == pytest.approx(flow_of(members, WORKLOAD).rate)


def test_a_plan_says_how_long_kv_caches_move() -> None:
    devices, model = whole_devices([1e8, 1e8])
    predicted = planner.plan(devices, model, WORKLOAD).predicted
    assert predicted.kv_seconds == pytest.approx(0.02 + 128 * 8 * 1024 / 1e8)
    assert predicted.kv_exposed_seconds == predicted.kv_seconds
    assert planner.plan(devices, model, WORKLOAD, PAPER).predicted.kv_seconds is None
    assert planner.plan(devices[:1], model, WORKLOAD).predicted.kv_seconds is None


# --- targets --------------------------------------------------------------------------------


def good_rate(members: Sequence[Member], objective: Objective, workload: Workload) -> float:
    """Goodput of replicas of a device that prefills in proportion to length."""
    device = fogs.device("d", 0.001, 1)
    fog = Fog([device], fogs.model(), workload, objective)
    return fog.terms.good_rate(members, flow_of(members, workload))


# 100 tokens on average; the long prompts are one tenth of the requests and half of the work.
SHORT_AND_LONG = Workload(
    answer_tokens=50, context_tokens=1024, buckets=(Bucket(0.9, 64, 50), Bucket(0.1, 576, 50))
)


def test_a_bucket_counts_up_to_what_the_replicas_that_are_in_time_for_it_can_do() -> None:
    work = replace(SHORT_AND_LONG, chunk_tokens=1024)
    mean = work.prompt_tokens
    fast = fogs.performance(mean * 1.0, 1, in_time=(True, True))
    slow = fogs.performance(mean * 1.0, 1, in_time=(True, False))
    decode = fogs.performance(1, work.answer_tokens * 2.0)
    roles = (Role.PREFILL, Role.PREFILL, Role.DECODE)
    target = Objective(ttft_seconds=1.0)

    def goodput(*prefills: Performance) -> float:
        members = [Member(r, p) for r, p in zip(roles, (*prefills, decode), strict=True)]
        return good_rate(members, target, work)

    # Two requests per second in all, of which long ones are half of the work.
    assert goodput(fast, fast) == pytest.approx(2.0)
    assert goodput(fast, slow) == pytest.approx(2.0)
    assert goodput(slow, slow) == pytest.approx(1.8)
    late = replace(slow, in_time=(False, False))
    # The fast one does all of the long ones first, and nothing else.
    assert goodput(fast, late) == pytest.approx(0.2)
    assert goodput(late, late) == 0.0


def test_answers_count_where_slots_keep_the_target() -> None:
    good, bad = fogs.performance(1, 50.0), fogs.performance(1, 150.0, keeps_tpot=False)
    members = [
        Member(Role.PREFILL, fogs.performance(1000, 1)),
        Member(Role.DECODE, good),
        Member(Role.DECODE, bad),
    ]
    work = Workload(prompt_tokens=100, answer_tokens=50)
    assert good_rate(members, Objective(), work) == pytest.approx(4.0)
    assert good_rate(members, Objective(tpot_seconds=0.1), work) == pytest.approx(1.0)


def test_a_tpot_target_limits_the_slots() -> None:
    devices, model = fogs.random_fog(1, 6)
    target = 0.06
    plan = planner.plan(devices, model, WORKLOAD, Objective(tpot_seconds=target))
    free = planner.plan(devices, model, WORKLOAD)
    for replica in plan.replicas:
        assert best_grouping(replica.stages, replica.slots).step_seconds <= target * (1 + 1e-9)
    assert sum(r.slots for r in plan.replicas) < sum(r.slots for r in free.replicas)
    good = plan.predicted.good_requests_per_second
    assert good is not None
    assert good == pytest.approx(plan.predicted.requests_per_second)
    assert good < (free.predicted.requests_per_second or 0.0)
    assert free.predicted.good_requests_per_second is None


def test_a_target_that_nobody_keeps_leaves_the_plan_as_it_is_and_says_so() -> None:
    devices, model = fogs.random_fog(1, 6)
    free = planner.plan(devices, model, WORKLOAD)
    for target in (Objective(tpot_seconds=1e-6), Objective(ttft_seconds=1e-6)):
        plan = planner.plan(devices, model, WORKLOAD, target)
        assert plan.replicas == free.replicas
        assert plan.predicted.good_requests_per_second == 0.0


def test_a_ttft_target_moves_prefill_to_replicas_that_are_in_time() -> None:
    devices, model = whole_devices([1e9, 1e9, 1e9])
    slow = [fogs.device(d.id, 0.003, d.memory_bytes, link=d.link) for d in devices[1:]]
    fog = [devices[0], *slow]
    work = replace(WORKLOAD, prompt_tokens=64, answer_tokens=256)
    free = planner.plan(fog, model, work, Objective(roles=Roles.MIXED))
    ttft = {s.device: r.predicted.ttft_seconds or 0.0 for r in free.replicas for s in r.stages}
    late = min(ttft["d1"], ttft["d2"])
    assert ttft["d0"] < late
    assert prefilling(free) != {"d0"}

    target = Objective(roles=Roles.MIXED, ttft_seconds=late * 0.9)
    plan = planner.plan(fog, model, work, target)

    assert prefilling(plan) == {"d0"}
    good, rate = plan.predicted.good_requests_per_second, plan.predicted.requests_per_second
    assert good == pytest.approx(rate)
    assert 0 < (good or 0) <= (free.predicted.requests_per_second or 0) * (1 + 1e-9)


# --- energy ---------------------------------------------------------------------------------


def test_joules_are_idle_power_over_the_rate_and_work_on_top() -> None:
    devices, model = whole_devices([1e9], idle_watts=10.0, busy_watts=30.0)
    fog = Fog(devices, model, WORKLOAD, Objective())
    found = fog.performance([0], [8])
    prompt = 128 / found.prefill_rate
    step = found.slots / found.decode_rate
    assert found.energy == pytest.approx(Energy(10.0, 20 * prompt, 20 * step / found.slots))
    member = Member(Role.BOTH, found)
    joules = fog.terms.joules_per_token([member], flow_of([member], WORKLOAD))
    # Alone and always busy: 30 watts all the time.
    seconds = prompt + 96 / found.decode_rate
    assert joules == pytest.approx(30 * seconds / 96)
    predicted = planner.plan(devices, model, WORKLOAD).predicted
    assert predicted.joules_per_token == pytest.approx(joules)


def test_energy_leaves_out_a_device_that_draws_more_than_it_gives() -> None:
    devices, model = whole_devices([1e9, 1e9, 1e9], idle_watts=2.0, busy_watts=5.0)
    hungry = replace(devices[2], idle_watts=400.0, busy_watts=900.0)
    fog = [*devices[:2], hungry]
    free = planner.plan(fog, model, WORKLOAD)
    frugal = planner.plan(fog, model, WORKLOAD, Objective(energy_weight=1.0))
    assert [idle.device for idle in free.idle] == []
    assert [idle.device for idle in frugal.idle] == ["d2"]
    assert "energy counted" in frugal.reasons["d2"]
    assert (frugal.predicted.joules_per_token or inf) < (free.predicted.joules_per_token or 0)


def test_energy_that_counts_needs_the_power_of_every_device() -> None:
    devices, model = whole_devices([1e9, 1e9], idle_watts=2.0, busy_watts=5.0)
    dark = replace(devices[1], idle_watts=None, busy_watts=None)
    with pytest.raises(ValueError, match="power is not known of: d1"):
        planner.plan([devices[0], dark], model, WORKLOAD, Objective(energy_weight=0.1))
    assert planner.plan([devices[0], dark], model, WORKLOAD).predicted.joules_per_token is None


@pytest.mark.parametrize(("idle", "busy"), [(1.0, None), (None, 1.0), (5.0, 2.0), (-1.0, 2.0)])
def test_half_or_senseless_power_is_refused(idle: float | None, busy: float | None) -> None:
    with pytest.raises(ValueError, match="power needs"):
        fogs.device("a", 1, 1, idle_watts=idle, busy_watts=busy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft_seconds", 0.0),
        ("tpot_seconds", inf),
        ("horizon_seconds", -1.0),
        ("energy_weight", float("nan")),
    ],
)
def test_senseless_objectives_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(Objective(), **{name: value})  # type: ignore[arg-type]


# --- all terms together ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_genetic_algorithm_finds_the_optimum_of_every_objective(seed: int) -> None:
    rng = random.Random(seed)
    devices, model = fogs.random_fog(seed, 6, 8, 0.25, 1.1)
    devices = powered(devices, rng)
    work = Workload(context_tokens=512, buckets=THREE_LENGTHS if seed % 2 else ())
    objective = random_objective(rng)
    running = planner.plan(devices[:-1], model, work) if seed % 3 == 0 else None
    fog = Fog(devices, model, work, objective, running)
    exact = enumerate_groupings(fog, objective.roles).score
    found = evolve(fog, objective.roles, seed).score
    assert found == exact


@pytest.mark.parametrize("seed", range(12))
def test_goodput_is_at_most_the_rate_which_is_at_most_the_bound(seed: int) -> None:
    rng = random.Random(100 + seed)
    devices, model = fogs.random_fog(seed, 5, 8, 0.25, 1.1)
    devices = powered(devices, rng)
    work = Workload(context_tokens=512, buckets=THREE_LENGTHS if seed % 2 else ())
    objective = replace(random_objective(rng), ttft_seconds=rng.uniform(0.1, 2))
    outcome = plan_outcome(devices, model, work, objective)
    predicted = outcome.plan.predicted
    good, rate = predicted.good_requests_per_second, predicted.requests_per_second
    assert good is not None
    assert rate is not None
    assert 0 <= good <= rate * (1 + 1e-9)
    assert rate <= planner.bound(devices, model, work, objective) * (1 + 1e-9)
    assert outcome.score.objective_seconds >= outcome.score.request_seconds


def test_equal_devices_get_their_places_in_the_order_of_their_ids() -> None:
    devices, model = whole_devices([1e8] * 5, idle_watts=2.0, busy_watts=5.0)
    objective = Objective(ttft_seconds=0.5, tpot_seconds=0.05, energy_weight=0.1)
    plans = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(devices, len(devices))
        plans.append(planner.plan(shuffled, model, WORKLOAD, objective, seed=seed))
    assert plans[0] == plans[1] == plans[2]
    prefills = {s.device for r in plans[0].replicas if r.role is Role.PREFILL for s in r.stages}
    assert prefills == {device.id for device in devices[: len(prefills)]}

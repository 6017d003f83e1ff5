"""No plan exceeds the bound, and the bound is close to the best of plans."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest

import planner
from broker.control import DecodeTime, LayerTimes, Link, PrefillTime
from planner.baselines.random_fogs import random_fog
from planner.bounds.cheapest_groups import CheapestGroups
from planner.bounds.device_bound import device_bound
from planner.bounds.group_bound import group_bound, market
from planner.bounds.offers import Among
from planner.bounds.packing import packed_groupings
from planner.bounds.stage_tables import FIRST, LAST, MIDDLE
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import Groupings
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.replicas import Fog
from tests.planner import fogs

ENUMERATED = Objective(roles=Roles.MIXED, max_slots=4)
PRICED = replace(ENUMERATED, exact_devices=1)
"""As if the fog were too large for evaluating every group."""

SEPARATE_AND_FAST = Among(is_separate=True, keeps_min_tps=True)


def any_fog(seed: int) -> tuple[list[DeviceSpec], ModelSpec, Workload]:
    """Return a small fog with some of all that makes planning hard."""
    rng = random.Random(seed)
    num_devices, num_layers = rng.randint(2, 4), rng.randint(1, 5)
    kinds = rng.choice((("full",), ("full",), ("full", "sliding"), ("a", "b", "c")))
    model = fogs.model(
        num_layers,
        kinds,
        shared_bytes=rng.choice((0, 500_000)),
        ffn_bytes=(700_000,) * num_layers if rng.random() < 0.4 else (),
        block_bytes=tuple(rng.choice((1_000_000, 1_400_000)) for _ in range(num_layers))
        if rng.random() < 0.3
        else (1_000_000,) * num_layers,
    )
    workload = Workload(
        prompt_tokens=rng.choice((32, 128, 400)),
        answer_tokens=rng.choice((16, 96)),
        context_tokens=512,
        min_tps=rng.choice((1.0, 15.0, 60.0)),
    )
    whole = model.stage_bytes(0, num_layers, 512)
    tight = rng.choice((0.4, 0.8, 3.0))
    devices: list[DeviceSpec] = []
    for index in range(num_devices):
        if devices and rng.random() < 0.3:
            devices.append(replace(devices[-1], id=f"d{index}"))
            continue
        times = {kind: rng.uniform(0.5, 6.0) * 1e-3 for kind in kinds}
        device = fogs.device(
            f"d{index}",
            rng.uniform(0.5, 6.0) * 1e-3,
            int(whole * rng.uniform(0.5, 1.3) * tight),
            blocks={kind: fogs.layer_times(s, rng.uniform(0.02, 0.9)) for kind, s in times.items()},
            link=any_link(rng),
        )
        if model.ffn_bytes and rng.random() < 0.7:
            slower = {kind: fogs.layer_times(3 * s, 0.9) for kind, s in times.items()}
            device = replace(device, host_memory_bytes=whole // 2, offloaded=slower)
        devices.append(device)
    if rng.random() < 0.3:
        devices[0] = replace(devices[0], peers={devices[1].id: any_link(rng)})
    return devices, model, workload


def any_link(rng: random.Random) -> Link:
    return Link(
        latency_seconds=rng.choice((0.0002, 0.003, 0.02)),
        bytes_per_second=rng.choice((2e6, 1e7, 1e8)),
    )


def test_no_plan_of_any_kind_of_fog_exceeds_the_bounds() -> None:
    num_compared = 0
    for seed in range(300):
        devices, model, workload = any_fog(seed)
        fog = Fog(devices, model, workload, ENUMERATED)
        best = enumerate_groupings(fog, Roles.MIXED)
        exact = group_bound(fog)
        priced = group_bound(Fog(devices, model, workload, PRICED), rounds=3)
        rate = 1 / best.score.request_seconds if best.members else 0.0
        assert rate <= exact * (1 + 1e-9), seed
        # Every group of the exact program is one of those that are priced.
        assert exact <= priced * (1 + 1e-5), seed
        assert priced <= device_bound(fog), seed
        num_compared += len(devices) > 1 and rate > 0
    assert num_compared > 200


def slower(link: Link) -> Link:
    return Link(latency_seconds=link.latency_seconds, bytes_per_second=link.bytes_per_second / 20)


def test_bounds_among_fewer_plans_hold_for_these_and_are_no_higher() -> None:
    separate = Objective(roles=Roles.SEPARATE, max_slots=4, rival_load=None)
    num_compared = num_lower = num_near = 0
    # Where a device serves more alone than separate roles do, it is the plan: not counted.
    for seed in range(1000, 1300):
        devices, model, workload = any_fog(seed)
        devices = [replace(device, link=slower(device.link)) for device in devices]
        fog = Fog(devices, model, workload, separate)
        loose, tight = group_bound(fog), group_bound(fog, among=SEPARATE_AND_FAST)
        large = Fog(devices, model, workload, replace(separate, exact_devices=1))
        priced = group_bound(large, rounds=3, among=SEPARATE_AND_FAST)
        assert tight <= loose * (1 + 1e-9), seed
        best = enumerate_groupings(fog, Roles.SEPARATE)
        if best.members and not best.score.is_mixed and not best.score.num_slow:
            rate = 1 / best.score.request_seconds
            # The one holds for each group's best compute and best links on their own, the other
            # for both in one stage, and for groups that nobody evaluated.
            assert rate <= min(tight, priced) * (1 + 1e-9), seed
            num_compared += 1
            num_lower += tight < 0.9 * loose
            num_near += rate > 0.9 * tight
    assert num_compared > 40
    assert num_lower > 20
    assert num_near > 10


def test_links_bound_what_plans_with_separate_roles_serve() -> None:
    # Each device alone computes 100 prompts or answers per second, and sends or takes the KV
    # cache of one, 8 tokens of 1000 bytes, in a second. Half of four devices prefill.
    model = fogs.model(1, block_bytes=(1000,), kv_bytes=(1000,))
    quick = constant(1e-4)
    devices = [
        fogs.device(
            name,
            1.0,
            10**9,
            blocks={"full": quick},
            embedding=constant(0.0),
            head=constant(0.0),
            link=Link(latency_seconds=0.0, bytes_per_second=8000.0),
        )
        for name in "abcd"
    ]
    workload = Workload(prompt_tokens=8, answer_tokens=4, context_tokens=16, min_tps=0.01)
    for exact_devices in (8, 1):
        fog = Fog(devices, model, workload, Objective(exact_devices=exact_devices))
        assert group_bound(fog, among=SEPARATE_AND_FAST) == pytest.approx(2.0, rel=0.02)
        assert group_bound(fog) > 100


def test_the_bound_is_the_optimum_where_only_one_group_holds_the_model() -> None:
    # Only both together hold the model, so one replica with both roles is all there is.
    model = fogs.model(8)
    whole = model.stage_bytes(0, 8, 1024)
    devices = [fogs.device(name, 0.002, int(whole * 0.6)) for name in "ab"]
    workload = Workload(prompt_tokens=128, answer_tokens=96, context_tokens=1024)
    fog = Fog(devices, model, workload, Objective(roles=Roles.MIXED))
    mixed = enumerate_groupings(fog, Roles.MIXED)
    assert group_bound(fog) == pytest.approx(1 / mixed.score.request_seconds, rel=1e-5)


def constant(seconds: float) -> LayerTimes:
    return LayerTimes(
        prefill=[PrefillTime(1, seconds)],
        decode=[DecodeTime(batch, 1, seconds) for batch in (1, 2)],
    )


def test_a_bound_by_hand() -> None:
    # Two layers of 1 s in either phase, nothing else takes time. A device alone prefills 1/2
    # prompt per second; its step of 2 slots takes 2 s, so it decodes 1 token, 1/4 answer, per
    # second. A pair has stages of 1 s: twice of each. So d devices serve at most what d times
    # 1/2 * x = 1/4 * (1 - x) says: x = 1/3, 1/6 request per second each.
    model = fogs.model(2, block_bytes=(1000,) * 2, kv_bytes=(1,) * 2)
    nothing = constant(0.0)
    devices = [
        fogs.device(
            name,
            1.0,
            10**9,
            blocks={"full": constant(1.0)},
            embedding=nothing,
            head=nothing,
            link=Link(latency_seconds=0.0, bytes_per_second=1e12),
        )
        for name in ("a", "b", "c")
    ]
    workload = Workload(prompt_tokens=8, answer_tokens=4, context_tokens=16, min_tps=0.01)
    for exact_devices in (8, 1):
        objective = Objective(max_slots=2, exact_devices=exact_devices)
        found = planner.bound(devices, model, workload, objective)
        assert found == pytest.approx(0.5, rel=0.02)


def test_prices_lead_most_of_the_way_from_the_bound_by_devices_to_that_by_all_groups() -> None:
    for seed in range(3):
        devices, model = fogs.random_fog(seed, 7, 10)
        fog, large = (
            Fog(devices, model, Workload(), Objective(exact_devices=limit)) for limit in (7, 6)
        )
        loosest, lowest = device_bound(fog), group_bound(fog)
        assert lowest <= group_bound(large) < lowest + 0.4 * (loosest - lowest)


def test_one_more_question_never_raises_the_bound() -> None:
    devices, model = fogs.random_fog(3, 10, 8)
    rounds = (0, 3, 6, 12)
    fogs_asked = [Fog(devices, model, Workload(), Objective()) for _ in rounds]
    bounds = [group_bound(fog, most) for fog, most in zip(fogs_asked, rounds, strict=True)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == pytest.approx(device_bound(fogs_asked[0]), rel=1e-5)


def test_the_groups_behind_the_bound_make_groupings_to_begin_with() -> None:
    devices, model = fogs.random_fog(3, 10, 8)
    for rival_load in (None, 0.3):
        fog = Fog(devices, model, Workload(), Objective(rival_load=rival_load))
        packings = packed_groupings(fog, market(fog))
        assert packings
        for packed in packings:
            members = [device for group in packed for device in group]
            assert len(packed) > 1
            assert len(members) == len(set(members))
            assert all(fog.options(sum(1 << device for device in group)) for group in packed)


def test_a_packing_is_near_the_bound_and_not_behind_the_best_device() -> None:
    drawn = random_fog(3, 16, 8)
    for rival_load, least in ((None, 0.95), (0.3, 0.85)):
        objective = Objective(rival_load=rival_load)
        fog = Fog(drawn.devices, drawn.model, drawn.workload, objective)
        found = market(fog, among=SEPARATE_AND_FAST)
        groupings = Groupings(fog, Roles.SEPARATE)
        best = min(
            groupings.solution([sum(1 << device for device in group) for group in groups]).score
            for groups in packed_groupings(fog, found)
        )
        assert not best.is_behind
        assert least * found.bound < 1 / best.request_seconds <= found.bound


def test_a_fog_without_devices_or_room_serves_nothing() -> None:
    model = fogs.model(4)
    assert planner.bound([], model, Workload()) == 0.0
    devices = [fogs.device(name, 0.001, 10) for name in ("a", "b")]
    assert planner.bound(devices, model, Workload()) == 0.0


def test_the_cheapest_group_is_that_of_all_groups() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        num_devices, num_units = int(rng.integers(2, 5)), int(rng.integers(2, 7))
        most = rng.integers(0, num_units + 1, (num_devices, 3, 2))
        fixed = rng.uniform(0, 3, (num_devices, 3, 2))
        slopes = rng.uniform(0, 1, (num_devices, 2)) * rng.integers(0, 2)
        counts = [1] * num_devices
        groups = CheapestGroups(counts, most, fixed, slopes, num_units)
        for pace in range(2):
            best, members = _cheapest(
                most[:, :, pace], fixed[:, :, pace], slopes[:, pace], num_units
            )
            assert groups.prices[pace] == pytest.approx(best)
            assert set(groups.members(pace)) == members


def _cheapest(
    most: np.ndarray, fixed: np.ndarray, slopes: np.ndarray, num_units: int
) -> tuple[float, set[int]]:
    """Try every place of every device, and fill those chosen in the order of their slopes."""
    best, members = inf, set[int]()
    for places in product((None, MIDDLE, FIRST, LAST), repeat=len(most)):
        chosen = [(d, p) for d, p in enumerate(places) if p is not None]
        if places.count(FIRST) != 1 or places.count(LAST) != 1:
            continue
        if any(most[d, p] == 0 for d, p in chosen):
            continue
        left, price = num_units, sum(fixed[d, p] for d, p in chosen)
        for device, place in sorted(chosen, key=lambda each: slopes[each[0]]):
            taken = min(left, most[device, place])
            left -= taken
            price += taken * slopes[device]
        if left == 0 and price < best - 1e-12:
            best, members = price, {d for d, _ in chosen}
    return best, members

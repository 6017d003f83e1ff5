"""Devices shared among models, by memory, speed and what is asked; and the planner that does it."""

from __future__ import annotations

import msgspec.structs

from broker.control import DeviceState, GatewayStatus
from broker.identity import identity
from broker.plan import Plan
from planner.live.events import GatewaySeen
from planner.live.sharing import Claim, groups, share
from planner.model import DeviceSpec
from tests.planner import fogs
from tests.planner.live.harness import Bench, active
from tests.planner.live.test_model_use import DEVICES, join, publish

MODEL, OTHER = fogs.model(4), fogs.model(4, revision="r2", name="m2")
WHOLE = MODEL.stage_bytes(0, 4, 256)


def devices(**seconds: float) -> dict[str, DeviceSpec]:
    return {name: fogs.device(name, value, WHOLE * 2) for name, value in seconds.items()}


def claims(known: dict[str, DeviceSpec], *shares: float) -> list[Claim]:
    models = (MODEL, OTHER)
    return [Claim(model, known, part, 256) for model, part in zip(models, shares, strict=True)]


def names(found: list[list[str]]) -> list[str]:
    return ["".join(group) for group in found]


def test_models_that_are_asked_alike_get_groups_of_like_speed() -> None:
    known = devices(a=0.001, b=0.002, c=0.002)
    assert names(share(claims(known, 0.5, 0.5), {})) in (["a", "bc"], ["bc", "a"])


def test_a_model_that_is_asked_more_gets_more() -> None:
    known = devices(a=0.001, b=0.001, c=0.001, d=0.001)
    assert [len(group) for group in share(claims(known, 0.75, 0.25), {})] == [3, 1]


def test_each_model_gets_at_least_the_memory_that_it_needs() -> None:
    small = {
        name: fogs.device(name, seconds, WHOLE // 2 + 600_000)
        for name, seconds in {"a": 0.001, "b": 0.1, "c": 0.1, "d": 0.1}.items()
    }
    assert sorted(len(group) for group in share(claims(small, 0.5, 0.5), {})) == [2, 2]


def test_of_equal_ways_the_one_that_moves_nothing_is_chosen() -> None:
    known = devices(a=0.001, b=0.001)
    assert names(share(claims(known, 0.5, 0.5), {"a": 1, "b": 0})) == ["b", "a"]


def test_many_devices_are_dealt_out_and_none_is_forgotten() -> None:
    known = devices(**{f"d{i:02}": 0.001 * (1 + i % 5) for i in range(20)})
    found = share(claims(known, 0.5, 0.5), {})
    assert sorted([*found[0], *found[1]]) == sorted(known)
    strengths = [c.strength(group) for c, group in zip(claims(known, 0.5, 0.5), found, strict=True)]
    assert min(strengths) > 0.8 * max(strengths)


def served(first: str, second: str, shares: tuple[float, float] = (0.5, 0.5)) -> Plan:
    parts = [
        fogs.plan_of(
            fogs.replica(f"r-{model.name}", [(group[0], 0, 4)]),
            model=model.name,
            revision=model.revision,
            reasons=dict.fromkeys(group, "its place"),
            share=part,
        )
        for model, group, part in zip((MODEL, OTHER), (first, second), shares, strict=True)
    ]
    return msgspec.structs.replace(parts[0], others=parts[1:])


def found(known: dict[str, DeviceSpec], plan: Plan, *shares: float, **options: bool) -> list[str]:
    group = groups(claims(known, *shares), plan, **options)
    return ["".join(sorted(group[identity(model)])) for model in (MODEL, OTHER)]


def test_groups_stay_and_who_joins_goes_where_it_is_needed_most() -> None:
    known = devices(a=0.001, b=0.004, c=0.001)
    assert found(known, served("a", "b"), 0.5, 0.5) == ["a", "bc"]
    assert found(known, served("ac", "b"), 0.5, 0.5) == ["ac", "b"]


def test_all_are_shared_anew_when_requests_have_another_proportion_or_a_model_is_stuck() -> None:
    known = devices(a=0.001, b=0.001, c=0.001, d=0.001)
    assert found(known, served("ab", "cd"), 0.6, 0.4) == ["ab", "cd"]
    assert [len(group) for group in found(known, served("ab", "cd"), 0.8, 0.2)] == [3, 1]
    assert found(known, served("abc", "d"), 0.5, 0.5, is_stuck=True) != ["abc", "d"]


# --- as the planner does it ----------------------------------------------------------------

ROOMY = 20_000_000


def both(memory_bytes: int = ROOMY) -> Bench:
    bench = join(publish(Bench().connect(), old=True, new=False), memory_bytes).run(8)
    return publish(bench, old=True, new=True).run(40)


def parts(bench: Bench) -> dict[str, set[str]]:
    return {part.model: bench.devices(part) for part in bench.plan.parts}


def test_two_models_serve_at_once_on_devices_of_their_own() -> None:
    bench = both()
    found = parts(bench)
    assert found.keys() == {"demo", "new"}
    assert not found["demo"] & found["new"]
    assert active(bench)
    assert not any(part.is_leaving for part in bench.plan.parts)
    assert bench.problem is None
    assert all(part.share for part in bench.plan.parts)
    for name, assignment in bench.assignments.items():
        revisions = {part.revision for part in assignment.parts if part.stages}
        expected = (
            {"rev-1"} if name in found["demo"] else {"rev-2"} if name in found["new"] else set()
        )
        assert revisions == expected


def test_nothing_moves_while_nothing_happens() -> None:
    bench = both()
    version = bench.plan.version
    bench.run(120)
    assert bench.plan.version == version


def test_a_device_that_leaves_concerns_the_model_that_it_serves() -> None:
    bench = both()
    before = {part.model: {r.id for r in part.replicas} for part in bench.plan.parts}
    lost = min(parts(bench)["new"])
    bench.leave(lost).run(20)
    after = {part.model: {r.id for r in part.replicas} for part in bench.plan.parts}
    assert after["demo"] == before["demo"]
    assert after["new"] != before["new"]
    assert lost not in parts(bench)["new"]


def test_one_of_two_models_may_be_given_up_and_its_devices_join_the_other() -> None:
    bench = both()
    publish(bench, old=False, new=True).run(60)
    assert parts(bench).keys() == {"new"}
    assert set(bench.plan.reasons) == set(DEVICES)
    assert bench.plan.share == 0.0


def test_a_model_that_is_asked_much_more_gets_more_devices() -> None:
    bench = both()
    before = parts(bench)["demo"]
    asked = {"rev-1": 256, "rev-2": 0}
    status = GatewayStatus(state=DeviceState.READY, session=1, asked=asked)
    bench.handle(GatewaySeen("gateway-1", status))
    bench.run(60)
    assert parts(bench)["demo"] > before
    assert active(bench)


def test_two_models_that_do_not_both_fit_leave_the_first_alone_and_the_status_says_it() -> None:
    bench = both(700_000)
    assert parts(bench).keys() == {"demo"}
    assert bench.problem == "new: no plan: no device is left beside demo"

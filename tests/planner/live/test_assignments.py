"""What devices hold and prepare on the way from one plan to the next."""

from __future__ import annotations

from broker.plan import LayerRange, Plan
from planner.live.assignments import Load, loads
from planner.live.needs import Needs
from tests.planner import fogs

MODEL = fogs.model(4)
ROOMY = dict.fromkeys("abcd", 100_000_000)


def plan(*replicas: tuple[str, list[tuple[str, int, int]]], revision: str = "r") -> Plan:
    return fogs.plan_of(*(fogs.replica(*replica) for replica in replicas), revision=revision)


OLD = plan(("old", [("a", 0, 2), ("b", 2, 4)]))
NEW = plan(("new", [("a", 0, 3), ("c", 3, 4)]))


def needs(*plans: Plan | None) -> Needs:
    return Needs.of([MODEL], plans)


def names(load: Load) -> tuple[list[str], list[str]]:
    return (
        [f"{s.replica}/{s.stage}" for s in load.hold],
        [f"{s.replica}/{s.stage}" for s in load.prepare],
    )


def test_the_first_plan_is_held_at_once() -> None:
    found = loads(None, OLD, ROOMY, needs(None, OLD), "ab")
    assert {device: names(load) for device, load in found.items()} == {
        "a": (["old/0"], []),
        "b": (["old/1"], []),
    }
    (stage,) = found["a"].hold
    assert (stage.layers, stage.embedding, stage.head) == (LayerRange(0, 2), True, False)
    assert stage.kv_tokens == 512


def test_who_holds_the_head_alone_is_told_who_has_the_embedding() -> None:
    several = plan(("old", [("a", 0, 1), ("b", 1, 3), ("c", 3, 4)]), ("whole", [("d", 0, 4)]))
    found = loads(None, several, ROOMY, needs(None, several), "abcd")
    assert {device: load.hold[0].embedding_device for device, load in found.items()} == {
        "a": None,
        "b": None,
        "c": "a",
        "d": None,
    }


def test_old_stages_stay_beside_new_ones_while_memory_allows() -> None:
    found = loads(OLD, NEW, ROOMY, needs(OLD, NEW), "abc")
    assert {device: names(load) for device, load in found.items()} == {
        "a": (["old/0"], ["new/0"]),
        "b": (["old/1"], []),
        "c": (["new/1"], []),
    }


def test_weights_that_both_plans_need_count_once() -> None:
    shared = MODEL.stage_bytes(0, 3) + (2 + 3) * 256 * 1024
    assert not loads(OLD, NEW, {**ROOMY, "a": shared}, needs(OLD, NEW), "abc")["a"].is_shrunk
    assert loads(OLD, NEW, {**ROOMY, "a": shared - 1}, needs(OLD, NEW), "abc")["a"].is_shrunk


def test_a_device_without_room_for_both_gives_up_the_old_stage_first() -> None:
    found = loads(OLD, NEW, {**ROOMY, "a": 4_000_000}, needs(OLD, NEW), "abc")["a"]
    assert names(found) == ([], ["new/0"])
    assert found.is_shrunk


def test_a_stage_in_both_plans_is_simply_held() -> None:
    wider = plan(("old", [("a", 0, 2), ("b", 2, 4)]), ("new", [("c", 0, 4)]))
    found = loads(OLD, wider, ROOMY, needs(OLD, wider), "abc")
    assert names(found["a"]) == (["old/0"], [])
    assert names(found["c"]) == (["new/0"], [])


def test_replicas_that_lost_a_device_are_not_held_for_nobody() -> None:
    found = loads(OLD, NEW, ROOMY, needs(OLD, NEW), "ac")
    assert names(found["a"]) == (["new/0"], [])
    assert "b" not in found


def test_stages_of_another_revision_are_not_kept() -> None:
    other = plan(("old", [("a", 0, 2), ("b", 2, 4)]), revision="r0")
    found = loads(other, NEW, ROOMY, needs(other, NEW), "abc")
    assert names(found["a"]) == (["new/0"], [])
    assert "b" not in found


def test_when_nothing_comes_the_active_plan_is_held() -> None:
    found = loads(OLD, None, ROOMY, needs(OLD, None), "a")
    assert {device: names(load) for device, load in found.items()} == {
        "a": (["old/0"], []),
        "b": (["old/1"], []),
    }

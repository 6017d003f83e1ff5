"""Grants: masters own slots and room, gateways only hold grants."""

import pytest
from msgspec import structs

from broker.events import Granted, GrantState
from broker.placement import WAITING_ROWS
from broker.plan import Role
from broker.work import RequestKey, Reserve, ReserveKind
from nodes.outgoing import ToGateway
from nodes.reservations import Reservations
from tests.support.pipeline import make_replica


def reservations(
    *,
    slots: int = 2,
    kv_tokens: int = 256,
    prefill_slots: int | None = None,
    role: Role = Role.DECODE,
) -> Reservations:
    replica = make_replica((2, 5), ("a", "b"), role, slots=slots, kv_tokens=kv_tokens)
    replica = structs.replace(replica, prefill_slots=prefill_slots or slots)
    return Reservations(replica, grant_seconds=10.0, kv_credit_bytes=4096)


def ask(
    name: str,
    kind: ReserveKind = ReserveKind.DECODE,
    *,
    known: int = 20,
    maximum: int = 20,
    gateway: str = "g",
    queue_seconds: float = 60.0,
) -> Reserve:
    return Reserve(
        request_id=name,
        attempt=0,
        gateway=gateway,
        kind=kind,
        known_tokens=known,
        max_tokens=maximum,
        queue_seconds=queue_seconds,
    )


def states(answers: list[ToGateway]) -> dict[str, GrantState]:
    found = {}
    for answer in answers:
        assert isinstance(answer.header, Granted)
        found[answer.header.request_id] = answer.header.state
    return found


def test_room_and_slot_are_granted_and_the_same_key_gets_the_same_answer() -> None:
    held = reservations()
    assert states(held.reserve(ask("a"), 0.0)) == {"a": GrantState.GRANTED}
    assert states(held.reserve(ask("a"), 1.0)) == {"a": GrantState.GRANTED}
    assert held.used_tokens == 32


BOTH = ReserveKind.BOTH


def test_beyond_the_slots_a_request_waits_and_is_granted_on_release() -> None:
    held = reservations(slots=1)
    held.reserve(ask("a", BOTH), 0.0)
    assert states(held.reserve(ask("b", BOTH), 0.0)) == {"b": GrantState.QUEUED}
    held.release(RequestKey("a", 0))
    assert states(held.grant_waiting(1.0)) == {"b": GrantState.GRANTED}


def test_answers_come_ahead_of_slots_until_enough_of_them_are_complete() -> None:
    held = reservations(slots=1, kv_tokens=4096)
    names = [f"r{number}" for number in range(8)]
    for name in names:
        assert states(held.reserve(ask(name), 0.0)) == {name: GrantState.GRANTED}

    for name in names[: 1 + WAITING_ROWS]:
        held.complete(RequestKey(name, 0))
    assert states(held.reserve(ask("late"), 1.0)) == {"late": GrantState.QUEUED}

    held.release(RequestKey("r0", 0))
    assert states(held.grant_waiting(2.0)) == {"late": GrantState.GRANTED}


def test_answers_on_their_way_count_where_a_replica_prefills_as_well() -> None:
    held = reservations(slots=1, kv_tokens=4096, role=Role.BOTH)
    for name in (names := [f"r{number}" for number in range(1 + WAITING_ROWS)]):
        assert states(held.reserve(ask(name), 0.0)) == {name: GrantState.GRANTED}
    assert states(held.reserve(ask("late"), 1.0)) == {"late": GrantState.QUEUED}

    held.release(RequestKey(names[0], 0))
    assert states(held.grant_waiting(2.0)) == {"late": GrantState.GRANTED}


def test_what_comes_ahead_of_a_slot_fits_whole_beside_all_the_others() -> None:
    held = reservations(slots=1, kv_tokens=160)
    assert states(held.reserve(ask("a", known=20, maximum=40), 0.0)) == {"a": GrantState.GRANTED}
    # 20 and 40 are two blocks each; the second one's prompt alone would leave a block to grow.
    assert states(held.reserve(ask("b", known=20, maximum=80), 0.0)) == {"b": GrantState.QUEUED}
    held.release(RequestKey("b", 0))
    assert states(held.reserve(ask("c", known=20, maximum=76), 0.0)) == {"c": GrantState.GRANTED}


def test_a_prompt_beside_answers_needs_a_prefill_slot_until_it_is_complete() -> None:
    held = reservations(slots=4, prefill_slots=1)
    held.reserve(ask("a", BOTH), 0.0)
    assert states(held.reserve(ask("b", BOTH), 0.0)) == {"b": GrantState.QUEUED}
    held.complete(RequestKey("a", 0))
    assert states(held.grant_waiting(1.0)) == {"b": GrantState.GRANTED}


def test_prefill_and_decode_slots_are_counted_apart() -> None:
    held = reservations(slots=1)
    assert states(held.reserve(ask("a", ReserveKind.PREFILL), 0.0)) == {"a": GrantState.GRANTED}
    assert states(held.reserve(ask("b", ReserveKind.DECODE), 0.0)) == {"b": GrantState.GRANTED}


def test_a_request_that_never_fits_is_refused_with_the_numbers() -> None:
    (answer,) = reservations(kv_tokens=64).reserve(ask("a", known=50, maximum=20), 0.0)
    assert isinstance(answer.header, Granted)
    assert answer.header.state is GrantState.REFUSED
    assert "70" in answer.header.reason
    assert "64" in answer.header.reason


def test_those_whose_kv_is_still_to_come_share_the_credit() -> None:
    room = reservations(slots=4)
    credits = []
    for name in "abc":
        (answer,) = room.reserve(ask(name), now=0.0)
        assert isinstance(answer.header, Granted)
        credits.append(answer.header.kv_credit_bytes)
    room.open(RequestKey("a", 0))
    room.complete(RequestKey("a", 0))
    (answer,) = room.reserve(ask("d"), now=0.0)
    assert isinstance(answer.header, Granted)
    assert credits == [4096, 2048, 1365]
    assert answer.header.kv_credit_bytes == 1365


def test_a_grant_without_open_expires_and_one_with_open_does_not() -> None:
    held = reservations(slots=1)
    held.reserve(ask("a", BOTH), 0.0)
    held.reserve(ask("b", BOTH), 0.0)
    assert states(held.expire(10.0)) == {"b": GrantState.GRANTED}
    assert held.open(RequestKey("b", 0))
    assert not held.open(RequestKey("a", 0))
    held.expire(1000.0)
    assert RequestKey("b", 0) in held


def test_a_queued_request_is_refused_when_its_time_is_over() -> None:
    held = reservations(slots=1)
    held.reserve(ask("a", BOTH), 0.0)
    held.open(RequestKey("a", 0))
    held.reserve(ask("b", BOTH, queue_seconds=5.0), 0.0)
    assert states(held.expire(5.0)) == {"b": GrantState.REFUSED}


def test_growth_stops_at_the_limit_and_the_youngest_decode_is_named() -> None:
    held = reservations(slots=4, kv_tokens=128)
    held.reserve(ask("old", known=30), 0.0)
    held.reserve(ask("young", known=30), 0.0)
    assert held.grow(RequestKey("old", 0), 96)
    assert not held.grow(RequestKey("old", 0), 97)
    assert held.youngest() == RequestKey("young", 0)


def test_head_room_is_kept_for_answers_that_grow() -> None:
    held = reservations(slots=8, kv_tokens=128)
    assert states(held.reserve(ask("a"), 0.0)) == {"a": GrantState.GRANTED}
    assert states(held.reserve(ask("b"), 0.0)) == {"b": GrantState.GRANTED}
    # 64 positions are held and 64 are spare for two growing answers.
    assert states(held.reserve(ask("c"), 0.0)) == {"c": GrantState.QUEUED}


@pytest.mark.parametrize("kind", list(ReserveKind))
def test_all_that_a_gateway_holds_or_waits_for_is_named(kind: ReserveKind) -> None:
    held = reservations(slots=1)
    held.reserve(ask("a", kind, gateway="g1"), 0.0)
    held.reserve(ask("b", kind, gateway="g1"), 0.0)
    held.reserve(ask("c", kind, gateway="g2"), 0.0)
    assert {key.request_id for key in held.keys_of("g1")} >= {"a", "b"}
    assert held.gateway(RequestKey("a", 0)) == "g1"
    assert held.gateway(RequestKey("nobody", 0)) is None

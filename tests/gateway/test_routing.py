from dataclasses import replace

import pytest
from msgspec import structs

from broker.plan import BatchSeconds, Role
from broker.room import Usage, has_room, has_slot
from broker.work import ReserveKind
from gateway.routing import (
    UNKNOWN_STEP_SECONDS,
    Demand,
    Load,
    Pair,
    Policy,
    can_grant,
    choose_pair,
    finish_seconds,
    largest_request_tokens,
    lost_seconds,
    pairs,
    predicted_step_seconds,
    shortest_queues,
)
from tests.gateway.scripted_fog import replica

DEMAND = Demand(known_tokens=100, max_tokens=50, expected_tokens=50.0)


def names(loads: list[Load]) -> list[str]:
    return [f"{p.prefill.replica.id}{p.decode.replica.id}" for p in pairs(loads)]


def chosen(loads: list[Load], demand: Demand = DEMAND, policy: Policy = Policy.LEAST_ADDED) -> str:
    pair = choose_pair(loads, demand, policy)
    return "" if pair is None else f"{pair.prefill.replica.id}{pair.decode.replica.id}"


def joined(loads: list[Load], demand: Demand = DEMAND) -> str:
    pair = shortest_queues(loads, demand)
    return "" if pair is None else f"{pair.prefill.replica.id}{pair.decode.replica.id}"


def load(name: str, role: Role = Role.BOTH, **more: float) -> Load:
    return Load(replica(name, [f"{name}0", f"{name}1"], role, **more))  # type: ignore[arg-type]


def test_pairs_follow_the_roles_and_a_single_replica_comes_first() -> None:
    loads = [load("p", Role.PREFILL), load("d", Role.DECODE), load("b")]

    assert names(loads) == ["bb", "pd", "pb", "bd"]


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_replicas_of_one_role_alone_serve_both(role: Role) -> None:
    assert names([load("x", role), load("y", role)]) == ["xx", "yy"]


def test_the_faster_pair_is_chosen() -> None:
    slow, fast = load("s", tpot_seconds=0.2), load("f", tpot_seconds=0.1)

    assert chosen([slow, fast]) == "ff"


def test_measurements_overrule_predictions() -> None:
    slow, fast = load("s", tpot_seconds=0.2), load("f", tpot_seconds=0.1)

    assert chosen([slow, replace(fast, step_factor=5.0)]) == "ss"


def test_prompts_in_work_make_a_replica_slower() -> None:
    busy, idle = load("b", prefill_rate=1000.0), load("i", prefill_rate=900.0)

    assert chosen([busy, idle]) == "bb"
    assert chosen([replace(busy, prefill_backlog_tokens=500), idle]) == "ii"


def test_a_long_prompt_goes_where_prefill_is_fast_and_a_long_answer_where_decode_is() -> None:
    prefills = load("p", prefill_rate=2000.0, tpot_seconds=0.2)
    decodes = load("d", prefill_rate=100.0, tpot_seconds=0.1)

    assert chosen([prefills, decodes], Demand(1000, 10, 10.0)) == "pd"
    assert chosen([decodes], Demand(10, 1000, 1000.0)) == "dd"


def test_room_that_others_hold_makes_a_pair_second_choice() -> None:
    full = replace(load("f", tpot_seconds=0.1), foreign=Usage(0, 6, 512, complete=6))
    free = load("s", tpot_seconds=0.2)

    assert chosen([full, free]) == "ss"
    # Its master queues us fairly, and nobody else would tell us when there is room.
    assert chosen([full]) == "ff"


def test_pairs_that_our_own_requests_fill_are_waited_for() -> None:
    full = replace(load("f"), own=Usage(0, 4, 512))

    assert chosen([full]) == ""


def test_a_suspect_is_chosen_only_when_there_is_no_other() -> None:
    fast = replace(load("f", tpot_seconds=0.1), is_suspect=True)
    slow = load("s", tpot_seconds=0.2)

    assert chosen([fast, slow]) == "ss"
    assert chosen([fast]) == "ff"


def test_a_pair_that_is_too_small_is_never_chosen() -> None:
    small = load("s", tpot_seconds=0.01, kv_tokens=128)

    assert chosen([small, load("l")]) == "ll"
    assert chosen([small]) == ""


def test_least_added_spares_the_streams_beside_which_a_prompt_would_run() -> None:
    fast = replace(load("f", prefill_rate=1000.0), own=Usage(0, 3, 768, complete=3))
    slow = load("s", prefill_rate=800.0)

    assert chosen([fast, slow], policy=Policy.LEAST_FINISH) == "ff"
    assert chosen([fast, slow], policy=Policy.LEAST_ADDED) == "ss"


def test_a_larger_batch_costs_those_beside_it_half_an_answer_of_longer_steps() -> None:
    table = [BatchSeconds(rows, 0.1 * rows) for rows in (1, 2, 4)]
    stages = [
        structs.replace(stage, decode_seconds=table if stage.embedding else [BatchSeconds(1, 0.0)])
        for stage in replica("d", ["d0", "d1"], Role.DECODE).stages
    ]
    decode = Load(
        structs.replace(replica("d", ["d0", "d1"], Role.DECODE), stages=stages),
        own=Usage(0, 2, 512),
    )
    pair = Pair(load("p", Role.PREFILL), decode)
    slower = decode.step_seconds(3) - decode.step_seconds(2)

    assert slower > 0
    assert lost_seconds(pair, DEMAND) == pytest.approx(2 * slower * 50 / 2)
    assert lost_seconds(Pair(load("p", Role.PREFILL), load("d", Role.DECODE)), DEMAND) == 0


def test_jsq_joins_the_shortest_queue_whatever_the_speed() -> None:
    fast = replace(load("f", tpot_seconds=0.01), prefill_backlog_tokens=300.0)
    slow = load("s", tpot_seconds=1.0)

    assert chosen([fast, slow], policy=Policy.LEAST_FINISH) == "sf"
    assert joined([fast, slow]) == "ss"


def test_jsq_joins_a_queue_that_has_no_room() -> None:
    prefill = load("p", Role.PREFILL)
    ours = replace(load("o", Role.DECODE), own=Usage(0, 6, 4096, complete=6))
    foreign = replace(load("f", Role.DECODE), foreign=Usage(0, 7, 512, complete=7))
    queue = replace(load("q", Role.DECODE), own=Usage(0, 4, 512, complete=4), queued=4)

    assert joined([prefill, ours, foreign, queue]) == "po"
    assert chosen([prefill, ours, foreign, queue]) == "pq"


def test_jsq_knows_how_far_the_answers_of_a_replica_are() -> None:
    prefill = load("p", Role.PREFILL)
    early = replace(load("e", Role.DECODE), own=Usage(0, 4, 512), generated=(20, 9, 8, 7))
    late = replace(load("l", Role.DECODE), own=Usage(0, 4, 512), generated=(21, 1, 1, 1))

    assert joined([prefill, early, late]) == "pl"


def test_by_jsq_replicas_that_do_both_do_not_trade_requests() -> None:
    full = replace(load("f", prefill_rate=2000.0), own=Usage(0, 9, 512))
    idle = load("i")
    decode = load("d", Role.DECODE)

    assert joined([full, idle]) == "ii"
    assert joined([full, decode]) == "fd"


@pytest.mark.parametrize(
    ("kind", "usage", "known", "expected"),
    [
        # 256 positions, 96 held: 32 more and a block to grow for each of three answers fit.
        (ReserveKind.DECODE, Usage(0, 3, 96), 31, True),
        (ReserveKind.DECODE, Usage(0, 3, 128), 32, False),
        # All four slots are taken: the whole answer of 50 must fit beside all the others'.
        (ReserveKind.DECODE, Usage(0, 4, 32, whole_tokens=160), 46, True),
        (ReserveKind.DECODE, Usage(0, 4, 32, whole_tokens=160), 47, False),
        # Nothing else is held: the whole replica is there for it.
        (ReserveKind.BOTH, Usage(), 255, True),
        (ReserveKind.BOTH, Usage(), 256, False),
    ],
)
def test_room_is_counted_as_masters_count_it(
    kind: ReserveKind, usage: Usage, known: int, expected: bool
) -> None:
    demand = Demand(known, max_tokens=50, expected_tokens=50.0)

    found = replica("r", ["r0"], kv_tokens=256)
    assert has_room(found, usage, kind, demand.known_tokens, demand.max_tokens) is expected


@pytest.mark.parametrize(
    ("role", "kind", "usage", "expected"),
    [
        (Role.BOTH, ReserveKind.PREFILL, Usage(1, 9), True),
        (Role.BOTH, ReserveKind.PREFILL, Usage(2, 0), False),
        (Role.BOTH, ReserveKind.BOTH, Usage(1, 3), True),
        (Role.BOTH, ReserveKind.BOTH, Usage(2, 3), False),
        (Role.BOTH, ReserveKind.BOTH, Usage(0, 4), False),
        # Prompts that are prefilled elsewhere hold no slot; two may wait beyond the four.
        (Role.DECODE, ReserveKind.DECODE, Usage(2, 9, complete=5), True),
        (Role.DECODE, ReserveKind.DECODE, Usage(0, 6, complete=6), False),
        # Where prompts are prefilled as well, those on their way count as waiting.
        (Role.BOTH, ReserveKind.DECODE, Usage(0, 5), True),
        (Role.BOTH, ReserveKind.DECODE, Usage(0, 6), False),
    ],
)
def test_slots_are_counted_as_masters_count_them(
    role: Role, kind: ReserveKind, usage: Usage, expected: bool
) -> None:
    assert has_slot(replica("r", ["r0"], role), usage, kind) is expected


def test_of_two_replicas_that_do_both_none_sends_ahead_of_a_slot_of_the_other() -> None:
    full = replace(load("f"), own=Usage(2, 4, 512, complete=4))
    both = replace(load("b"), own=Usage(0, 4, 512, complete=4))
    prefill = load("p", Role.PREFILL)

    assert chosen([full, prefill]) == "pf"
    assert chosen([full, both]) == ""


def test_a_pair_that_takes_less_than_half_of_the_others_time_is_waited_for() -> None:
    full = replace(load("f", tpot_seconds=0.1), own=Usage(0, 6, 512, complete=6))
    awaited = finish_seconds(Pair(full, full), DEMAND)

    def other(seconds: float) -> Load:
        return load("o", tpot_seconds=(seconds - 0.1) / 50, prefill_rate=1000.0)

    assert chosen([full, other(1.9 * awaited)]) == "oo"
    assert chosen([full, other(2.1 * awaited)]) == ""


def test_nobody_waits_for_a_pair_without_memory_or_one_that_just_failed() -> None:
    full = replace(load("f", tpot_seconds=0.01), own=Usage(0, 6, 512, complete=6))
    slow = load("s", tpot_seconds=1.0)

    assert chosen([full, slow]) == ""
    assert chosen([replace(full, own=Usage(0, 6, 4096, 6, 4096)), slow]) == "ss"
    assert chosen([replace(full, is_suspect=True), slow]) == "ss"


def test_own_and_foreign_use_add_up() -> None:
    half = replace(load("h"), own=Usage(0, 2, 64), foreign=Usage(0, 2, 64))
    (pair,) = pairs([half])

    assert can_grant(pair, DEMAND, own_only=True)
    assert not can_grant(pair, DEMAND)


def test_the_largest_request_is_bounded_by_the_smaller_side_of_the_best_pair() -> None:
    prefill = replica("p", ["a"], Role.PREFILL, kv_tokens=300)
    decode = replica("d", ["b"], Role.DECODE, kv_tokens=500)

    assert largest_request_tokens([prefill, decode]) == 300
    assert largest_request_tokens([decode]) == 500
    assert largest_request_tokens([]) == 0


def test_a_step_is_predicted_from_stage_times_at_that_batch() -> None:
    one = replica("r", ["a", "b"])
    points = [BatchSeconds(1, 0.1), BatchSeconds(4, 0.4)]
    stages = [structs.replace(stage, decode_seconds=points) for stage in one.stages]
    timed = structs.replace(one, stages=stages)

    assert predicted_step_seconds(timed, 1) == pytest.approx(0.2)
    assert predicted_step_seconds(timed, 8) > predicted_step_seconds(timed, 1)
    assert predicted_step_seconds(one, 8) == one.predicted.tpot_seconds


def test_a_replica_without_any_prediction_still_has_a_time() -> None:
    unknown = replica("u", ["a"], tpot_seconds=0.0, prefill_rate=0.0)
    (pair,) = pairs([Load(unknown)])

    assert predicted_step_seconds(unknown, 1) == UNKNOWN_STEP_SECONDS
    assert finish_seconds(pair, DEMAND) == pytest.approx(1.0 + 50 * UNKNOWN_STEP_SECONDS)

"""Routing: pure functions from replicas' states to a choice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from broker.plan import Role
from planner.simulation.binding import bind_late
from planner.simulation.choices import choose_decode, choose_pair, choose_prefill, lend
from planner.simulation.routing import (
    JSQ_COUNT,
    LEAST_ADDED,
    LEAST_FINISH,
    PAPER_JSQ,
    SPLITWISE,
    SPLITWISE_MIXED,
    SPLITWISE_SPEED,
    MixedPool,
)
from planner.simulation.rules import estimated_decode_wait, pending_tokens
from planner.simulation.states import Demand, has_room


@dataclass
class State:
    """A replica's state with every value given."""

    id: str
    role: Role
    pool: Role = Role.BOTH
    slots: float = 4
    prefill_slots: int = 2
    kv_tokens: float = 10_000
    held_tokens: float = 0
    reserved_tokens: int = 0
    whole_tokens: int = 0
    num_prompts: int = 0
    pending_prompt_tokens: int = 0
    num_decodes: int = 0
    prefill_tokens_per_second: float = 100.0
    decode_tokens_per_second: float = 40.0
    row_seconds: float = 0.01
    done: list[int] = field(default_factory=list)
    num_waiting: int = 0

    def __post_init__(self) -> None:
        self.pool = self.role

    @property
    def num_complete(self) -> int:
        return len(self.done) + self.num_waiting

    def prompt_seconds(self, num_tokens: int) -> float:
        return num_tokens / self.prefill_tokens_per_second

    def step_seconds(self, num_rows: int) -> float:
        return 0.02 + self.row_seconds * min(num_rows, self.slots)

    def generated_tokens(self) -> list[int]:
        return self.done


DEMAND = Demand(prompt_tokens=100, expected_tokens=50, reserved_tokens=150)


def free(prefill: State, decode: State) -> float:
    return 0.0


def _names(pair: tuple[State, State] | None) -> tuple[str, str] | None:
    return None if pair is None else (pair[0].id, pair[1].id)


def test_a_free_slot_means_no_wait() -> None:
    state = State("d", Role.DECODE, num_decodes=3, done=[40, 10])

    assert estimated_decode_wait(state, DEMAND) == 0.0


@pytest.mark.parametrize(
    ("num_decodes", "tokens"),
    [
        # All four slots are taken: the oldest row ends first, after 50 - 45 tokens.
        (4, 5),
        (5, 10),
        (7, 45),
        # The eighth ahead takes the oldest's slot for a whole answer more.
        (8, 55),
    ],
)
def test_the_wait_is_until_the_slot_that_comes_free_next(num_decodes: int, tokens: int) -> None:
    state = State("d", Role.DECODE, num_decodes=num_decodes, done=[45, 40, 20, 5])

    assert estimated_decode_wait(state, DEMAND) == pytest.approx(tokens * 0.06)


def test_an_answer_longer_than_expected_may_end_at_any_moment() -> None:
    state = State("d", Role.DECODE, slots=1, num_decodes=1, done=[400])

    assert estimated_decode_wait(state, DEMAND) == 0.0


def test_the_papers_rule_takes_the_shortest_estimated_waits() -> None:
    states = [
        State("p", Role.PREFILL, pending_prompt_tokens=500),
        State("q", Role.PREFILL, pending_prompt_tokens=600, prefill_tokens_per_second=200),
        State("d", Role.DECODE, num_decodes=4, done=[10] * 4),
        State("e", Role.DECODE, num_decodes=4, done=[30] * 4),
    ]

    assert _names(choose_pair(states, DEMAND, PAPER_JSQ)) == ("q", "e")


def test_equal_waits_go_to_the_faster_replica_or_to_the_first() -> None:
    states = [
        State("p", Role.PREFILL),
        State("q", Role.PREFILL, prefill_tokens_per_second=1000),
        State("d", Role.DECODE, row_seconds=0.1),
        State("e", Role.DECODE),
    ]

    assert _names(choose_pair(states, DEMAND, PAPER_JSQ)) == ("q", "e")
    assert _names(choose_pair(states, DEMAND, SPLITWISE)) == ("p", "d")


def test_splitwise_counts_tokens_and_is_blind_to_speed_unless_told() -> None:
    states = [
        State("p", Role.PREFILL, pending_prompt_tokens=300, prefill_tokens_per_second=10),
        State("q", Role.PREFILL, pending_prompt_tokens=400, prefill_tokens_per_second=1000),
        State("d", Role.DECODE, reserved_tokens=500, decode_tokens_per_second=5),
        State("e", Role.DECODE, reserved_tokens=900, decode_tokens_per_second=100),
    ]

    assert _names(choose_pair(states, DEMAND, SPLITWISE)) == ("p", "d")
    assert _names(choose_pair(states, DEMAND, SPLITWISE_SPEED)) == ("q", "e")


def test_fewest_requests_is_a_rule_too() -> None:
    states = [
        State("p", Role.PREFILL, num_prompts=2),
        State("q", Role.PREFILL, num_prompts=1),
        State("d", Role.DECODE, num_decodes=1),
        State("e", Role.DECODE, num_decodes=0),
    ]

    assert _names(choose_pair(states, DEMAND, JSQ_COUNT)) == ("q", "e")


def test_pending_tokens_count_a_decode_as_one() -> None:
    state = State("d", Role.BOTH, pending_prompt_tokens=70, num_decodes=3)

    assert pending_tokens(state, DEMAND) == 73


def test_a_replica_that_does_both_keeps_its_requests_or_gives_them_to_a_decoder() -> None:
    full = State("b", Role.BOTH, num_decodes=4, done=[0] * 4)
    idle = State("c", Role.BOTH)
    decoder = State("d", Role.DECODE)

    assert choose_decode([full, idle], DEMAND, PAPER_JSQ, full).id == "b"
    assert choose_decode([full, decoder], DEMAND, PAPER_JSQ, full).id == "d"
    assert choose_decode([idle, decoder], DEMAND, PAPER_JSQ, idle).id == "c"
    assert choose_prefill([full, idle], DEMAND, PAPER_JSQ).id == "c"


def test_without_a_replica_of_a_role_any_does_both() -> None:
    decoders = [State("d", Role.DECODE, num_decodes=2), State("e", Role.DECODE)]

    assert _names(choose_pair(decoders, DEMAND, JSQ_COUNT)) == ("e", "e")
    assert _names(bind_late([State("p", Role.PREFILL)], DEMAND, LEAST_FINISH, free)) == ("p", "p")


# --- the mixed pool -----------------------------------------------------------------------


def test_pools_keep_to_themselves_within_their_limits() -> None:
    states = [
        State("p", Role.PREFILL, pending_prompt_tokens=8000),
        State("d", Role.DECODE),
    ]

    assert _names(choose_pair(states, DEMAND, SPLITWISE_MIXED)) == ("p", "d")


def test_a_full_prompt_pool_borrows_the_idlest_token_machine() -> None:
    states = [
        State("p", Role.PREFILL, pending_prompt_tokens=8100),
        State("d", Role.DECODE, num_decodes=3),
        State("e", Role.DECODE, num_decodes=1),
    ]

    prefill, decode = choose_pair(states, DEMAND, SPLITWISE_MIXED)
    lend(prefill, decode)

    assert (prefill.id, decode.id) == ("e", "d")
    assert prefill.pool is Role.BOTH
    # Once mixed, it is asked before another is borrowed.
    assert choose_pair(states, DEMAND, SPLITWISE_MIXED)[0].id == "e"


def test_a_full_token_pool_borrows_the_emptiest_prompt_machine() -> None:
    states = [
        State("p", Role.PREFILL, reserved_tokens=50),
        State("q", Role.PREFILL, reserved_tokens=10, pending_prompt_tokens=5),
        State("d", Role.DECODE, reserved_tokens=9_900),
    ]

    prefill, decode = choose_pair(states, DEMAND, SPLITWISE_MIXED)
    lend(prefill, decode)

    assert (prefill.id, decode.id) == ("p", "q")
    assert decode.pool is Role.BOTH


def test_a_token_machine_without_a_slot_is_full_only_where_slots_count() -> None:
    states = [State("p", Role.PREFILL), State("d", Role.DECODE, num_decodes=4)]
    by_slots = replace(SPLITWISE_MIXED, mixed_pool=MixedPool(counts_slots=True))

    assert _names(choose_pair(states, DEMAND, SPLITWISE_MIXED)) == ("p", "d")
    assert _names(choose_pair(states, DEMAND, by_slots)) == ("p", "p")


# --- late binding -------------------------------------------------------------------------


def test_late_binding_waits_while_no_pair_can_grant() -> None:
    prefill = State("p", Role.PREFILL)
    for full in (
        State("d", Role.DECODE, num_decodes=6, done=[1] * 4, num_waiting=2),
        State("d", Role.DECODE, held_tokens=9_900),
    ):
        assert bind_late([prefill, full], DEMAND, LEAST_FINISH, free) is None
    busy = State("p", Role.PREFILL, num_prompts=2)
    assert bind_late([busy, State("d", Role.DECODE)], DEMAND, LEAST_FINISH, free) is None


def test_prompts_come_ahead_of_free_slots_until_two_complete_requests_wait_for_a_row() -> None:
    prefill = State("p", Role.PREFILL)
    prefilling = State("d", Role.DECODE, num_decodes=9, done=[1] * 4, num_waiting=1)
    waiting = State("d", Role.DECODE, num_decodes=6, done=[1] * 4, num_waiting=2)

    assert _names(bind_late([prefill, prefilling], DEMAND, LEAST_FINISH, free)) == ("p", "d")
    assert bind_late([prefill, waiting], DEMAND, LEAST_FINISH, free) is None


def test_a_prompt_beside_its_own_answers_waits_for_a_slot() -> None:
    both = State("b", Role.BOTH, num_decodes=4, done=[1] * 3)

    assert bind_late([both], DEMAND, LEAST_FINISH, free) is None


def test_what_comes_ahead_of_a_slot_leaves_every_growing_answer_its_memory() -> None:
    growing = replace(DEMAND, reserved_tokens=101, is_growing=True, whole_tokens=150)
    states = [
        State("p", Role.PREFILL),
        State("d", Role.DECODE, num_decodes=4, done=[1] * 4, kv_tokens=1000, whole_tokens=850),
    ]

    assert _names(bind_late(states, growing, LEAST_FINISH, free)) == ("p", "d")
    states[1].whole_tokens = 851
    assert bind_late(states, growing, LEAST_FINISH, free) is None


def test_a_pair_that_takes_less_than_half_of_the_others_time_is_waited_for() -> None:
    # Full: 0.9 s until a prompt begins, 1 s for it and 1.5 s for the answer are 3.4 s.
    fast = State("p", Role.PREFILL, num_prompts=2, pending_prompt_tokens=90)
    decode = State("d", Role.DECODE)

    def slow(prompt_seconds: float) -> State:
        return State("q", Role.PREFILL, prefill_tokens_per_second=100 / prompt_seconds)

    assert _names(bind_late([fast, slow(5.2), decode], DEMAND, LEAST_FINISH, free)) == ("q", "d")
    assert bind_late([fast, slow(5.4), decode], DEMAND, LEAST_FINISH, free) is None


def test_late_binding_takes_the_least_expected_finish() -> None:
    states = [
        State("p", Role.PREFILL),
        State("d", Role.DECODE, row_seconds=0.03),
        State("e", Role.DECODE, num_decodes=2),
    ]

    assert _names(bind_late(states, DEMAND, LEAST_FINISH, free)) == ("p", "d")

    def far_from_d(prefill: State, decode: State) -> float:
        return 5.0 if decode.id == "d" else 0.0

    assert _names(bind_late(states, DEMAND, LEAST_FINISH, far_from_d)) == ("p", "e")


def test_equal_finishes_go_to_the_pair_that_moves_no_kv() -> None:
    states = [State("p", Role.PREFILL), State("b", Role.BOTH)]

    assert _names(bind_late(states, DEMAND, LEAST_FINISH, free)) == ("b", "b")


def test_the_time_that_others_lose_moves_a_prompt_away_from_running_streams() -> None:
    states = [
        State("p", Role.PREFILL, prefill_tokens_per_second=60),
        State("b", Role.BOTH, num_decodes=3, done=[1, 2, 3]),
    ]

    assert _names(bind_late(states, DEMAND, LEAST_FINISH, free)) == ("b", "b")
    assert _names(bind_late(states, DEMAND, LEAST_ADDED, free)) == ("p", "b")


def test_few_prompts_come_ahead_of_a_slot_where_their_replica_prefills_as_well() -> None:
    prefill = State("p", Role.PREFILL)
    full = State("b", Role.BOTH, num_prompts=2, num_decodes=4)

    for ahead, expected in ((0, ("p", "b")), (1, ("p", "b")), (2, None)):
        found = bind_late(
            [prefill, replace(full, num_decodes=4 + ahead)], DEMAND, LEAST_ADDED, free
        )
        assert (None if found is None else _names(found)) == expected


def test_of_two_that_do_both_none_sends_ahead_of_a_slot_of_the_other() -> None:
    answering = State("a", Role.BOTH, num_decodes=4)
    full = State("b", Role.BOTH, num_prompts=2, num_decodes=4)

    assert bind_late([answering, full], DEMAND, LEAST_ADDED, free) is None
    free_slot = replace(full, num_decodes=3)
    assert _names(bind_late([answering, free_slot], DEMAND, LEAST_ADDED, free)) == ("a", "b")


def test_an_empty_replica_takes_whatever_fits_and_growing_rows_keep_a_block_each() -> None:
    assert has_room(State("d", Role.DECODE, kv_tokens=100), 100)
    assert not has_room(State("d", Role.DECODE, kv_tokens=100), 101)
    used = State("d", Role.DECODE, kv_tokens=200, held_tokens=100, num_decodes=2)
    assert has_room(used, 100)
    assert has_room(used, 36, is_growing=True)
    assert not has_room(used, 37, is_growing=True)

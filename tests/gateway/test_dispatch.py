from collections.abc import Callable
from typing import TypeVar

import pytest

from broker.control import DeviceState
from broker.events import Granted, GrantState, LossKind, Lost, Opened, TokenRow, Tokens, Waiting
from broker.plan import Replica, Role
from broker.work import Open, Release, RequestKey, Resend, Reserve, ReserveKind
from gateway.dispatch import DispatchSettings
from gateway.fogview import FogView
from gateway.lifecycle import Phase
from gateway.requests import (
    DeadlineExceededError,
    GenerationFailedError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)
from gateway.routing import Policy
from tests.gateway.scripted_fog import (
    ROOM_TOKENS,
    Faults,
    Run,
    ScriptedFog,
    expected_tokens,
    generation,
    perfect,
    plan,
    replica,
    sent,
    view_of,
)

MessageT = TypeVar("MessageT")


def split_fog(slots: int = 4, prefill_slots: int = 2, kv_tokens: int = 4096) -> ScriptedFog:
    """One prefill replica of two stages, one decode replica of three."""
    return ScriptedFog(
        replica("p", ["p0", "p1"], Role.PREFILL, prefill_slots=prefill_slots),
        replica("d", ["d0", "d1", "d2"], Role.DECODE, slots=slots, kv_tokens=kv_tokens),
    )


def reach(run: Run, name: str, phase: Phase) -> RequestKey:
    """Advance until the request is in ``phase``; return its key."""
    run.advance_until(lambda: run.dispatcher.phase(name) is phase)
    attempts = [m.attempt for _, m in run.fog.received if getattr(m, "request_id", "") == name]
    return RequestKey(name, max(attempts))


def messages(run: Run, kind: type[MessageT]) -> list[tuple[dict[str, str], MessageT]]:
    return [(names, m) for names, m in run.fog.received if isinstance(m, kind)]


def test_a_request_goes_through_reserve_open_and_tokens_to_its_end() -> None:
    run = Run(split_fog())

    run.submit(generation("a"))
    run.advance(2)

    assert run.tokens["a"] == expected_tokens()
    assert run.finished == {"a": "length"}
    assert run.dispatcher.phase("a") is None


def test_prefill_and_decode_masters_are_asked_for_the_room_that_the_request_needs() -> None:
    run = Run(split_fog())

    actions = run.submit(generation("a", prompt=5, tokens=8))

    asked = [(n["device"], m.kind, m.known_tokens, m.max_tokens) for n, m in sent(actions, Reserve)]
    assert asked == [("p0", ReserveKind.PREFILL, 5, 8), ("d0", ReserveKind.DECODE, 5, 8)]


def test_open_reaches_receivers_before_senders_and_only_ends_get_token_ids() -> None:
    run = Run(split_fog())

    run.submit(generation("a"))
    run.settle()

    opens = [(n["device"], m) for n, m in run.fog.received if isinstance(m, Open)]
    assert [device for device, _ in opens] == ["d2", "d1", "d0", "p1", "p0"]
    assert {device for device, m in opens if not m.prompt_ids} == {"d1"}
    assert all(m.num_prompt_tokens == 5 and m.kv_credit_bytes == 4096 for _, m in opens)


def test_one_replica_for_both_roles_gets_one_reservation_and_one_open_per_stage() -> None:
    run = Run(ScriptedFog(replica("b", ["b0", "b1"], Role.BOTH)))

    run.submit(generation("a"))
    run.advance(2)

    assert [m.kind for _, m in messages(run, Reserve)] == [ReserveKind.BOTH]
    assert [n["device"] for n, _ in messages(run, Open)] == ["b1", "b0"]
    assert run.tokens["a"] == expected_tokens()


def test_without_a_decode_replica_any_complete_one_serves_both_roles() -> None:
    fog = split_fog()
    run = Run(fog)
    run.see(view_of(*fog.replicas.values(), states={"d1": DeviceState.LOST}))

    run.submit(generation("a"))
    run.advance(2)

    kinds = [(n["replica"], m.kind) for n, m in messages(run, Reserve)]
    assert kinds == [("p", ReserveKind.BOTH)]
    assert run.tokens["a"] == expected_tokens()


def test_requests_are_served_in_the_order_of_arrival() -> None:
    run = Run(split_fog(slots=1, prefill_slots=1))
    names = [f"r{i}" for i in range(6)]

    for name in names:
        run.submit(generation(name, tokens=4))
    run.advance_until(lambda: len(run.finished) == len(names))

    assert list(run.finished) == names


def test_by_jsq_a_request_stays_with_its_queue_and_holds_up_no_other() -> None:
    fog = ScriptedFog(replica("x", ["x0"], slots=1), replica("y", ["y0"], slots=1))
    run = Run(fog, settings=DispatchSettings(policy=Policy.JSQ))
    for name, tokens in (("a", 200), ("b", 20), ("c", 8), ("d", 8)):
        run.submit(generation(name, tokens=tokens))

    run.advance_until(lambda: len(run.finished) == 4)

    bound = {m.request_id: names["replica"] for names, m in messages(run, Reserve)}
    assert bound == {"a": "x", "b": "y", "c": "x", "d": "y"}
    assert list(run.finished) == ["b", "d", "a", "c"]


def test_by_jsq_a_lost_replicas_queue_joins_the_others() -> None:
    fog = ScriptedFog(replica("x", ["x0"], slots=1), replica("y", ["y0"], slots=1))
    run = Run(fog, settings=DispatchSettings(policy=Policy.JSQ))
    for name in ("a", "b", "c"):
        run.submit(generation(name, tokens=30))
    run.advance(0.2)

    fog.forget("x0")
    run.see(view_of(*fog.replicas.values(), states={"x0": DeviceState.LOST}))
    run.advance_until(lambda: len(run.finished) == 3)

    assert list(run.finished) == ["b", "a", "c"]
    assert run.tokens["c"] == expected_tokens(tokens=30)


def test_only_one_request_asks_for_room_at_a_time() -> None:
    run = Run(split_fog())
    run.fault = lambda message: []

    first = run.submit(generation("a"))
    second = run.submit(generation("b"))

    assert len(sent(first, Reserve)) == 2
    assert sent(second) == []


def test_two_gateways_that_each_hold_one_half_give_way_and_both_finish() -> None:
    run = Run(split_fog(prefill_slots=1, kv_tokens=ROOM_TOKENS), "one", "two")

    # Each master hears of another gateway first, as with messages that cross.
    held: list[Callable[[], None]] = []
    take = run.fog.take
    run.fog.take = lambda publication: held.append(lambda: take(publication))  # type: ignore[method-assign]
    run.submit(generation("a"), "one")
    run.submit(generation("b"), "two")
    run.fog.take = take  # type: ignore[method-assign]
    for index in (0, 3, 1, 2):
        held[index]()
    run.settle()
    assert run.fog.running == {}
    run.advance_until(lambda: len(run.finished) == 2)

    assert run.tokens == {"a": expected_tokens(), "b": expected_tokens()}


def test_a_queued_answer_is_waited_for_and_its_later_grant_is_taken() -> None:
    fog = split_fog(slots=1)
    run = Run(fog, "one", "two")
    run.submit(generation("a", tokens=30), "one")
    run.advance(0.1)

    run.submit(generation("b"), "two")
    run.advance_until(lambda: "b" in run.finished)

    assert run.tokens["b"] == expected_tokens()
    assert run.errors == {}


def test_an_unanswered_reserve_is_repeated_with_growing_gaps() -> None:
    fog = split_fog()
    run = Run(fog)
    fog.silent = {"p0", "d0"}
    times: list[float] = []
    run.fault = lambda message: times.append(run.now) or [0.0]  # type: ignore[func-returns-value]

    run.submit(generation("a"))
    run.advance(8)

    assert sorted(set(times)) == pytest.approx([0.0, 0.5, 1.5, 3.5, 7.5], abs=0.15)


def test_an_unanswered_open_is_repeated_to_the_silent_stage_alone() -> None:
    fog = split_fog()
    run = Run(fog)
    fog.silent = {"d1"}
    run.submit(generation("a"))
    run.settle()
    before = len(fog.received)

    run.advance(0.6)

    assert [n["device"] for n, m in fog.received[before:] if isinstance(m, Open)] == ["d1"]


def test_a_refusal_leads_to_the_other_pair() -> None:
    fog = ScriptedFog(
        replica("fast", ["f0"], tpot_seconds=0.01), replica("slow", ["s0"], tpot_seconds=0.1)
    )
    fog.refusing = {"fast"}
    run = Run(fog)

    run.submit(generation("a"))
    run.advance(3)

    assert run.tokens["a"] == expected_tokens()
    assert {n["replica"] for n, _ in messages(run, Open)} == {"slow"}


def test_a_request_that_every_replica_refuses_fails_with_the_reason() -> None:
    fog = ScriptedFog(replica("b", ["b0"]))
    fog.refusing = {"b"}
    run = Run(fog, settings=DispatchSettings(max_losses=3))

    run.submit(generation("a"))
    run.advance(20)

    assert isinstance(run.errors["a"], GenerationFailedError)
    assert "refused by b0" in str(run.errors["a"])


@pytest.mark.parametrize(
    ("phase", "device"),
    [(Phase.PREFILL, "p1"), (Phase.HANDOVER, "p0"), (Phase.HANDOVER, "d2"), (Phase.DECODE, "d1")],
)
def test_a_lost_device_sends_the_request_on_with_its_tokens(phase: Phase, device: str) -> None:
    fog = ScriptedFog(
        replica("p", ["p0", "p1"], Role.PREFILL),
        replica("d", ["d0", "d1", "d2"], Role.DECODE),
        replica("spare", ["s0", "s1"], Role.BOTH, prefill_rate=10, tpot_seconds=1.0),
    )
    run = Run(fog)
    run.submit(generation("a", tokens=20))
    reach(run, "a", phase)
    had = len(run.tokens["a"])
    fog.silent = {device}

    run.see(view_of(*fog.replicas.values(), states={device: DeviceState.LOST}))
    run.advance(5)

    second = [m for _, m in messages(run, Open) if m.attempt == 2]
    assert {m.num_generated_tokens for m in second} == {had}
    assert run.tokens["a"] == expected_tokens(tokens=20)
    released = {n["device"] for n, m in messages(run, Release) if m.attempt == 1}
    assert released == {"p0", "p1", "d0", "d1", "d2"} - {device}


def report(run: Run, seconds: float) -> None:
    """Let time pass; every device that is not silent reports every two seconds."""
    end = run.now + seconds
    while run.now < end:
        for one in run.fog.replicas.values():
            for stage in one.stages:
                if stage.device not in run.fog.silent:
                    run.dispatcher.reported(stage.device, run.now)
        run.advance(min(2.0, end - run.now))


@pytest.mark.parametrize(
    ("phase", "device"),
    [
        (Phase.RESERVING, "p0"),
        (Phase.RESERVING, "d0"),
        (Phase.PREFILL, "p0"),
        (Phase.PREFILL, "p1"),
        (Phase.HANDOVER, "d0"),
        (Phase.DECODE, "d0"),
        (Phase.DECODE, "d1"),
    ],
)
def test_a_device_that_falls_silent_is_left_within_five_seconds(phase: Phase, device: str) -> None:
    # Frozen, or cut off: it still counts as ready, and its master says nothing either.
    fog = ScriptedFog(
        replica("p", ["p0", "p1"], Role.PREFILL),
        replica("d", ["d0", "d1", "d2"], Role.DECODE),
        replica("spare", ["s0", "s1"], Role.BOTH, prefill_rate=10, tpot_seconds=1.0),
    )
    run = Run(fog)
    report(run, 10)
    if phase is Phase.RESERVING:
        fog.silent = {device}
    run.submit(generation("a", tokens=200))
    if phase is not Phase.RESERVING:
        reach(run, "a", phase)
        fog.silent = {device}
    had = len(run.tokens["a"])

    report(run, 5.5)

    assert len(run.tokens["a"]) > had
    report(run, 20)
    assert run.tokens["a"] == expected_tokens(tokens=200)


def test_others_are_not_bound_to_a_silent_device_while_there_is_a_choice() -> None:
    fog = ScriptedFog(
        replica("fast", ["f0"], Role.BOTH, tpot_seconds=0.01),
        replica("slow", ["s0"], Role.BOTH, tpot_seconds=1.0, prefill_rate=10),
    )
    run = Run(fog)
    report(run, 10)
    fog.silent = {"f0"}
    report(run, 4)

    run.submit(generation("a"))
    run.advance(2)

    assert run.tokens["a"] == expected_tokens()
    assert {n["device"] for n, _ in messages(run, Reserve)} == {"s0"}


def test_a_silent_device_that_nobody_can_replace_is_waited_for() -> None:
    fog = ScriptedFog(replica("only", ["a0", "a1"], Role.BOTH))
    run = Run(fog)
    report(run, 10)
    run.submit(generation("a", tokens=50))
    reach(run, "a", Phase.DECODE)
    fog.silent = {"a1"}
    report(run, 8)

    fog.silent = set()
    report(run, 6)

    assert run.tokens["a"] == expected_tokens(tokens=50)
    assert {m.attempt for _, m in messages(run, Open)} == {1}


def test_a_slow_answer_of_devices_that_report_is_not_given_up() -> None:
    fog = ScriptedFog(
        replica("r", ["r0"], Role.BOTH), replica("spare", ["s0"], Role.BOTH, tpot_seconds=1.0)
    )
    run = Run(fog)
    report(run, 10)
    run.submit(generation("a", tokens=50))
    reach(run, "a", Phase.DECODE)
    paused = run.fog.running.copy()
    run.fog.running.clear()
    report(run, 10)

    run.fog.running.update(paused)
    report(run, 6)

    assert run.tokens["a"] == expected_tokens(tokens=50)
    assert {m.attempt for _, m in messages(run, Open)} == {1}


def test_a_device_that_was_started_again_counts_as_lost() -> None:
    fog = ScriptedFog(replica("b", ["b0", "b1"]))
    run = Run(fog)
    run.submit(generation("a"))
    reach(run, "a", Phase.DECODE)
    fog.forget("b0", "b1")

    run.see(view_of(*fog.replicas.values(), session=2))
    run.advance(2)

    assert run.tokens["a"] == expected_tokens()
    assert {m.attempt for _, m in messages(run, Open)} == {1, 2}


def test_after_the_second_token_a_lost_prefill_device_changes_nothing() -> None:
    fog = split_fog()
    run = Run(fog)
    run.submit(generation("a", tokens=20))
    reach(run, "a", Phase.DECODE)

    run.see(view_of(*fog.replicas.values(), states={"p1": DeviceState.LOST}))
    run.advance(3)

    assert run.tokens["a"] == expected_tokens(tokens=20)
    assert {m.attempt for _, m in messages(run, Reserve)} == {1}


def test_a_replica_that_left_the_plan_drains_and_gets_nothing_new() -> None:
    old, new = replica("old", ["o0", "o1"]), replica("new", ["n0", "n1"])
    fog = ScriptedFog(old, new)
    run = Run(fog)
    run.see(view_of(old))
    run.submit(generation("a", tokens=30))
    reach(run, "a", Phase.DECODE)

    view = view_of(old).with_plan(plan(new, version=2))
    for name in ("n0", "n1"):
        view = view.with_status(name, view_of(new).devices[name].status, 0.0)  # type: ignore[arg-type]
    run.see(view)
    run.submit(generation("b"))
    run.advance(3)

    opened = {(n["replica"], m.request_id) for n, m in messages(run, Open)}
    assert opened == {("old", "a"), ("new", "b")}
    assert run.tokens == {"a": expected_tokens(tokens=30), "b": expected_tokens()}


@pytest.mark.parametrize("kind", [LossKind.STALLED, LossKind.PREEMPTED])
def test_a_request_that_a_master_gives_up_goes_on_before_those_that_wait(kind: LossKind) -> None:
    fog = split_fog(slots=1, prefill_slots=1)
    run = Run(fog)
    for name in ("a", "b", "c"):
        run.submit(generation(name, tokens=20))
    key = reach(run, "a", Phase.DECODE)

    fog.lose(key, kind, "d0")
    run.advance_until(lambda: len(run.finished) == 3)

    # Prefill of the second one had begun.
    assert list(run.finished) == ["b", "a", "c"]
    assert run.tokens["a"] == expected_tokens(tokens=20)


def test_a_row_that_failed_on_the_nodes_fails_its_request_alone() -> None:
    fog = split_fog()
    run = Run(fog)
    run.submit(generation("a"))
    run.submit(generation("b"))
    key = reach(run, "a", Phase.DECODE)

    fog.lose(key, LossKind.FAILED, "d0")
    run.advance(3)

    assert isinstance(run.errors["a"], GenerationFailedError)
    assert run.tokens["b"] == expected_tokens()


def test_a_loss_counts_only_from_the_masters_of_the_attempt() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))
    key = reach(run, "a", Phase.DECODE)

    for sender in ("d1", "p0", "stranger"):  # Prefill has no say once decode has begun.
        lost = Lost(request_id="a", attempt=key.attempt, kind=LossKind.FAILED, reason="")
        run.apply(run.dispatcher.handle(sender, lost, run.now))
    run.advance(2)

    assert run.finished == {"a": "length"}
    assert run.dispatcher.dropped["loss by a stranger"] == 3


def test_a_request_that_waits_long_for_a_row_is_not_given_up() -> None:
    fog = split_fog(slots=1)
    run = Run(fog, settings=DispatchSettings(silence_seconds=6.0, patience=0.0))
    run.submit(generation("a", tokens=600))
    run.submit(generation("b"))

    run.advance_until(lambda: "b" in run.finished)

    assert list(run.finished) == ["a", "b"]
    assert {m.attempt for _, m in messages(run, Reserve)} == {1}
    assert run.tokens["b"] == expected_tokens()


def test_prompts_are_prefilled_while_others_wait_for_a_row_until_two_do() -> None:
    run = Run(split_fog(slots=1, prefill_slots=1))
    names = ["a", "b", "c", "d"]
    for name in names:
        run.submit(generation(name, tokens=100))

    run.advance(1)

    assert [run.dispatcher.phase(name) for name in names] == [*[Phase.DECODE] * 3, Phase.QUEUED]
    assert [len(run.tokens[name]) for name in names[1:]] == [1, 1, 0]


def test_a_first_token_that_was_lost_is_asked_for_when_its_request_waits_for_a_row() -> None:
    run = Run(split_fog(slots=1))
    run.submit(generation("a", tokens=100))
    reach(run, "a", Phase.DECODE)

    def lose_tokens_of_b(message: object) -> list[float]:
        is_hit = isinstance(message, Tokens) and message.rows[0].request_id == "b"
        return [] if is_hit else [0.0]

    run.fault = lose_tokens_of_b
    run.submit(generation("b"))
    run.advance_until(lambda: any(m.request_id == "b" for _, m in messages(run, Resend)), 1)
    run.fault = perfect
    run.advance_until(lambda: "b" in run.finished)

    assert run.tokens["b"] == expected_tokens()


def test_only_the_decode_master_says_that_a_request_waits() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))
    key = reach(run, "a", Phase.HANDOVER)
    waiting = Waiting(request_id=key.request_id, attempt=key.attempt)

    run.apply(run.dispatcher.handle("p0", waiting, run.now))
    assert run.dispatcher.phase("a") is Phase.HANDOVER
    run.apply(run.dispatcher.handle("d0", waiting, run.now))
    assert run.dispatcher.phase("a") is Phase.DECODE


def test_after_too_many_lost_attempts_a_request_fails() -> None:
    fog = split_fog()
    run = Run(fog, settings=DispatchSettings(max_losses=2))
    run.submit(generation("a"))

    for _ in range(3):
        fog.lose(reach(run, "a", Phase.HANDOVER), LossKind.STALLED, "d0")
        run.settle()

    assert "after 3 lost attempts" in str(run.errors["a"])


def test_preemption_with_progress_does_not_wear_a_request_out() -> None:
    fog = split_fog()
    run = Run(fog, settings=DispatchSettings(max_losses=2))
    run.submit(generation("a", tokens=40))

    for _ in range(6):
        fog.lose(reach(run, "a", Phase.DECODE), LossKind.PREEMPTED, "d0")
        run.settle()
    run.advance(5)

    assert run.tokens["a"] == expected_tokens(tokens=40)


def test_tokens_of_a_stranger_an_old_attempt_or_twice_are_not_delivered() -> None:
    run = Run(split_fog())
    run.submit(generation("a", tokens=50))
    key = reach(run, "a", Phase.DECODE)
    had = list(run.tokens["a"])

    for sender, attempt, index in [
        ("d1", key.attempt, len(had)),
        ("p1", key.attempt, len(had)),
        ("d2", key.attempt - 1, len(had)),
        ("d2", key.attempt, len(had) - 1),
    ]:
        rows = [TokenRow("a", attempt, index, 999)]
        run.apply(run.dispatcher.handle(sender, Tokens(rows=rows), run.now))

    assert run.tokens["a"] == had


def test_tokens_out_of_order_are_delivered_in_order_and_the_missing_one_is_asked_for() -> None:
    run = Run(split_fog())
    run.submit(generation("a", tokens=50))
    key = reach(run, "a", Phase.DECODE)
    had = len(run.tokens["a"])
    wanted = expected_tokens(tokens=50)

    later = Tokens(rows=[TokenRow("a", key.attempt, had + 1, wanted[had + 1])])
    actions = run.dispatcher.handle("d2", later, run.now)
    assert [(n["device"], m.index) for n, m in sent(actions, Resend)] == [("d2", had)]
    assert actions.outcomes == []
    again = run.dispatcher.handle("d2", later, run.now)
    assert sent(again, Resend) == []
    missing = Tokens(rows=[TokenRow("a", key.attempt, had, wanted[had])])
    run.apply(run.dispatcher.handle("d2", missing, run.now))

    assert run.tokens["a"] == wanted[: had + 2]


def test_a_quiet_request_asks_for_its_next_token_and_is_given_up_after_long_silence() -> None:
    fog = split_fog()
    run = Run(fog)
    run.submit(generation("a", tokens=50))
    reach(run, "a", Phase.DECODE)
    had = len(run.tokens["a"])
    fog.silent = {"d2"}

    run.advance(2.2)
    assert [m.index for _, m in messages(run, Resend)] == [had]
    fog.running.clear()
    run.advance(19)
    fog.silent = set()
    run.advance(10)

    assert run.tokens["a"] == expected_tokens(tokens=50)
    assert max(m.attempt for _, m in messages(run, Open)) == 2


def test_a_long_prompt_may_take_its_time() -> None:
    slow = replica("b", ["b0"], prefill_rate=10.0)
    fog = ScriptedFog(slow)
    run = Run(fog)
    fog.step = lambda: None  # type: ignore[method-assign]

    run.submit(generation("a", prompt=1000))  # 100 s by the plan.
    run.advance(120)

    assert {m.attempt for _, m in messages(run, Open)} == {1}


@pytest.mark.parametrize("phase", [Phase.RESERVING, Phase.PREFILL, Phase.DECODE])
def test_cancelling_releases_both_masters_and_no_token_follows(phase: Phase) -> None:
    fog = split_fog()
    run = Run(fog)
    if phase is Phase.RESERVING:
        fog.silent = {"d0"}
    run.submit(generation("a"))
    reach(run, "a", phase)
    had = len(run.tokens["a"])

    actions = run.dispatcher.cancel("a", run.now)
    run.apply(actions)
    run.advance(3)

    assert [n["device"] for n, _ in sent(actions, Release)] == ["p0", "d0"]
    assert len(run.tokens["a"]) == had
    assert run.dispatcher.cancel("a", run.now).publications == []
    assert not any(fog.held.values())


def test_late_events_of_an_ended_attempt_are_answered_by_release_once_a_second() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))
    key = reach(run, "a", Phase.DECODE)
    run.apply(run.dispatcher.cancel("a", run.now))
    run.advance(3)
    late = Tokens(rows=[TokenRow("a", key.attempt, 3, 1)])

    answers = [
        [n["device"] for n, _ in sent(run.dispatcher.handle("d2", late, run.now + t), Release)]
        for t in (0.0, 0.5, 1.1)
    ]

    assert answers == [["p0", "d0"], [], ["p0", "d0"]]


@pytest.mark.parametrize(
    "event",
    [
        Tokens(rows=[TokenRow("ghost", 1, 0, 1)]),
        Opened(request_id="ghost", attempt=1, replica="d", stage=0),
        Waiting(request_id="ghost", attempt=1),
        Granted(
            request_id="ghost",
            attempt=1,
            replica="d",
            kind=ReserveKind.DECODE,
            state=GrantState.GRANTED,
        ),
    ],
)
def test_what_a_gateway_never_asked_for_is_released(
    event: Tokens | Opened | Waiting | Granted,
) -> None:
    run = Run(split_fog())

    actions = run.dispatcher.handle("d0", event, 1.0)

    assert [(n["device"], m.key) for n, m in sent(actions)] == [("d0", RequestKey("ghost", 1))]


def test_a_grant_that_expired_before_open_came_is_asked_for_again() -> None:
    fog = split_fog()
    run = Run(fog)
    run.submit(generation("a"))
    key = reach(run, "a", Phase.PREFILL)

    fog.lose(key, LossKind.STALLED, "p0")
    run.advance(3)

    assert run.tokens["a"] == expected_tokens()


def test_a_full_queue_refuses_with_an_estimate() -> None:
    run = Run(split_fog(slots=1, prefill_slots=1), settings=DispatchSettings(queue_limit=2))
    for name in ("a", "b", "c"):
        run.submit(generation(name))
        run.settle()

    with pytest.raises(QueueFullError, match="2 requests wait already") as raised:
        run.submit(generation("d"))

    assert raised.value.retry_after_seconds >= 1
    assert run.dispatcher.num_waiting == 2


@pytest.mark.parametrize(
    ("context_tokens", "kv_tokens", "largest"), [(100, 4096, 100), (4096, 80, 80)]
)
def test_a_request_that_can_never_fit_is_refused_with_the_largest_that_does(
    context_tokens: int, kv_tokens: int, largest: int
) -> None:
    one = replica("b", ["b0"], kv_tokens=kv_tokens)
    run = Run(ScriptedFog(one))
    run.see(FogView().with_plan(plan(one, context_tokens=context_tokens)))

    with pytest.raises(TooLargeError, match=f"has {largest}") as raised:
        run.submit(generation("a", prompt=70, tokens=40))

    assert raised.value.largest_tokens == largest == run.dispatcher.largest_request_tokens()


def test_a_request_too_large_for_what_is_complete_now_does_not_hold_up_smaller_ones() -> None:
    small, large = replica("s", ["s0"], kv_tokens=64), replica("l", ["l0"], kv_tokens=512)
    fog = ScriptedFog(small, large)
    run = Run(fog)
    run.see(view_of(small, large, states={"l0": DeviceState.LOST}))

    run.submit(generation("big", prompt=100))
    run.submit(generation("little"))
    run.advance(2)
    assert list(run.finished) == ["little"]
    run.see(view_of(small, large))
    run.advance(2)

    assert list(run.finished) == ["little", "big"]


def test_a_request_that_waits_for_room_is_not_overtaken_by_smaller_ones() -> None:
    run = Run(ScriptedFog(replica("b", ["b0"], kv_tokens=256)))
    run.submit(generation("first", prompt=150, tokens=20))
    run.settle()

    run.submit(generation("large", prompt=150, tokens=20))
    run.submit(generation("small", prompt=3, tokens=2))
    run.advance_until(lambda: len(run.finished) == 3)

    opened = [m.request_id for _, m in messages(run, Open)]
    assert opened == ["first", "large", "small"]


def test_while_no_replica_is_complete_requests_wait_and_then_fail_by_name_of_the_device() -> None:
    fog = ScriptedFog(replica("b", ["b0", "b1"]))
    run = Run(fog, settings=DispatchSettings(queue_seconds=10))
    run.see(view_of(*fog.replicas.values(), states={"b1": DeviceState.LOST}))
    run.submit(generation("a"))
    run.advance(9)
    assert run.errors == {}

    run.advance(2)

    assert isinstance(run.errors["a"], NotReadyError)
    assert "no answer from b1" in str(run.errors["a"])


def test_a_request_that_waited_for_a_plan_is_served_when_it_comes() -> None:
    fog = split_fog()
    run = Run(fog)
    run.see(FogView())
    run.submit(generation("a"))
    run.advance(5)

    run.see(view_of(*fog.replicas.values()))
    run.advance(2)

    assert run.tokens["a"] == expected_tokens()


@pytest.mark.parametrize("is_served", [True, False])
def test_a_deadline_ends_a_request_wherever_it_is(is_served: bool) -> None:
    fog = split_fog()
    run = Run(fog)
    if not is_served:
        run.see(FogView())

    run.submit(generation("a", tokens=500, deadline=3))
    run.advance(4)

    assert isinstance(run.errors["a"], DeadlineExceededError)
    assert bool(run.tokens["a"]) is is_served
    assert not any(fog.held.values())


def test_a_generation_without_prompt_or_with_an_id_in_use_is_a_mistake_of_the_caller() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))

    with pytest.raises(ValueError, match="in use"):
        run.submit(generation("a"))
    with pytest.raises(ValueError, match="needs a prompt"):
        run.submit(generation("b", prompt=0))


def test_nothing_is_left_to_do_when_all_requests_have_ended() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))
    run.advance(3)
    assert not run.dispatcher.is_idle  # Late events are still expected.

    run.advance(61)

    assert run.dispatcher.is_idle


def pair_of_each() -> list[Replica]:
    return [
        replica("p1", ["a", "b"], Role.PREFILL, slots=2),
        replica("d1", ["c", "d"], Role.DECODE, slots=2),
        replica("b1", ["e", "f", "g"], Role.BOTH, slots=2),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_lost_repeated_late_and_reordered_messages_change_no_token_and_hang_no_request(
    seed: int,
) -> None:
    run = Run(ScriptedFog(*pair_of_each()), "one", "two", fault=Faults(seed))
    names = [f"r{i}" for i in range(16)]

    for index, name in enumerate(names):
        run.submit(generation(name, prompt=3 + index, tokens=12), ("one", "two")[index % 2])
    run.advance_until(lambda: len(run.finished) + len(run.errors) == len(names), limit=240)
    run.fault = lambda message: [0.0]
    run.advance(30)

    assert run.errors == {}
    for index, name in enumerate(names):
        assert run.tokens[name] == expected_tokens(3 + index, 12)
    assert run.fog.running == {}

"""What a gateway knows of kept KV: whom it asks, what it tells stages, where requests go."""

from dataclasses import replace

import pytest

from broker.control import DeviceState, DeviceStatus
from broker.events import LossKind
from broker.plan import Role
from broker.prefix import Prefix
from broker.work import Open, Reserve, ReserveKind
from gateway import prefixes as module
from gateway.attempt import Request
from gateway.dispatch import DispatchSettings
from gateway.fogview import FogView
from gateway.lifecycle import Phase
from gateway.prefixes import Prefixes
from gateway.routing import Demand, Load, choose_pair, finish_seconds, pairs
from tests.gateway.scripted_fog import (
    Run,
    ScriptedFog,
    expected_tokens,
    generation,
    replica,
    view_of,
)

PROMPT = 100  # Three whole chunks of 32.


def split_fog() -> ScriptedFog:
    return ScriptedFog(
        replica("p", ["p0", "p1"], Role.PREFILL), replica("d", ["d0", "d1"], Role.DECODE)
    )


def asked(run: Run, name: str) -> list[Reserve]:
    return [m for _, m in run.fog.received if isinstance(m, Reserve) and m.request_id == name]


def opened(run: Run, name: str, attempt: int = 1) -> list[Open]:
    return [
        m
        for _, m in run.fog.received
        if isinstance(m, Open) and (m.request_id, m.attempt) == (name, attempt)
    ]


def prefixes(run: Run, name: str) -> set[Prefix | None]:
    return {m.prefix for m in asked(run, name)} | {m.prefix for m in opened(run, name)}


def older(view: FogView, device: str, protocol: str = "1.0") -> FogView:
    status = DeviceStatus(state=DeviceState.READY, session=1, protocol=protocol)
    return view.with_status(device, status, 0.0)


def demand(known: int = PROMPT) -> Demand:
    return Demand(known_tokens=known, max_tokens=50, expected_tokens=50.0)


def test_every_stage_hears_how_the_prompt_begins_and_what_the_masters_have_of_it() -> None:
    fog = split_fog()
    fog.kept = {"p": 64, "d": 32}
    run = Run(fog)

    run.submit(generation("a", prompt=PROMPT))
    run.advance(2)

    assert [m.prefix.num_tokens for m in asked(run, "a") if m.prefix is not None] == [96, 96]
    messages = opened(run, "a")
    assert {(m.cached_tokens, m.held_tokens) for m in messages} == {(64, 32)}
    assert {m.prefix for m in messages} == {asked(run, "a")[0].prefix}
    assert run.tokens["a"] == expected_tokens(PROMPT)


def test_in_one_replica_for_both_nothing_is_held_elsewhere() -> None:
    fog = ScriptedFog(replica("b", ["b0", "b1"], Role.BOTH))
    fog.kept = {"b": 64}
    run = Run(fog)

    run.submit(generation("a", prompt=PROMPT))
    run.advance(2)

    assert {(m.cached_tokens, m.held_tokens) for m in opened(run, "a")} == {(64, 0)}


def test_the_last_known_position_is_never_asked_for() -> None:
    run = Run(split_fog())

    run.submit(generation("a", prompt=96))
    run.advance(2)

    assert [m.prefix.num_tokens for m in asked(run, "a") if m.prefix is not None] == [64, 64]
    assert {m.prefix.num_tokens for m in opened(run, "a") if m.prefix is not None} == {96}


def test_a_master_that_says_more_than_was_asked_is_taken_at_what_was_asked() -> None:
    request = Request(generation("a", prompt=PROMPT), 0, 0.0)
    request.prefix = Prefixes(is_on=True).of(request, view_of(replica("b", ["b0"])))

    request.take_grant("b", 0, 1000)
    assert request.held == {"b": 96}
    request.take_grant("b", 0, 70)
    assert request.held == {"b": 64}


@pytest.mark.parametrize("device", ["p1", "d0"])
def test_with_a_device_of_an_earlier_version_nothing_is_kept(device: str) -> None:
    fog = split_fog()
    fog.kept = {"p": 64, "d": 64}
    run = Run(fog)
    run.see(older(view_of(*fog.replicas.values()), device))

    run.submit(generation("a", prompt=PROMPT))
    run.advance(2)

    assert prefixes(run, "a") == {None}
    assert {(m.cached_tokens, m.held_tokens) for m in opened(run, "a")} == {(0, 0)}
    assert run.finished == {"a": "length"}


@pytest.mark.parametrize(
    ("protocol", "keeps"), [("1.0", False), ("1.1", True), ("1.10", True), ("x", False)]
)
def test_versions_are_compared_as_numbers(protocol: str, keeps: bool) -> None:
    one = replica("b", ["b0"])
    view = older(view_of(one), "b0", protocol)
    request = Request(generation("a", prompt=PROMPT), 0, 0.0)

    assert (Prefixes(is_on=True).bound(request, view, [one]) is not None) is keeps


def test_switched_off_nothing_is_asked_for_or_kept() -> None:
    run = Run(split_fog(), settings=DispatchSettings(prefix_cache=False))

    run.submit(generation("a", prompt=PROMPT))
    run.advance(2)

    assert prefixes(run, "a") == {None}


def test_what_was_not_there_after_all_costs_no_loss_and_is_not_asked_for_again() -> None:
    fog = split_fog()
    fog.kept = {"p": 64, "d": 32}
    run = Run(fog, settings=DispatchSettings(max_losses=0))
    run.submit(generation("a", prompt=PROMPT))
    run.advance_until(lambda: run.dispatcher.phase("a") is Phase.PREFILL)

    key = next(iter(run.fog.running))
    run.fog.lose(key, LossKind.UNCACHED, "d0")
    run.advance(2)

    assert run.tokens["a"] == expected_tokens(PROMPT)
    again = opened(run, "a", attempt=2)
    assert {(m.cached_tokens, m.held_tokens) for m in again} == {(0, 0)}
    assert all(m.prefix is not None for m in again), "it is kept for later ones"
    counts = run.dispatcher.measures.body([], run.now)["prefix_cache"]
    assert (counts["refusals"], counts["hits"]) == (1, 0)


def test_the_first_token_says_how_much_of_the_prompt_was_kept() -> None:
    fog = split_fog()
    fog.kept = {"p": 64}
    run = Run(fog)
    cached: list[int] = []
    run.on_token = lambda token: cached.append(token.cached_tokens)

    run.submit(generation("a", prompt=PROMPT))
    run.advance(2)

    assert cached == [64, *[0] * 7]
    counts = run.dispatcher.measures.body([], run.now)["prefix_cache"]
    assert counts == {
        "prompts": 1, "hits": 1, "prompt_tokens": PROMPT, "cached_tokens": 64, "refusals": 0,
    }  # fmt: skip


def test_a_conversation_goes_back_to_the_replica_that_has_it() -> None:
    slow = replica("slow", ["s0"], slots=1, prefill_rate=10000.0)
    fog = ScriptedFog(replica("fast", ["f0"], slots=1, prefill_rate=20000.0), slow)
    run = Run(fog)
    run.submit(replace(generation("other", tokens=2), prompt_ids=tuple(range(2, 1002))))
    run.submit(generation("a", prompt=1000, tokens=2))
    run.advance(2)

    run.submit(generation("b", prompt=1009, tokens=2))
    run.settle()

    bound = {m.request_id: n["replica"] for n, m in fog.received if isinstance(m, Reserve)}
    assert bound == {"other": "fast", "a": "slow", "b": "slow"}


def load(name: str, role: Role = Role.BOTH, *, held: int = 0, rate: float = 1000.0) -> Load:
    return Load(replica(name, [f"{name}0"], role, prefill_rate=rate), held_tokens=held)


def test_a_kept_beginning_counts_for_what_it_saves() -> None:
    fresh, kept = load("b"), load("b", held=64)
    rest = Demand(PROMPT - 64, 50, 50.0)

    assert finish_seconds(pairs([kept])[0], demand()) == finish_seconds(pairs([fresh])[0], rest)


def test_a_replica_that_decodes_may_compute_the_rest_of_what_it_has_kept() -> None:
    prefill, decode = load("p", Role.PREFILL), load("d", Role.DECODE, rate=500.0)

    def chosen(held: int) -> str:
        pair = choose_pair([prefill, replace(decode, held_tokens=held)], demand(1000))
        assert pair is not None
        return pair.prefill.replica.id

    assert chosen(0) == "p"
    assert chosen(320) == "p", "the other is faster from the beginning"
    assert chosen(960) == "d"


def test_its_master_is_asked_for_room_for_both() -> None:
    fog = split_fog()
    run = Run(fog)
    run.submit(generation("a", prompt=1000, tokens=2))
    run.advance(2)
    fog.kept = {"d": 992, "p": 0}
    # Busy with another prompt, the prefill replica would take longer than the rest does.
    run.submit(replace(generation("b"), prompt_ids=tuple(range(2, 1500))))
    run.submit(generation("c", prompt=1010))
    run.settle()

    kinds = {m.kind for m in asked(run, "c")}
    assert kinds == {ReserveKind.BOTH}
    assert {m.cached_tokens for m in opened(run, "c")} == {992}


def test_what_a_replica_has_kept_is_believed_until_its_master_says_otherwise() -> None:
    one = replica("b", ["b0"])
    view, known = view_of(one), Prefixes(is_on=True)
    request = Request(generation("a", prompt=PROMPT), 0, 0.0)
    prefix = known.of(request, view)
    assert prefix is not None

    def held() -> int:
        (found,) = known.loads([Load(one)], request, view)
        return found.held_tokens

    known.learn("b", prefix, 96)
    assert held() == 96
    known.learn("b", prefix, 32)
    assert held() == 32
    request.skips_cache = True
    assert held() == 0


def test_the_oldest_knowledge_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CHUNKS", 4)
    one = replica("b", ["b0"])
    view, known = view_of(one), Prefixes(is_on=True)
    found = []
    for start in (1, 500):
        ids = tuple(range(start, start + PROMPT))
        request = Request(replace(generation("a"), prompt_ids=ids), 0, 0.0)
        prefix = known.of(request, view)
        assert prefix is not None
        known.learn("b", prefix, 96)
        found.append(request)

    assert [known.loads([Load(one)], each, view)[0].held_tokens for each in found] == [32, 96]

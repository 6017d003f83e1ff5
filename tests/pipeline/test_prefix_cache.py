"""A chat's next turn goes on from what its last one left: the same tokens, less work."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import pytest

from broker.events import LossKind
from broker.placement import kv_reserved_tokens
from broker.plan import Replica, Role
from broker.work import Sampling
from nodes.executor import StageExecutor
from nodes.outgoing import Timers
from tests.support.caching_fog import CachingFog
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.pipeline import GATEWAY, make_replica, open_keys
from tests.support.stages import MemoryTensors, build_stages, generate, load_weights

CHUNK: Final = 16
ANSWER: Final = 12
OPENING: Final = 70
SAMPLED: Final = Sampling(temperature=0.8, seed=3, ignore_eos=True)
# Prefill and decode replica, by their place below; the same one twice does both.
PAIRS: Final = {"split": (0, 1), "crossed": (1, 0), "cut in two": (2, 2), "whole": (3, 3)}


def said(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 259) for _ in range(length)]


def fog_of(family: str = "qwen3", **options: Any) -> CachingFog:
    config = FAMILIES[family]
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL, kv_tokens=1024),
        make_replica((1, 3, 5), ("c", "d", "e"), Role.DECODE, kv_tokens=1024),
        make_replica((3, 5), ("f", "g"), Role.BOTH, kv_tokens=1024),
        make_replica((5,), ("h",), Role.BOTH, kv_tokens=1024),
    ]
    source = MemoryTensors(random_tensors(config))
    return CachingFog(config, source, replicas, chunk_tokens=CHUNK, **options)


class Chat:
    """One conversation with a fog; each turn's prompt is all that was said before, and more."""

    def __init__(self, fog: CachingFog, name: str = "chat", sampling: Sampling = SAMPLED) -> None:
        self.fog, self.name, self.sampling = fog, name, sampling
        self.turns: list[tuple[tuple[int, ...], list[int]]] = []

    def turn(self, more: Sequence[int], prefill: Replica, decode: Replica) -> str:
        """Ask, and wait until the answer is there and everybody has heard of its end."""
        name = self.ask(more, prefill, decode)
        self.fog.run()
        self.note(name)
        for _ in range(20):
            self.fog.step()
        return name

    def ask(self, more: Sequence[int], prefill: Replica, decode: Replica) -> str:
        ids = [*self.turns[-1][0], *self.turns[-1][1]] if self.turns else []
        name = f"{self.name}-{len(self.turns)}"
        self.fog.ask(
            name, [*ids, *more], prefill, decode, max_tokens=ANSWER, sampling=self.sampling
        )
        return name

    def note(self, name: str) -> None:
        answer = self.fog.answers[name]
        self.turns.append((answer.prompt_ids, list(answer.tokens)))


@cache
def whole(family: str) -> list[StageExecutor]:
    return build_stages(load_weights(FAMILIES[family]), chunk_tokens=CHUNK)


def alone(family: str, ids: Sequence[int]) -> list[int]:
    return generate(whole(family), ids, ANSWER, SAMPLED)


def check(chat: Chat, family: str = "qwen3") -> None:
    for ids, tokens in chat.turns:
        assert tokens == alone(family, ids)


@pytest.mark.parametrize(("prefill", "decode"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "gemma3"])
def test_a_second_turn_has_the_tokens_of_a_fog_that_keeps_nothing(
    family: str, prefill: int, decode: int
) -> None:
    fog = fog_of(family)
    chat, pair = Chat(fog), (fog.replicas[prefill], fog.replicas[decode])
    chat.turn(said(OPENING, 1), *pair)
    second = chat.turn(said(9, 2), *pair)
    third = chat.turn(said(30, 3), *pair)

    check(chat, family)
    assert fog.cached[second] == OPENING // CHUNK * CHUNK
    assert fog.cached[third] == (OPENING + ANSWER + 9) // CHUNK * CHUNK
    assert not fog.rejected


@pytest.mark.parametrize(("family", "kv_format"), [("qwen3", "float32"), ("qwen2", "bfloat16")])
def test_in_int8_kept_kv_changes_no_bit_also_in_a_disturbed_network(
    family: str, kv_format: str
) -> None:
    def turns(*, is_on: bool) -> list[list[int]]:
        fog = fog_of(
            family,
            weights="int8",
            kv_format=kv_format,
            disturb=random.Random(4),
            timers=Timers(repeat=0.2, repeats=60),
        )
        fog.is_on = is_on
        pairs = [(fog.replicas[p], fog.replicas[d]) for p, d in PAIRS.values()]
        chats = [Chat(fog, f"chat-{place}") for place in range(len(pairs))]
        for turn, length in enumerate((OPENING, 25)):
            names = [
                chat.ask(said(length, 10 * turn + place), *pairs[place])
                for place, chat in enumerate(chats)
            ]
            fog.run()
            for chat, name in zip(chats, names, strict=True):
                chat.note(name)
            for _ in range(100):  # Until everybody has heard of the end, lost messages too.
                fog.step()
        assert any(fog.cached.values()) is is_on
        return [tokens for chat in chats for _, tokens in chat.turns]

    assert turns(is_on=True) == turns(is_on=False)


def test_only_what_is_new_is_computed_and_only_what_is_missing_is_sent() -> None:
    fog = fog_of()
    chat, pair = Chat(fog), (fog.replicas[0], fog.replicas[1])
    chat.turn(said(OPENING, 1), *pair)
    assert fog.computed == OPENING
    assert fog.sent == 5 * OPENING

    fog.computed = fog.sent = 0
    name = chat.turn(said(9, 2), *pair)

    kept = OPENING // CHUNK * CHUNK
    assert fog.cached[name] == fog.held[name] == kept
    assert fog.computed == OPENING + ANSWER + 9 - kept
    assert fog.sent == 5 * fog.computed


def test_what_the_decode_replica_does_not_have_is_sent_from_what_prefill_has_kept() -> None:
    fog = fog_of()
    chat = Chat(fog)
    chat.turn(said(OPENING, 1), fog.replicas[0], fog.replicas[1])
    fog.sent = 0

    name = chat.turn(said(9, 2), fog.replicas[0], fog.replicas[3])

    check(chat)
    assert (fog.cached[name], fog.held[name]) == (OPENING // CHUNK * CHUNK, 0)
    assert fog.sent == 5 * (OPENING + ANSWER + 9)


def test_a_decode_replica_computes_the_rest_of_a_prompt_that_it_was_sent() -> None:
    fog = fog_of()
    chat = Chat(fog)
    chat.turn(said(OPENING, 1), fog.replicas[0], fog.replicas[1])
    fog.computed = fog.sent = 0

    name = chat.turn(said(9, 2), fog.replicas[1], fog.replicas[1])

    check(chat)
    assert fog.cached[name] == OPENING // CHUNK * CHUNK
    assert fog.computed == OPENING + ANSWER + 9 - fog.cached[name]
    assert fog.sent == 0


def test_prompts_with_the_same_system_prompt_share_it() -> None:
    fog = fog_of()
    system, pair = said(3 * CHUNK + 5, 1), (fog.replicas[2], fog.replicas[2])
    first, second = Chat(fog, "first"), Chat(fog, "second")
    first.turn([*system, *said(20, 2)], *pair)
    name = second.turn([*system, *said(20, 3)], *pair)
    again = Chat(fog, "third")
    last = again.turn([*system, *said(20, 2)], *pair)

    for chat in (first, second, again):
        check(chat)
    assert fog.cached[name] == 3 * CHUNK
    assert fog.cached[last] == (len(system) + 20) // CHUNK * CHUNK


@pytest.mark.parametrize("device", ["a", "b", "c", "e"])
def test_a_stage_that_has_not_kept_it_says_so_and_the_prompt_is_computed_from_its_beginning(
    device: str,
) -> None:
    fog = fog_of()
    chat, pair = Chat(fog), (fog.replicas[0], fog.replicas[1])
    chat.turn(said(OPENING, 1), *pair)
    name = chat.ask(said(9, 2), *pair)
    while not fog.answers[name].is_open:
        fog.step()
    fog.forget(device)
    fog.run()
    chat.note(name)

    check(chat)
    assert {lost.kind for lost in fog.answers[name].lost} <= {LossKind.UNCACHED}
    for _ in range(200):
        fog.step()
    assert all(not keys for keys in open_keys(fog).values())
    assert all(core.kv_used_tokens == 0 for core in fog.devices.values())


def test_a_stage_that_forgot_it_is_met_once_and_has_it_again_afterwards() -> None:
    fog = fog_of()
    chat, pair = Chat(fog), (fog.replicas[0], fog.replicas[1])
    chat.turn(said(OPENING, 1), *pair)
    fog.forget("d")  # As after a restart: its master does not know.
    second = chat.turn(said(9, 2), *pair)
    third = chat.turn(said(9, 3), *pair)

    check(chat)
    assert [lost.kind for lost in fog.answers[second].lost] == [LossKind.UNCACHED]
    assert fog.cached[second] == 0
    assert fog.answers[third].lost == []
    assert fog.held[third] == (OPENING + ANSWER + 9) // CHUNK * CHUNK


@pytest.mark.parametrize("after", [0, 1, 7])
def test_an_answer_that_goes_on_elsewhere_finds_what_was_kept_there(after: int) -> None:
    fog = fog_of()
    chat = Chat(fog)
    chat.turn(said(2 * CHUNK, 1), fog.replicas[2], fog.replicas[2])
    chat.turn(said(4, 2), fog.replicas[0], fog.replicas[1])
    name = chat.ask(said(9, 3), fog.replicas[0], fog.replicas[1])
    while len(fog.answers[name].tokens) < after or not fog.answers[name].is_open:
        fog.step()
    fog.again(name)
    fog.answers[name].prefill = fog.answers[name].decode = fog.replicas[2]
    fog.run()
    chat.note(name)

    check(chat)
    assert fog.cached[name] == 2 * CHUNK


def test_a_whole_prompt_that_ends_on_the_grid_is_not_computed_again_when_its_answer_goes_on() -> (
    None
):
    fog = fog_of()
    replica, ids = fog.replicas[3], said(4 * CHUNK, 5)
    fog.ask("q", ids, replica, replica, max_tokens=ANSWER, sampling=SAMPLED)
    while len(fog.answers["q"].tokens) < 5:
        fog.step()
    fog.devices["h"].gateway_lost(GATEWAY, fog.now)
    fog.computed = 0
    fog.again("q")
    fog.run()

    assert fog.answers["q"].tokens == alone("qwen3", ids)
    assert fog.cached["q"] == 4 * CHUNK
    assert fog.computed == 5


def test_kept_kv_makes_room_for_requests_and_never_passes_the_limit() -> None:
    fog = fog_of()
    replica = fog.replicas[3]
    kv = fog.devices["h"].stages[replica.id, 0].executor.kv
    for turn in range(12):
        fog.ask(f"q{turn}", said(100, turn), replica, replica, max_tokens=2)
        while fog.answers[f"q{turn}"].finish_reason is None:
            fog.step()
            assert kv.used_tokens + kv.retained.tokens <= kv.limit_tokens
    for _ in range(20):
        fog.step()

    assert kv.used_tokens == 0
    assert len(kv.retained) == 1024 // kv_reserved_tokens(100 // CHUNK * CHUNK)
    assert fog.kept()["h"] == kv.retained.tokens


def test_a_gateway_of_the_last_version_makes_stages_keep_nothing() -> None:
    fog = fog_of()
    fog.is_on = False
    chat, pair = Chat(fog), (fog.replicas[0], fog.replicas[1])
    chat.turn(said(OPENING, 1), *pair)
    chat.turn(said(9, 2), *pair)

    check(chat)
    assert not any(fog.kept().values())
    assert fog.computed == 2 * OPENING + ANSWER + 9

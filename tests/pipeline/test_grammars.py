"""Answers that follow a grammar through stages: valid where they end by themselves, also moved."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from broker.events import LossKind
from broker.plan import Replica, Role
from broker.work import Sampling
from gateway.constraints import check_schema, json_grammar
from nodes.grammars import GrammarMaker
from nodes.outgoing import Timers
from tests.support.checkpoints import EOS_ID, FAMILIES, random_tensors, write_tokenizer
from tests.support.json_schemas import CLOSING, problem_of, random_schema, text_of
from tests.support.pipeline import SmallFog, make_replica

CONFIG = {**FAMILIES["llama"], "num_hidden_layers": 2}
NUM_SCHEMAS = 200
MAX_TOKENS = 80
PROMPT = tuple(range(40, 60))
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')


class Source:
    def __init__(self) -> None:
        self._tensors = random_tensors(CONFIG)

    def load_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return (folder / "tokenizer.json").read_bytes()


def inline(tokenizer: bytes) -> GrammarMaker:
    return GrammarMaker(lambda: tokenizer, beside=lambda work: work())


def replica(name: str, cuts: tuple[int, ...] = (1, 2), role: Role = Role.BOTH) -> Replica:
    devices = [f"{name}{index}" for index in range(len(cuts))]
    return make_replica(cuts, devices, role, slots=64, kv_tokens=64 * 256)


def fog_of(source: Source, grammars: GrammarMaker, *replicas: Replica) -> SmallFog:
    timers = Timers(repeat=0.2, repeats=40)
    return SmallFog(CONFIG, source, replicas, chunk_tokens=16, timers=timers, grammars=grammars)


def sampling(schema: dict[str, Any], seed: int) -> Sampling:
    return Sampling(
        temperature=1.0,
        seed=seed,
        logit_bias=CLOSING,
        eos_token_ids=(EOS_ID,),
        grammar=json_grammar(schema),
    )


def schemas(count: int) -> dict[str, dict[str, Any]]:
    rng = random.Random(11)
    found = {f"q{number}": random_schema(rng) for number in range(count)}
    for schema in found.values():
        check_schema(schema, "schema")
    return found


def test_answers_to_200_schemas_are_valid_where_they_end_and_the_same_after_a_failover(
    source: Source, tokenizer: bytes
) -> None:
    asked = schemas(NUM_SCHEMAS)
    first, second = replica("a"), replica("b", cuts=(2,))
    fog = fog_of(source, inline(tokenizer), first, second)
    _ask(fog, asked, first)

    moved = _lose(fog, first, second)
    fog.run()

    ended = {name: a.tokens for name, a in fog.answers.items() if a.finish_reason == "stop"}
    assert len(ended) > 0.7 * NUM_SCHEMAS
    for name, ids in ended.items():
        assert ids[-1] == EOS_ID
        assert problem_of(text_of(ids), asked[name]) is None
        assert re.search(r"\s\s|[^,:]\s|\s$", STRINGS.sub('""', text_of(ids))) is None
    cut_off = [a.tokens for a in fog.answers.values() if a.finish_reason == "length"]
    assert all(len(ids) == MAX_TOKENS for ids in cut_off)

    assert len(moved & ended.keys()) >= 5
    still = fog_of(source, inline(tokenizer), first)
    _ask(still, {name: schema for name, schema in asked.items() if name in moved}, first)
    still.run()
    for name, answer in still.answers.items():
        assert fog.answers[name].tokens == answer.tokens


def _ask(fog: SmallFog, asked: dict[str, dict[str, Any]], of: Replica) -> None:
    for name, schema in asked.items():
        chosen = sampling(schema, seed=int(name[1:]))
        fog.ask(name, PROMPT, of, of, max_tokens=MAX_TOKENS, sampling=chosen)


def _lose(fog: SmallFog, lost: Replica, other: Replica) -> set[str]:
    """Let a replica die amid its answers, and ask another; return those that it had begun."""
    while sum(bool(a.tokens) and a.finish_reason is None for a in fog.answers.values()) < 15:
        fog.step()
    for stage in lost.stages:
        del fog.devices[stage.device]
    left = {n: a for n, a in fog.answers.items() if a.finish_reason is None}
    for name, answer in left.items():
        answer.prefill = answer.decode = other
        fog.again(name)
    return {name for name, answer in left.items() if answer.tokens}


@pytest.mark.parametrize("is_split", [False, True], ids=["one replica", "KV transfer"])
def test_prefill_goes_on_while_the_grammar_is_made_and_nothing_is_lost(
    source: Source, tokenizer: bytes, is_split: bool
) -> None:
    waiting: list[Callable[[], None]] = []
    grammars = GrammarMaker(lambda: tokenizer, beside=waiting.append)
    prefill = replica("p", role=Role.PREFILL if is_split else Role.BOTH)
    decode = replica("d", cuts=(1, 2), role=Role.DECODE) if is_split else prefill
    fog = fog_of(source, grammars, *({prefill.id: prefill, decode.id: decode}.values()))
    schema = schemas(1)["q0"]
    fog.ask("q0", PROMPT, prefill, decode, max_tokens=MAX_TOKENS, sampling=sampling(schema, 0))
    # Longer than all repeats together: who makes a grammar says that it lives.
    for _ in range(int(10 / fog.step_seconds)):
        fog.step()
    assert fog.answers["q0"].tokens == []
    assert len(waiting) == 1 + is_split

    for work in waiting:
        work()
    fog.run()

    answer = fog.answers["q0"]
    assert answer.lost == []
    assert problem_of(text_of(answer.tokens), schema) is None


def test_a_grammar_that_cannot_be_made_fails_its_request_and_no_other(
    source: Source, tokenizer: bytes
) -> None:
    only = replica("a")
    fog = fog_of(source, inline(tokenizer), only)
    bad = Sampling(grammar="start: nowhere", eos_token_ids=(EOS_ID,))
    fog.ask("bad", PROMPT, only, only, max_tokens=4, sampling=bad)
    fog.ask("good", PROMPT, only, only, max_tokens=4)
    while fog.answers["good"].finish_reason is None or not fog.answers["bad"].lost:
        fog.step()

    lost = fog.answers["bad"].lost[0]
    assert lost.kind is LossKind.FAILED
    assert "the grammar cannot be used" in lost.reason


def test_a_stage_without_a_tokenizer_takes_no_request_with_a_grammar(source: Source) -> None:
    def none() -> bytes:
        raise FileNotFoundError("tokenizer.json is nowhere")

    only = replica("a")
    fog = fog_of(source, GrammarMaker(none, beside=lambda work: work()), only)
    fog.ask("q", PROMPT, only, only, max_tokens=4, sampling=sampling({"type": "object"}, 0))
    while not fog.answers["q"].lost:
        fog.step()
    assert "tokenizer.json is nowhere" in fog.answers["q"].lost[0].reason

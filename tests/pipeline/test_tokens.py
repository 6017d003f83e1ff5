"""Whole requests through stages without a broker: the same tokens, whatever happens."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from broker.architecture import parse_config
from broker.events import LossKind
from broker.plan import LayerRange, Role
from broker.work import RequestKey, Sampling
from nodes.compute import JobCost
from nodes.executor import StageExecutor
from nodes.outgoing import Timers
from nodes.sampler import choose
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.pipeline import Answer, SmallFog, make_replica, open_keys
from tests.support.stages import fill_weights

CONFIG = FAMILIES["qwen3"]
CHUNK = 16
LENGTHS = (3, 17, 16, 64, 130, 5, 41, 90)


class Source:
    """Tensors of a random checkpoint, from memory."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._tensors = random_tensors(config)

    def load_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(CONFIG)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> dict[str, tuple[int, ...]]:
    rng = random.Random(7)
    return {
        f"q{i}": tuple(rng.randrange(3, 259) for _ in range(length))
        for i, length in enumerate(lengths)
    }


def samplings(names: list[str]) -> dict[str, Sampling]:
    """Half of the requests greedy, half sampled with everything on."""
    return {
        name: Sampling()
        if i % 2
        else Sampling(
            temperature=0.9,
            top_p=0.95,
            top_k=40,
            seed=i,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.1,
            min_p=0.01,
            logit_bias={5 + i: 2.0, 40: -100.0},
            eos_token_ids=(7,),
            min_tokens=100,
        )
        for i, name in enumerate(names)
    }


def whole_executor(
    source: Source,
    weights: str = "float32",
    raw: Mapping[str, Any] = CONFIG,
    kv_format: str = "float32",
) -> StageExecutor:
    config = parse_config(raw)
    held = fill_weights(LayerWeights(config, source, weights))
    return StageExecutor(
        config, LayerRange(0, config.num_layers), held,
        embedding=True, head=True, kv_tokens=1024, chunk_tokens=CHUNK, kv_format=kv_format,
    )  # fmt: skip


def alone(
    source: Source,
    prompt: tuple[int, ...],
    sampling: Sampling,
    count: int,
    weights: str = "float32",
    raw: Mapping[str, Any] = CONFIG,
    kv_format: str = "float32",
) -> list[int]:
    """Generate on one executor that holds the whole model, one request at a time."""
    executor = whole_executor(source, weights, raw, kv_format)
    key = RequestKey("alone", 0)
    executor.open(key, len(prompt) + count)
    for start in range(0, len(prompt), CHUNK):
        hidden = executor.prefill(key, executor.embed(prompt[start : start + CHUNK]), start)
    tokens: list[int] = []
    for position in range(len(prompt), len(prompt) + count):
        token = choose(executor.logits(hidden[-1:])[0], sampling, prompt, tokens, position)
        tokens.append(token)
        hidden = executor.decode([key], executor.embed([token]))
    return tokens


@pytest.fixture(scope="module")
def expected(source: Source) -> dict[str, list[int]]:
    kinds = samplings(list(prompts()))
    return {name: alone(source, ids, kinds[name], 24) for name, ids in prompts().items()}


def fog_of(source: Source, config: Mapping[str, Any] = CONFIG, **kwargs: Any) -> SmallFog:
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL),
        make_replica((1, 3, 5), ("c", "d", "e"), Role.DECODE),
        make_replica((3, 5), ("f", "g"), Role.BOTH),
        make_replica((5,), ("h",), Role.BOTH),
    ]
    return SmallFog(config, source, replicas, chunk_tokens=CHUNK, **kwargs)


def tokens(answers: Mapping[str, Answer]) -> dict[str, list[int]]:
    return {name: answer.tokens for name, answer in answers.items()}


@pytest.mark.parametrize("tick_seconds", [0.0, 0.001], ids=["whole-chunks", "chunks-by-layer"])
@pytest.mark.parametrize(("prefill", "decode"), [(0, 1), (1, 0), (2, 2), (3, 3), (0, 3), (3, 1)])
def test_split_batched_and_handed_over_requests_get_the_tokens_of_the_whole_model(
    source: Source,
    expected: dict[str, list[int]],
    prefill: int,
    decode: int,
    tick_seconds: float,
) -> None:
    fog = fog_of(source, tick_seconds=tick_seconds)
    replicas = fog.replicas
    kinds = samplings(list(prompts()))
    for name, ids in prompts().items():
        fog.ask(name, ids, replicas[prefill], replicas[decode], max_tokens=24, sampling=kinds[name])
    fog.run()
    assert tokens(fog.answers) == expected
    assert not fog.rejected


@pytest.mark.parametrize(("family", "kv_format"), [("qwen3", "float32"), ("qwen2", "bfloat16")])
def test_in_int8_a_disturbed_network_and_a_continued_answer_change_no_bit(
    family: str, kv_format: str
) -> None:
    config = FAMILIES[family]  # of qwen2, the last three layers have a window
    source = Source(config)
    kinds = samplings(list(prompts()))
    fog = fog_of(
        source,
        config,
        weights="int8",
        kv_format=kv_format,
        disturb=random.Random(1),
        timers=Timers(repeat=0.2, repeats=60),
    )
    for name, ids in prompts().items():
        fog.ask(name, ids, fog.replicas[0], fog.replicas[1], max_tokens=24, sampling=kinds[name])
    while len(fog.answers["q4"].tokens) < 9:
        fog.step()
    fog.again("q4")
    fog.answers["q4"].prefill = fog.answers["q4"].decode = fog.replicas[2]
    fog.run()
    for name, ids in prompts().items():
        undisturbed = alone(source, ids, kinds[name], 24, "int8", config, kv_format)
        assert fog.answers[name].tokens == undisturbed, name


def test_a_long_prompt_takes_turns_with_running_streams_layer_by_layer(source: Source) -> None:
    costs: list[JobCost] = []
    replica = make_replica((5,), ("h",), Role.BOTH)
    fog = SmallFog(
        CONFIG, source, [replica], chunk_tokens=CHUNK, pace=costs.append, tick_seconds=0.001
    )
    fog.ask("stream", range(3, 19), replica, replica, max_tokens=100)
    while len(fog.answers["stream"].tokens) < 3:
        fog.step()
    num_before = len(costs)
    fog.ask("long", range(3, 133), replica, replica, max_tokens=2)
    fog.run()
    slices = [cost for cost in costs[num_before:] if not cost.is_decode]
    assert sum(len(cost.kinds) for cost in slices) == 5 * 9
    assert max(len(cost.kinds) for cost in slices) == 1
    # The first slice of a chunk alone looks ids up, its last one alone asks the head.
    assert sum(cost.embedding for cost in slices) == 9
    assert sum(cost.head_rows for cost in slices) == 1
    kinds = "".join("d" if cost.is_decode else "p" for cost in costs[num_before:])
    assert "pp" not in kinds.strip("d"), kinds


def test_a_request_that_goes_while_its_chunk_pauses_is_forgotten(source: Source) -> None:
    replica = make_replica((5,), ("h",), Role.BOTH)
    fog = SmallFog(CONFIG, source, [replica], chunk_tokens=CHUNK, tick_seconds=0.02)
    fog.ask("gone", range(3, 133), replica, replica, max_tokens=2)
    (stage,) = fog.stages()
    while not stage.has_work():
        fog.step()
    fog.step()
    assert stage.has_work(), "the chunk paused"
    fog.again("gone")
    fog.run()
    assert fog.answers["gone"].attempt == 1
    assert tokens(fog.answers)["gone"] == alone(source, tuple(range(3, 133)), Sampling(), 2)
    for _ in range(200):
        fog.step()
    assert stage.executor.used_tokens == 0
    assert stage.dropped["released"] == 1


def test_released_requests_leave_no_kv_behind(source: Source) -> None:
    fog = fog_of(source)
    replicas = fog.replicas
    for name, ids in prompts().items():
        fog.ask(name, ids, replicas[0], replicas[1], max_tokens=4)
    fog.run()
    for _ in range(200):
        fog.step()
    assert all(not keys for keys in open_keys(fog).values())
    assert all(core.kv_used_tokens == 0 for core in fog.devices.values())
    masters = [stage.conductor for stage in fog.stages() if stage.conductor]
    assert all(master.reservations.used_tokens == 0 for master in masters)


@pytest.mark.parametrize("seed", range(6))
def test_a_lossy_repeating_reordering_network_changes_no_token_and_hangs_nothing(
    source: Source, expected: dict[str, list[int]], seed: int
) -> None:
    fog = fog_of(source, disturb=random.Random(seed), timers=Timers(repeat=0.2, repeats=60))
    replicas = fog.replicas
    kinds = samplings(list(prompts()))
    pairs = [(0, 1), (2, 2), (0, 3), (3, 1)]
    for index, (name, ids) in enumerate(prompts().items()):
        prefill, decode = pairs[index % len(pairs)]
        fog.ask(name, ids, replicas[prefill], replicas[decode], max_tokens=24, sampling=kinds[name])
    fog.run()
    assert tokens(fog.answers) == expected
    dropped = sum((stage.dropped for stage in fog.stages()), Counter())
    assert dropped["old step"] or dropped["stale"], "the network disturbed nothing"


@pytest.mark.parametrize("after", [1, 9, 20])
def test_an_answer_continued_elsewhere_has_the_tokens_of_the_undisturbed_one(
    source: Source, expected: dict[str, list[int]], after: int
) -> None:
    fog = fog_of(source)
    replicas = fog.replicas
    kinds = samplings(list(prompts()))
    for name, ids in prompts().items():
        fog.ask(name, ids, replicas[0], replicas[1], max_tokens=24, sampling=kinds[name])
    moved: set[str] = set()
    while any(answer.finish_reason is None for answer in fog.answers.values()):
        fog.step()
        for name, answer in fog.answers.items():
            if name not in moved and len(answer.tokens) >= after and not answer.finish_reason:
                moved.add(name)
                fog.again(name)
                answer.prefill = answer.decode = replicas[2]
    assert tokens(fog.answers) == expected
    assert len(moved) == len(LENGTHS)


def test_a_full_cache_sends_the_youngest_back_and_everyone_finishes(source: Source) -> None:
    replicas = [
        make_replica((2, 5), ("a", "b"), Role.PREFILL, kv_tokens=512),
        make_replica((1, 5), ("c", "d"), Role.DECODE, kv_tokens=256),
    ]
    fog = SmallFog(CONFIG, source, replicas, chunk_tokens=CHUNK)
    asked = prompts((20, 9, 31, 14))
    kinds = samplings(list(asked))
    for name, ids in asked.items():
        fog.ask(name, ids, replicas[0], replicas[1], max_tokens=100, sampling=kinds[name])
    fog.run()
    assert tokens(fog.answers) == {
        name: alone(source, ids, kinds[name], 100) for name, ids in asked.items()
    }
    assert LossKind.PREEMPTED in {lost.kind for a in fog.answers.values() for lost in a.lost}

"""Same tokens over real Mosquitto and node processes, for families of each kind."""

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from broker.plan import Role
from broker.work import Sampling
from gateway.requests import Generation
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.oracle import Oracle
from tests.support.pipeline import make_replica
from tests.support.real_fog import RealFog
from tests.support.ties import assert_same_tokens

NUM_TOKENS = 64
LENGTHS = (3, 300, 33, 64, 150, 7, 96, 211)
DEVICES = ("pre-0", "pre-1", "dec-0", "dec-1", "dec-2")
# All families are compared in `tests/nodes/test_parity.py`. Here stands one for what differs
# between processes: plain, biases and windows, fused matrices, two rotations, experts.
REAL_FAMILIES = ("llama", "qwen2", "phi3", "gemma3", "gpt_oss")
pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fog(
    mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RealFog]:
    running = RealFog(tmp_path_factory.mktemp("fog"), DEVICES)
    await running.start()
    yield running
    await running.stop()


def prompts(family: str) -> list[tuple[int, ...]]:
    rng = random.Random(family)
    return [tuple(rng.randrange(3, 259) for _ in range(length)) for length in LENGTHS]


def greedy(name: str, ids: tuple[int, ...]) -> Generation:
    return Generation(
        request_id=name,
        prompt_ids=ids,
        max_tokens=NUM_TOKENS,
        sampling=Sampling(ignore_eos=True),
    )


@pytest.mark.parametrize("family", REAL_FAMILIES)
async def test_eight_concurrent_prompts_get_the_greedy_tokens_of_transformers(
    fog: RealFog, family: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, family)
    references = [Oracle(tmp_path).generate(ids, NUM_TOKENS) for ids in prompts(family)]
    replicas = [
        make_replica((2, 5), DEVICES[:2], Role.PREFILL),
        make_replica((1, 3, 5), DEVICES[2:], Role.DECODE),
    ]
    await fog.serve(manifest_of(tmp_path, family), replicas)
    answers = await asyncio.gather(
        *(fog.answer(greedy(f"{family}-{i}", ids)) for i, ids in enumerate(prompts(family)))
    )
    for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        assert_same_tokens(answer, reference.tokens, reference.gaps, f"{family} prompt {i}")


async def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_in_one_replica_for_both(
    fog: RealFog, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, "qwen2")
    manifest = manifest_of(tmp_path, "sampled")

    def sampled(name: str, ids: tuple[int, ...], seed: int) -> Generation:
        sampling = Sampling(temperature=0.8, top_p=0.9, seed=seed, presence_penalty=0.1)
        return Generation(request_id=name, prompt_ids=ids, max_tokens=32, sampling=sampling)

    asked = list(enumerate(prompts("qwen2")))
    apart = [
        make_replica((2, 5), DEVICES[:2], Role.PREFILL),
        make_replica((1, 3, 5), DEVICES[2:], Role.DECODE),
    ]
    await fog.serve(manifest, apart)
    alone = [await fog.answer(sampled(f"alone-{i}", ids, i)) for i, ids in asked]
    shuffled = random.Random(1).sample(asked, len(asked))
    batch = await asyncio.gather(
        *(fog.answer(sampled(f"batch-{i}", ids, i)) for i, ids in shuffled)
    )
    assert {i: answer for (i, _), answer in zip(shuffled, batch, strict=True)} == dict(
        enumerate(alone)
    )
    await fog.serve(manifest, [make_replica((4, 5), DEVICES[3:], Role.BOTH)])
    both = await asyncio.gather(*(fog.answer(sampled(f"both-{i}", ids, i)) for i, ids in asked))
    assert list(both) == alone


async def test_a_node_reads_its_own_tensors_and_no_others_and_together_they_are_the_model(
    fog: RealFog, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, "llama")
    manifest = manifest_of(tmp_path, "split")
    replicas = [make_replica((2, 5), DEVICES[:2], Role.BOTH)]
    await fog.serve(manifest, replicas)
    first, second = (set(fog.loaded[device].tensors) for device in DEVICES[:2])
    assert first | second == set(manifest.tensors)
    assert not first & second
    assert "model.layers.1.mlp.up_proj.weight" in first
    assert "model.layers.2.mlp.up_proj.weight" in second


async def test_a_damaged_tensor_is_named_by_the_node(fog: RealFog, tmp_path: Path) -> None:
    # Weights that no test before had: a node reads what it has in memory or cache only once.
    write_checkpoint(tmp_path, "mistral", seed=11)
    manifest = manifest_of(tmp_path, "damaged")
    info = manifest.tensors["model.layers.3.self_attn.q_proj.weight"]
    file = tmp_path / info.file
    data = bytearray(file.read_bytes())
    data[info.offset + 5] ^= 0x40
    file.write_bytes(data)
    replicas = [make_replica((2, 5), DEVICES[:2], Role.BOTH)]
    with pytest.raises(AssertionError, match=r"model\.layers\.3\.self_attn\.q_proj\.weight"):
        await fog.serve(manifest, replicas)
    # The same fog goes on with a model that is whole.
    whole = tmp_path / "whole"
    whole.mkdir()
    write_checkpoint(whole, "mistral", seed=11)
    await fog.serve(manifest_of(whole, "whole"), replicas)
    answer = await fog.answer(greedy("after-damage", (5, 6, 7)))
    assert len(answer) == NUM_TOKENS
    shutil.rmtree(whole)


async def test_a_restarted_broker_costs_a_pause_and_nothing_was_dropped_before(
    fog: RealFog, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, "llama")
    replicas = [
        make_replica((2, 5), DEVICES[:2], Role.PREFILL),
        make_replica((1, 3, 5), DEVICES[2:], Role.DECODE),
    ]
    await fog.serve(manifest_of(tmp_path, "restarted"), replicas)
    reference = await fog.answer(greedy("before-restart", (9, 8, 7, 6)))
    assert await fog.dropped_by_broker() == 0
    stream = fog.engine.generate(greedy("over-restart", (9, 8, 7, 6)))
    tokens: list[int] = []
    async for token in stream:
        tokens.append(token.token_id)
        if len(tokens) == 10:
            fog.broker.stop()
            fog.broker.start()
    assert tokens == reference


async def test_a_killed_node_costs_a_pause_and_no_token(fog: RealFog, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen3")
    replicas = [
        make_replica((2, 5), DEVICES[:2], Role.BOTH),
        make_replica((1, 3, 5), DEVICES[2:], Role.DECODE),
    ]
    await fog.serve(manifest_of(tmp_path, "killed"), replicas)
    reference = await fog.answer(greedy("undisturbed", (9, 8, 7, 6)))
    stream = fog.engine.generate(greedy("disturbed", (9, 8, 7, 6)))
    tokens: list[int] = []
    async for token in stream:
        tokens.append(token.token_id)
        if len(tokens) == 10:
            fog.nodes["dec-1"].kill()
    assert tokens == reference

import threading
from typing import Final

import pytest

from broker.architecture import UnsupportedModelError, parse_config, stage_bytes
from nodes.packed import FloatEmbedding, FloatLinear
from nodes.weights import HeadWeights, LayerWeights
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.stages import MemoryTensors, build_stages, fill_weights, generate

EMBEDDING: Final = "model.embed_tokens.weight"
PROMPT: Final = tuple(range(10, 50))


def weights_of(family: str, weights: str = "float32") -> tuple[LayerWeights, MemoryTensors]:
    source = MemoryTensors(random_tensors(FAMILIES[family]))
    return LayerWeights(parse_config(FAMILIES[family]), source, weights), source


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_matrix_is_read_and_held_once(head_first: bool) -> None:
    weights, source = weights_of("qwen2")
    steps = [weights.add_embedding, weights.add_head]
    for add in reversed(steps) if head_first else steps:
        add()
    assert isinstance(weights.embedding, FloatEmbedding)
    assert isinstance(weights.head, HeadWeights)
    assert isinstance(weights.head.linear, FloatLinear)
    assert weights.embedding.matrix is weights.head.linear.matrix
    assert source.asked.count(EMBEDDING) == 1
    assert weights.tensor_names.count(EMBEDDING) == 1
    expected = stage_bytes(weights.config, "float32", (), embedding=True, head=True)
    assert weights.num_bytes == expected


def test_what_is_here_already_is_not_read_again() -> None:
    weights, source = weights_of("llama")
    fill_weights(fill_weights(weights))
    assert len(source.asked) == len(set(source.asked)) == len(weights.tensor_names)


def test_what_was_dropped_is_read_again() -> None:
    weights, source = weights_of("llama")
    weights.add(2)
    weights.drop(2)
    weights.drop(2)
    assert (weights.layers, weights.num_bytes) == ([], 0)
    weights.add(2)
    assert source.asked.count("model.layers.2.mlp.down_proj.weight") == 2


def test_bfloat16_weights_take_half_the_bytes() -> None:
    full, half = (fill_weights(weights_of("qwen3", name)[0]) for name in ("float32", "bfloat16"))
    assert full.num_bytes == 2 * half.num_bytes


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="int5"):
        weights_of("llama", "int5")


def test_a_source_that_fails_leaves_no_half_block() -> None:
    weights, source = weights_of("llama")
    tensors = dict(source.tensors)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    source.tensors = tensors
    weights.add(0)
    with pytest.raises(KeyError, match=r"layers\.1\.mlp\.down_proj"):
        weights.add(1)
    assert weights.layers == [0]
    assert not any(".layers.1." in name for name in weights.tensor_names)


def test_blocks_come_and_go_while_other_blocks_run() -> None:
    weights = fill_weights(weights_of("llama")[0])
    stages = build_stages(weights, (2,))
    expected = generate(stages, PROMPT, 10)
    other, _ = weights_of("llama")
    failures: list[Exception] = []
    stopped = threading.Event()

    def come_and_go() -> None:
        try:
            while not stopped.is_set():
                for layer in range(5):
                    weights.drop(layer)
                    weights.add(layer)
                    other.add(layer)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(5):
            assert generate(stages, PROMPT, 10) == expected
            assert weights.num_bytes > 0
            assert EMBEDDING in weights.tensor_names
    finally:
        stopped.set()
        thread.join()
    assert failures == []
    assert weights.holds(stages[0].layers, embedding=True, head=True)

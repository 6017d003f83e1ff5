"""Kernels whose rows depend on their neighbours are refused before a device offers itself."""

from collections.abc import Sequence

import pytest
import torch

from broker.architecture import parse_config
from broker.plan import LayerRange
from broker.work import RequestKey
from nodes.executor import StageExecutor
from nodes.selftest import DependentRowsError, check_rows
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.stages import MemoryTensors

CONFIG = parse_config(FAMILIES["qwen3"])


def executor_of(
    kind: type[StageExecutor] = StageExecutor, weights: str = "float32"
) -> StageExecutor:
    store = LayerWeights(CONFIG, MemoryTensors(random_tensors(FAMILIES["qwen3"])), weights)
    for layer in range(2):
        store.add(layer)
    store.add_embedding()
    store.add_head()
    return kind(
        CONFIG,
        LayerRange(0, 2),
        store,
        embedding=True,
        head=True,
        kv_tokens=512,
        chunk_tokens=16,
    )


class SharedScale(StageExecutor):
    """Rounds all rows to one scale, as dynamic quantisation per call does."""

    def decode(self, keys: Sequence[RequestKey], hidden: torch.Tensor) -> torch.Tensor:
        output = super().decode(keys, hidden)
        scale = output.abs().max() / 127
        return (output / scale).round() * scale


class SharedScaleHead(StageExecutor):
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden) + hidden.mean()


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_torchs_own_float_kernels_pass_and_leave_no_kv_behind(weights: str) -> None:
    executor = executor_of(weights=weights)
    check_rows(executor, weights)
    assert executor.used_tokens == 0


@pytest.mark.parametrize(("kind", "part"), [(SharedScale, "block"), (SharedScaleHead, "head")])
def test_rows_that_depend_on_their_neighbours_are_refused_with_the_remedy(
    kind: type[StageExecutor], part: str
) -> None:
    with pytest.raises(DependentRowsError, match=rf"in the {part}.*another weight format"):
        check_rows(executor_of(kind), "float32")

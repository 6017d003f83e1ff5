"""Mixtures of experts: each row as if it were alone, and only the tensors that are needed."""

from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F

from broker.architecture import parse_config, stage_tensor_names
from broker.plan import LayerRange
from nodes.decoder import Block
from nodes.feed_forward import FeedForward
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.stages import MemoryTensors

# Sizes that the four-bit kernel takes, and that end in the middle of a vector.
RAW: Final[dict[str, Any]] = {
    **FAMILIES["qwen3_moe"],
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "num_experts": 7,
    "mlp_only_layers": [1],
}


def mixture(weights: str = "float32", **changes: Any) -> tuple[FeedForward, MemoryTensors]:
    raw = {**RAW, **changes}
    source = MemoryTensors(random_tensors(raw))
    store = LayerWeights(parse_config(raw), source, weights)
    store.add(2)
    block = store.block(2)
    assert isinstance(block, Block)
    return block.weights.feed_forward, source


def rows(count: int, columns: int = 128) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_row_is_the_sum_of_its_likeliest_experts_by_their_shares(normalised: bool) -> None:
    experts, source = mixture(norm_topk_prob=normalised)
    x = rows(9)

    result = experts(x)

    def tensor(name: str) -> torch.Tensor:
        return source.tensors[f"model.layers.2.mlp.{name}.weight"]

    for row, actual in zip(x, result, strict=True):
        likely = (tensor("gate") @ row).softmax(0)
        chosen = likely.argsort(descending=True)[:3].tolist()
        expected = torch.zeros(128)
        for number in chosen:
            gate = F.silu(tensor(f"experts.{number}.gate_proj") @ row)
            inner = gate * (tensor(f"experts.{number}.up_proj") @ row)
            expected += likely[number] * (tensor(f"experts.{number}.down_proj") @ inner)
        if normalised:
            expected /= likely[chosen].sum()
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("hidden_size", [128, 52])
def test_a_row_gets_the_same_bits_in_any_company(weights: str, hidden_size: int) -> None:
    experts, _ = mixture(weights, hidden_size=hidden_size)
    x = rows(33, hidden_size)

    together = experts(x)

    for number in range(len(x)):
        assert torch.equal(experts(x[number : number + 1])[0], together[number])
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(experts(x[shuffled]), together[shuffled])


def test_a_stage_reads_the_experts_of_its_own_layers_alone() -> None:
    _, source = mixture()
    config = parse_config(RAW)
    expected = stage_tensor_names(config, LayerRange(2, 3), embedding=False, head=False)
    assert sorted(source.asked) == sorted(expected)
    assert sum(".experts." in name for name in source.asked) == 3 * 7


def test_the_products_of_a_row_are_those_of_the_experts_that_work() -> None:
    experts, _ = mixture("int8")
    one = sum(linear.num_bytes for linear, _ in experts.products(rows(1)))
    many = sum(linear.num_bytes for linear, _ in experts.products(rows(64)))
    assert many == pytest.approx(7 / 3 * one)

import math
from typing import Any

import pytest
import torch

from broker.architecture import ModelConfig, Rope, parse_config
from nodes.decoder import Scores, attend_chunk, attend_position, chunk_mask
from nodes.rotary import RotaryTable, inverse_frequencies
from tests.support.checkpoints import FAMILIES

CPU = torch.device("cpu")


def config_of(family: str = "mistral", **changes: Any) -> ModelConfig:
    return parse_config({**FAMILIES[family], **changes})


def random_qkv(
    config: ModelConfig, length: int, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(n, config.num_heads, config.head_dim, generator=generator)
    kv = torch.randn(2, length, config.num_kv_heads, config.head_dim, generator=generator)
    return query, kv[0], kv[1]


def attend_by_definition(
    config: ModelConfig, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Softmax over what each row may see, head by head, in float64."""
    n, length = len(query), len(keys)
    window = config.layers[0].window or length
    rows = []
    for row in range(n):
        position = length - n + row
        seen = range(max(0, position - window + 1), position + 1)
        for head in range(config.num_heads):
            kv_head = head * config.num_kv_heads // config.num_heads
            scores = keys[seen, kv_head].double() @ query[row, head].double()
            shares = (scores / math.sqrt(config.head_dim)).softmax(0)
            rows.append(shares @ values[seen, kv_head].double())
    return torch.cat(rows).view(n, -1).float()


@pytest.mark.parametrize("window", [None, 2, 20])
@pytest.mark.parametrize(("start", "n"), [(0, 1), (0, 32), (32, 32), (64, 13)])
def test_attention_of_a_chunk_is_causal_from_its_offset(
    window: int | None, start: int, n: int
) -> None:
    config = config_of(sliding_window=window)
    query, keys, values = random_qkv(config, start + n, n)
    mask = chunk_mask(config, window, range(start + n), n, torch.float32, CPU)
    actual = attend_chunk(query, keys, values, mask, Scores())
    expected = attend_by_definition(config, query, keys, values)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 19, 77])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_attention_of_a_position_is_over_all_that_it_sees(length: int, num_kv_heads: int) -> None:
    config = config_of(sliding_window=None, num_key_value_heads=num_kv_heads)
    query, keys, values = random_qkv(config, length, 1)
    actual = attend_position(
        query.view(1, num_kv_heads, -1, config.head_dim),
        torch.stack((keys, values)).transpose(1, 2),
        Scores(),
    )
    expected = attend_by_definition(config, query, keys, values)
    torch.testing.assert_close(actual.reshape(1, -1), expected, atol=1e-6, rtol=1e-5)


def test_a_mask_adds_nothing_where_a_row_may_look() -> None:
    config = config_of("llama", num_key_value_heads=6)
    mask = chunk_mask(config, None, range(4), 2, torch.float32, CPU)
    assert mask.tolist() == [[0, 0, 0, -math.inf], [0, 0, 0, 0]]


def test_default_frequencies_fall_by_powers_of_the_base() -> None:
    frequencies = inverse_frequencies(Rope(theta=10000.0), 8)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_linear_scaling_divides_every_frequency() -> None:
    frequencies = inverse_frequencies(Rope(kind="linear", theta=10000.0, factor=4.0), 8)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]) / 4)


def test_llama3_scaling_keeps_short_waves_divides_long_ones_and_blends_between() -> None:
    # Wavelengths 6.3, 62.8, 628 and 6283 against a context of 400: kept below 100, divided
    # above 400. With factors 1 and 8 the second lies between 50 and 400.
    rope = Rope("llama3", 10000.0, 8.0, 1.0, 8.0, 400)
    share = (400 / (2 * math.pi * 10) - 1) / (8 - 1)
    blended = (1 - share) * 0.1 / 8 + share * 0.1
    expected = torch.tensor([1.0, blended, 0.01 / 8, 0.001 / 8])
    torch.testing.assert_close(inverse_frequencies(rope, 8), expected)


def test_the_rotation_of_a_position_does_not_depend_on_what_was_asked_before() -> None:
    config = config_of("qwen3")
    rope = config.layers[0].rope
    assert rope is not None
    positions = torch.tensor([3, 511, 512, 1300])
    at_once = RotaryTable(rope, config.head_dim, torch.float32, CPU)(positions, 1301)
    stepwise = RotaryTable(rope, config.head_dim, torch.float32, CPU)
    stepwise(torch.tensor([0]), 1)
    for i, position in enumerate(positions.tolist()):
        cos, sin = stepwise(torch.tensor([position]), position + 1)
        assert torch.equal(cos[0], at_once[0][i])
        assert torch.equal(sin[0], at_once[1][i])

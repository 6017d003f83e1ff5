import math
from typing import Any, Final

import pytest
import torch

from broker.architecture import ModelConfig, parse_config
from nodes.decoder import Scores, attend_chunk, attend_position, chunk_mask
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


SCORES: Final = {
    "plain": Scores(),
    "scaled": Scores(scale=0.7),
    "capped": Scores(scale=0.7, cap=1.5),
    "sinks": Scores(sinks=torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, -3.0]])),
}


def attend_by_definition(
    config: ModelConfig,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    how: Scores,
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
            scores *= how.scale or 1 / math.sqrt(config.head_dim)
            if how.cap is not None:
                scores = how.cap * torch.tanh(scores / how.cap)
            if how.sinks is not None:
                scores = torch.cat((scores, how.sinks.flatten()[head : head + 1].double()))
            shares = scores.softmax(0)[: len(seen)]
            rows.append(shares @ values[seen, kv_head].double())
    return torch.cat(rows).view(n, -1).float()


@pytest.mark.parametrize("how", SCORES)
@pytest.mark.parametrize("window", [None, 2, 20])
@pytest.mark.parametrize(("start", "n"), [(0, 1), (0, 32), (32, 32), (64, 13)])
def test_attention_of_a_chunk_is_causal_from_its_offset(
    how: str, window: int | None, start: int, n: int
) -> None:
    config = config_of(sliding_window=window)
    query, keys, values = random_qkv(config, start + n, n)
    mask = chunk_mask(config, window, range(start + n), n, torch.float32, CPU)
    actual = attend_chunk(query, keys, values, mask, SCORES[how])
    expected = attend_by_definition(config, query, keys, values, SCORES[how])
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 19, 77])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_attention_of_a_position_is_over_all_that_it_sees(length: int, num_kv_heads: int) -> None:
    config = config_of(sliding_window=None, num_key_value_heads=num_kv_heads)
    query, keys, values = random_qkv(config, length, 1)
    actual = attend_position(
        query.view(1, num_kv_heads, -1, config.head_dim),
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        Scores(),
    )
    expected = attend_by_definition(config, query, keys, values, Scores())
    torch.testing.assert_close(actual.reshape(1, -1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", SCORES)
def test_a_position_is_attended_as_in_a_chunk(how: str) -> None:
    config = config_of(sliding_window=None)
    query, keys, values = random_qkv(config, 19, 1)
    grouped = query.view(1, 2, 3, config.head_dim)
    seen = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    actual = attend_position(grouped, *seen, SCORES[how])
    expected = attend_by_definition(config, query, keys, values, SCORES[how])
    torch.testing.assert_close(actual.reshape(1, -1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("how", ["capped", "sinks"])
def test_scores_are_not_rounded_where_the_kv_cache_is_bfloat16(how: str) -> None:
    config = config_of(sliding_window=None)
    query, keys, values = (x.bfloat16() for x in random_qkv(config, 77, 1))
    grouped = query.view(1, 2, 3, config.head_dim)
    seen = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    actual = attend_position(grouped, *seen, SCORES[how])
    expected = attend_by_definition(config, query, keys, values, SCORES[how])
    # Half a unit in the last place: the result alone was rounded.
    torch.testing.assert_close(actual.reshape(1, -1).float(), expected, atol=0, rtol=2**-8)


def test_a_mask_adds_nothing_where_a_row_may_look() -> None:
    config = config_of("llama", num_key_value_heads=6)
    mask = chunk_mask(config, None, range(4), 2, torch.float32, CPU)
    assert mask.tolist() == [[0, 0, 0, -math.inf], [0, 0, 0, 0]]

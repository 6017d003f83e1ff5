from typing import Final

import pytest
import torch

from broker.placement import KV_BLOCK_TOKENS
from broker.work import RequestKey
from nodes.kv_cache import KvCache, KvFullError, UnknownRequestError

KEY: Final = RequestKey("r", 0)
OTHER: Final = RequestKey("other", 2)


@pytest.fixture
def cache() -> KvCache:
    return KvCache(num_layers=3, num_kv_heads=2, head_dim=10, limit_tokens=4 * KV_BLOCK_TOKENS)


def test_reservations_are_counted_in_whole_blocks(cache: KvCache) -> None:
    cache.open(KEY, 1)
    assert cache.used_tokens == KV_BLOCK_TOKENS
    cache.open(OTHER, KV_BLOCK_TOKENS + 1)
    assert cache.used_tokens == 3 * KV_BLOCK_TOKENS
    assert cache[OTHER].data.shape == (3, 2, 2 * KV_BLOCK_TOKENS, 2, 10)


def test_the_limit_is_hard_and_a_refusal_changes_nothing(cache: KvCache) -> None:
    cache.open(KEY, 3 * KV_BLOCK_TOKENS)
    with pytest.raises(KvFullError, match="64 more KV positions asked, 32 of 128 are free"):
        cache.open(OTHER, 2 * KV_BLOCK_TOKENS)
    assert OTHER not in cache
    with pytest.raises(KvFullError, match="64 more"):
        cache.reserve(KEY, 5 * KV_BLOCK_TOKENS)
    assert cache.used_tokens == 3 * KV_BLOCK_TOKENS
    cache.reserve(KEY, 4 * KV_BLOCK_TOKENS)
    assert cache.used_tokens == cache.limit_tokens


def test_a_released_request_gives_its_room_back(cache: KvCache) -> None:
    cache.open(KEY, cache.limit_tokens)
    cache.release(KEY)
    cache.release(KEY)
    assert cache.used_tokens == 0
    cache.open(OTHER, cache.limit_tokens)


def test_growing_keeps_what_is_written_also_beyond_the_length(cache: KvCache) -> None:
    cache.open(KEY, KV_BLOCK_TOKENS)
    written = torch.randn(cache[KEY].data.shape)
    cache[KEY].data.copy_(written)
    cache[KEY].length = 5
    cache.reserve(KEY, KV_BLOCK_TOKENS + 1)
    assert cache[KEY].capacity == 2 * KV_BLOCK_TOKENS
    assert cache[KEY].length == 5
    assert torch.equal(cache[KEY].data[:, :, :KV_BLOCK_TOKENS], written)


def test_a_reservation_never_shrinks(cache: KvCache) -> None:
    cache.open(KEY, 3 * KV_BLOCK_TOKENS)
    data = cache[KEY].data
    cache.reserve(KEY, 1)
    assert cache[KEY].data is data


def test_a_slab_lies_contiguous_by_position(cache: KvCache) -> None:
    cache.open(KEY, 40)
    keys = cache[KEY].data[1, 0]
    assert keys[3:17].is_contiguous()


def test_a_request_that_is_not_open_is_named(cache: KvCache) -> None:
    with pytest.raises(UnknownRequestError, match=r"other.*is not open at this stage"):
        cache.reserve(OTHER, 5)


def test_a_request_is_opened_once(cache: KvCache) -> None:
    cache.open(KEY, 5)
    with pytest.raises(ValueError, match="open already"):
        cache.open(KEY, 5)

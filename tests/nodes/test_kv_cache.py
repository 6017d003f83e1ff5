from typing import Final

import psutil
import pytest
import torch

from broker.placement import KV_BLOCK_TOKENS
from broker.work import RequestKey
from nodes.kv_cache import KvCache, KvFullError, UnknownRequestError
from nodes.slab import first_seen

MIB: Final = 1 << 20
KEY: Final = RequestKey("r", 0)
OTHER: Final = RequestKey("other", 2)


@pytest.fixture
def cache() -> KvCache:
    return KvCache(
        (None, None, None), num_kv_heads=2, head_dim=10, limit_tokens=4 * KV_BLOCK_TOKENS
    )


def resident_bytes() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident


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


def test_a_slab_grows_in_place_up_to_what_its_request_may_come_to(cache: KvCache) -> None:
    cache.open(KEY, 5, most_tokens=90)
    data = cache[KEY].data
    data[:, :, :5] = 7
    cache.reserve(KEY, 90)
    assert cache[KEY].data is data
    assert cache.used_tokens == cache[KEY].capacity == 3 * KV_BLOCK_TOKENS
    cache.reserve(KEY, 100)
    assert cache[KEY].data is not data
    assert cache[KEY].data[:, :, :5].eq(7).all()


def test_what_a_request_may_come_to_is_not_more_than_there_is(cache: KvCache) -> None:
    cache.open(KEY, 5, most_tokens=10**12)
    assert cache[KEY].data.shape[2] == cache.limit_tokens


def test_where_the_system_has_no_addresses_ahead_a_slab_has_what_it_asks_for_now() -> None:
    cache = KvCache((None,) * 3, num_kv_heads=2, head_dim=10, limit_tokens=10**15)
    cache.open(KEY, 5, most_tokens=10**14)
    assert cache[KEY].data.shape[2] == KV_BLOCK_TOKENS
    with pytest.raises(KvFullError, match="no memory"):
        cache.open(OTHER, 10**14)
    assert OTHER not in cache
    assert cache.used_tokens == KV_BLOCK_TOKENS


def test_memory_is_taken_when_it_is_written_and_goes_with_the_request() -> None:
    # 64 MiB of addresses, of which a quarter is written.
    cache = KvCache((None,), num_kv_heads=8, head_dim=128, limit_tokens=8192)
    before = resident_bytes()
    cache.open(KEY, 2048, most_tokens=8192)
    assert resident_bytes() - before < 4 * MIB
    cache[KEY].data[:, :, :2048] = 1
    assert 15 * MIB < resident_bytes() - before < 20 * MIB
    cache.release(KEY)
    assert resident_bytes() - before < 4 * MIB


def test_a_layer_keeps_the_memory_of_its_window_alone() -> None:
    cache = KvCache((None, 128), num_kv_heads=8, head_dim=128, limit_tokens=4096)
    cache.open(KEY, 4096)
    cache[KEY].data[:] = 1
    before = resident_bytes()
    cache.set_length(cache[KEY], 4000)
    # Keys and values of one layer, 8 KiB per position.
    assert before - resident_bytes() > 29 * MIB
    full, sliding = cache[KEY].data
    assert full.eq(1).all()
    first = first_seen(128, 4000)
    assert sliding[:, first:].eq(1).all()
    assert sliding[:, : first - 4].eq(0).all()


def test_a_length_that_may_be_cut_back_keeps_the_windows_of_what_it_may_be_cut_to() -> None:
    cache = KvCache((40,), num_kv_heads=8, head_dim=128, limit_tokens=4096)
    cache.open(KEY, 512)
    cache[KEY].data[:] = 1
    cache.set_length(cache[KEY], 500, 301)
    assert cache[KEY].data[0, :, first_seen(40, 301) :].eq(1).all()
    assert cache[KEY].data[0, :, : first_seen(40, 301) - 4].eq(0).all()


@pytest.mark.parametrize(
    ("window", "position", "first"), [(None, 9, 0), (4, 2, 0), (4, 3, 0), (4, 4, 1), (1, 7, 7)]
)
def test_a_window_holds_the_position_itself_and_those_before(
    window: int | None, position: int, first: int
) -> None:
    assert first_seen(window, position) == first


def test_a_slab_that_moves_keeps_the_window_alone() -> None:
    cache = KvCache((40,), num_kv_heads=8, head_dim=128, limit_tokens=4096)
    cache.open(KEY, 512)
    cache[KEY].data[:] = 1
    cache.set_length(cache[KEY], 512)
    cache.reserve(KEY, 513)
    assert cache[KEY].data[0, :, first_seen(40, 512) : 512].eq(1).all()
    assert cache[KEY].data[0, :, :460].eq(0).all()


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

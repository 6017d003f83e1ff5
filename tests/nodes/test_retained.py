"""What ended requests leave in a stage's KV cache, and who gets it."""

from collections.abc import Sequence
from typing import Final

import psutil
import pytest
import torch

from broker.placement import KV_BLOCK_TOKENS
from broker.prefix import Prefix, prefix_of
from broker.work import RequestKey
from nodes.kv_cache import KvCache, KvFullError
from nodes.retained import NotHeldError
from nodes.slab import Beginning

CHUNK: Final = KV_BLOCK_TOKENS
MIB: Final = 1 << 20


def cache_of(
    windows: Sequence[int | None] = (None, None), *, limit_chunks: int = 16, **more: object
) -> KvCache:
    return KvCache(windows, num_kv_heads=2, head_dim=5, limit_tokens=limit_chunks * CHUNK, **more)  # type: ignore[arg-type]


def prefix(*chunks: int) -> Prefix:
    """Return the beginning of a prompt that has these chunks of equal ids."""
    return prefix_of("kv", [chunk for chunk in chunks for _ in range(CHUNK)], CHUNK)


def key(name: str) -> RequestKey:
    return RequestKey(name, 0)


def leave(
    cache: KvCache,
    chunks: Sequence[int],
    *,
    answer: int = 3,
    fill: float = 1.0,
    computed: int | None = None,
    **beginning: object,
) -> None:
    """Let a request run and end; its KV is ``fill`` throughout."""
    name, known = f"{chunks}", len(chunks) * CHUNK
    kept = Beginning(prefix(*chunks), **beginning)  # type: ignore[arg-type]
    cache.open(key(name), known + answer, beginning=kept)
    slab = cache[key(name)]
    slab.data[:, :, kept.held_tokens : known + answer] = fill
    for end in range(kept.held_tokens + CHUNK, known + 1, CHUNK):
        if computed is None or end <= computed:
            cache.set_length(slab, end)
    if computed is None:
        cache.set_length(slab, known + answer)
    cache.release(key(name))


def test_an_ended_request_leaves_its_prompts_chunks_and_takes_no_room() -> None:
    cache = cache_of()
    leave(cache, [1, 2, 3])

    assert cache.used_tokens == 0
    assert cache.retained.tokens == 3 * CHUNK
    assert cache.retained.held_tokens(prefix(1, 2, 9)) == 2 * CHUNK
    assert cache.retained.held_tokens(prefix(9, 2, 3)) == 0


def test_a_prompt_that_begins_alike_gets_a_copy_and_others_still_find_the_original() -> None:
    cache = cache_of()
    leave(cache, [1, 2], fill=7)

    cache.open(key("a"), 80, beginning=Beginning(prefix(1, 2, 3), 2 * CHUNK))
    cache.open(key("b"), 80, beginning=Beginning(prefix(1, 5), CHUNK))

    a, b = cache[key("a")], cache[key("b")]
    assert (a.length, b.length) == (2 * CHUNK, CHUNK)
    assert a.data[:, :, : 2 * CHUNK].eq(7).all()
    assert b.data[:, :, :CHUNK].eq(7).all()
    a.data.zero_()
    assert b.data[:, :, :CHUNK].eq(7).all()
    assert cache.retained.held_tokens(prefix(1, 2)) == 2 * CHUNK


def test_what_was_not_used_for_longest_goes_first_and_only_when_room_is_needed() -> None:
    cache = cache_of(limit_chunks=8)
    for chunk in (1, 2, 3):
        leave(cache, [chunk, 10 + chunk])
    assert cache.retained.tokens == 6 * CHUNK

    cache.open(key("a"), 70, beginning=Beginning(prefix(1, 11, 4), 2 * CHUNK))  # Uses the oldest.

    assert cache.retained.held_tokens(prefix(1, 11)) == 2 * CHUNK
    assert cache.retained.held_tokens(prefix(2, 12)) == 0
    assert cache.retained.held_tokens(prefix(3, 13)) == 2 * CHUNK
    cache.reserve(key("a"), 5 * CHUNK)
    assert len(cache.retained) == 1
    cache.reserve(key("a"), 8 * CHUNK)
    assert cache.retained.tokens == 0
    with pytest.raises(KvFullError):
        cache.open(key("b"), 1)


def test_where_there_is_room_for_one_alone_the_request_goes_on_with_what_was_kept() -> None:
    cache = cache_of(limit_chunks=5)
    leave(cache, [1, 2, 3], fill=7)

    cache.open(key("a"), 5 * CHUNK, 5 * CHUNK, beginning=Beginning(prefix(1, 2, 4), 2 * CHUNK))

    slab = cache[key("a")]
    assert (slab.length, slab.capacity) == (2 * CHUNK, 5 * CHUNK)
    assert slab.data[:, :, : 2 * CHUNK].eq(7).all()
    assert (cache.used_tokens, cache.retained.tokens) == (5 * CHUNK, 0)


def test_a_longer_prompt_takes_the_place_of_its_beginning() -> None:
    cache = cache_of()
    leave(cache, [1, 2])
    leave(cache, [1, 2, 3], held_tokens=2 * CHUNK)
    leave(cache, [1, 2])

    assert len(cache.retained) == 1
    assert cache.retained.tokens == 3 * CHUNK


def test_what_is_not_there_is_refused_and_nothing_has_changed() -> None:
    cache = cache_of()
    leave(cache, [1, 2])

    for wrong in (prefix(1, 3), prefix(1, 2, 3)):
        held = Beginning(wrong, wrong.num_tokens)
        with pytest.raises(NotHeldError, match="no KV is kept"):
            cache.open(key("a"), 4 * CHUNK, beginning=held)

    assert key("a") not in cache
    assert (cache.used_tokens, cache.retained.tokens) == (0, 2 * CHUNK)


def test_a_request_that_was_given_up_leaves_the_chunks_that_are_whole() -> None:
    cache = cache_of()
    leave(cache, [1, 2, 3, 4], computed=2 * CHUNK)

    assert cache.retained.held_tokens(prefix(1, 2, 3, 4)) == 2 * CHUNK
    assert cache.retained.tokens == 2 * CHUNK


def test_a_request_without_a_whole_chunk_leaves_nothing() -> None:
    cache = cache_of()
    leave(cache, [], answer=20)

    assert len(cache.retained) == 0


def test_a_window_leaves_what_a_query_behind_the_prompt_sees() -> None:
    window = CHUNK + 5
    cache = cache_of((None, window))
    leave(cache, [1, 2, 3, 4], answer=2 * CHUNK, fill=7)

    retained = cache.retained
    assert retained.held_tokens(prefix(1, 2, 3, 4, 5)) == 4 * CHUNK
    # Behind a shorter beginning a query would see what has left the window.
    assert retained.held_tokens(prefix(1, 2, 3, 9)) == 0
    cache.open(key("a"), 5 * CHUNK, beginning=Beginning(prefix(1, 2, 3, 4, 5), 4 * CHUNK))
    data = cache[key("a")].data
    assert data[0, :, : 4 * CHUNK].eq(7).all()
    assert data[1, :, 4 * CHUNK + 1 - window : 4 * CHUNK].eq(7).all()


def test_all_stages_come_to_the_answer_of_the_one_that_has_the_window() -> None:
    windows = (None, CHUNK + 5)
    full, sliding = (cache_of((window,), model_windows=windows) for window in windows)
    for cache in (full, sliding):
        leave(cache, [1, 2, 3])

    for asked in (prefix(1, 2, 3), prefix(1, 2, 9), prefix(1)):
        assert full.retained.held_tokens(asked) == sliding.retained.held_tokens(asked)


def test_what_was_sent_is_kept_only_if_it_is_all_that_a_later_prompt_sees() -> None:
    sliding, full = cache_of((None, CHUNK)), cache_of()
    for cache in (sliding, full):
        leave(cache, [1, 2], received_tokens=2 * CHUNK + 3)

    assert sliding.retained.held_tokens(prefix(1, 2)) == 0
    assert full.retained.held_tokens(prefix(1, 2)) == 2 * CHUNK


def test_kv_that_came_rounded_is_not_taken_for_computed_kv() -> None:
    cache = cache_of()
    leave(cache, [1, 2], received_tokens=2 * CHUNK, is_rounded=True)

    assert cache.retained.held_tokens(prefix(1, 2)) == 0
    assert cache.retained.held_tokens(prefix(1, 2), is_rounded=True) == 2 * CHUNK


def test_a_lower_limit_frees_what_is_kept_at_once() -> None:
    cache = cache_of()
    leave(cache, [1, 2])
    leave(cache, [3])

    cache.limit_tokens = 2 * CHUNK

    assert cache.retained.tokens == CHUNK
    assert cache.retained.held_tokens(prefix(3)) == CHUNK


def test_the_memory_of_an_answer_goes_and_that_of_its_prompt_goes_with_what_is_kept() -> None:
    def resident() -> int:
        found: int = psutil.Process().memory_info().rss
        return found

    cache = KvCache((None,), num_kv_heads=8, head_dim=128, limit_tokens=8192)
    per_token = 2 * 8 * 128 * 4
    kept = Beginning(prefix(*range(32)))
    before = resident()
    cache.open(key("a"), 4096, 8192, kept)
    cache[key("a")].data[:, :, :4096] = 1
    cache[key("a")].length = 4096
    full = resident() - before
    cache.release(key("a"))
    left = resident() - before
    cache.retained.shrink(0)

    assert full > 4096 * per_token - MIB
    assert 1024 * per_token - MIB < left < 1024 * per_token + 4 * MIB
    assert resident() - before < 4 * MIB


def test_copied_kv_is_the_kv_bit_for_bit() -> None:
    cache = cache_of()
    kept = Beginning(prefix(1, 2))
    cache.open(key("a"), 70, beginning=kept)
    written = torch.randn(cache[key("a")].data[:, :, : 2 * CHUNK].shape)
    cache[key("a")].data[:, :, : 2 * CHUNK] = written
    cache[key("a")].length = 70
    cache.release(key("a"))

    cache.open(key("b"), 200, 300, Beginning(prefix(1, 2, 3), 2 * CHUNK))

    assert torch.equal(cache[key("b")].data[:, :, : 2 * CHUNK], written)

"""How requests come into a stage's KV cache, and what it has kept of prompts (decision 0026)."""

from __future__ import annotations

from broker.work import Open, Reserve, ReserveKind, RowFailed
from nodes.context import ids
from nodes.executor import StageExecutor
from nodes.kv_cache import KvFullError
from nodes.retained import NotHeldError
from nodes.slab import Beginning


def held_tokens(executor: StageExecutor, message: Reserve) -> int:
    """Return how many leading positions of a prompt a stage has kept; whole chunks.

    At least the last known position is left to compute: the next token follows from it.
    """
    prefix = message.prefix
    if prefix is None or prefix.chunk_tokens != executor.chunk_tokens:
        return 0
    receives = message.kind is ReserveKind.DECODE
    return executor.kv.retained.held_tokens(
        prefix.within(message.known_tokens - 1), is_rounded=receives and executor.rounds_kv
    )


def open_kv(
    executor: StageExecutor, message: Open, *, prefills: bool, decodes: bool
) -> RowFailed | None:
    """Reserve a request's KV, with what was kept of its prompt; return why that is not possible."""
    known = message.known_tokens
    needed, most = known, known
    if decodes:
        needed, most = known + 1, message.num_prompt_tokens + message.max_tokens
    try:
        beginning = _beginning(executor, message, receives=not prefills)
        executor.kv.open(message.key, needed, most, beginning)
    except KvFullError as error:
        return RowFailed(**ids(message.key), error=str(error), retry=True)
    except NotHeldError as error:
        return RowFailed(**ids(message.key), error=str(error), retry=True, uncached=True)
    return None


def _beginning(executor: StageExecutor, message: Open, *, receives: bool) -> Beginning | None:
    """Return what is to be used and kept of a prompt that perhaps another replica computes."""
    prefix = message.prefix
    held = message.held_tokens if receives else message.cached_tokens
    if prefix is None:
        return None
    if prefix.chunk_tokens != executor.chunk_tokens:
        if held:
            raise NotHeldError(f"KV is kept in chunks of {executor.chunk_tokens} positions here")
        return None
    received = message.known_tokens if receives else 0
    return Beginning(prefix, held, received, is_rounded=receives and executor.rounds_kv)

"""How `Open` and `Reserve` become what a stage's KV cache uses and keeps."""

from typing import Any, Final

import pytest

from broker.placement import KV_BLOCK_TOKENS
from broker.prefix import Prefix, prefix_of
from broker.work import Open, Reserve, ReserveKind, RowFailed, Sampling
from nodes.beginnings import held_tokens, open_kv
from nodes.executor import StageExecutor
from tests.support.checkpoints import FAMILIES
from tests.support.stages import CHUNK_TOKENS, build_stages, load_weights

PROMPT: Final = tuple(range(3, 3 + 3 * CHUNK_TOKENS + 5))


def stage_of(**options: Any) -> StageExecutor:
    (stage,) = build_stages(load_weights(FAMILIES["llama"]), kv_tokens=256, **options)
    return stage


def prefix(chunk_tokens: int = CHUNK_TOKENS) -> Prefix:
    return prefix_of("kv", PROMPT, chunk_tokens)


def opened(name: str, **changes: object) -> Open:
    fields = {
        "request_id": name,
        "attempt": 0,
        "gateway": "g",
        "prefill_replica": "p",
        "decode_replica": "d",
        "num_prompt_tokens": len(PROMPT),
        "num_generated_tokens": 0,
        "max_tokens": 8,
        "sampling": Sampling(),
        "prefix": prefix(),
    }
    return Open(**{**fields, **changes})  # type: ignore[arg-type]


def asked(kind: ReserveKind, known: int = len(PROMPT), chunk_tokens: int = CHUNK_TOKENS) -> Reserve:
    return Reserve(
        request_id="next",
        attempt=0,
        gateway="g",
        kind=kind,
        known_tokens=known,
        max_tokens=8,
        prefix=prefix(chunk_tokens),
    )


def leave(stage: StageExecutor, *, prefills: bool = True, decodes: bool = True) -> None:
    message = opened("before")
    assert open_kv(stage, message, prefills=prefills, decodes=decodes) is None
    stage.set_length(message.key, len(PROMPT))
    stage.release(message.key)


@pytest.mark.parametrize("kind", ReserveKind)
def test_what_was_computed_or_sent_as_it_is_held_serves_either(kind: ReserveKind) -> None:
    computed, received = stage_of(), stage_of()
    leave(computed)
    leave(received, prefills=False)

    assert held_tokens(computed, asked(kind)) == 3 * CHUNK_TOKENS
    assert held_tokens(received, asked(kind)) == 3 * CHUNK_TOKENS


def test_what_was_sent_in_int8_serves_what_is_sent_in_int8_alone() -> None:
    computed, received = (stage_of(kv_transfer="int8") for _ in range(2))
    leave(computed)
    leave(received, prefills=False)

    def held(stage: StageExecutor) -> dict[ReserveKind, int]:
        return {kind: held_tokens(stage, asked(kind)) for kind in ReserveKind}

    whole = 3 * CHUNK_TOKENS
    assert held(computed) == {"prefill": whole, "both": whole, "decode": 0}
    assert held(received) == {"prefill": 0, "both": 0, "decode": whole}


def test_the_last_known_position_is_left_to_compute() -> None:
    stage = stage_of()
    leave(stage)

    known = [2 * CHUNK_TOKENS, 2 * CHUNK_TOKENS + 1]
    assert [held_tokens(stage, asked(ReserveKind.BOTH, each)) for each in known] == [
        CHUNK_TOKENS,
        2 * CHUNK_TOKENS,
    ]


def test_another_grid_finds_and_leaves_nothing() -> None:
    stage = stage_of()
    leave(stage)
    other = opened("other", prefix=prefix(16))

    assert held_tokens(stage, asked(ReserveKind.BOTH, chunk_tokens=16)) == 0
    assert open_kv(stage, other, prefills=True, decodes=True) is None
    stage.set_length(other.key, len(PROMPT))
    stage.release(other.key)
    assert len(stage.kv.retained) == 1
    again = opened("again", prefix=prefix(16), cached_tokens=16)
    failed = open_kv(stage, again, prefills=True, decodes=True)
    assert isinstance(failed, RowFailed)
    assert failed.uncached


def test_a_stage_that_only_prefills_uses_its_own_and_one_that_receives_what_it_held() -> None:
    message = opened("next", cached_tokens=2 * CHUNK_TOKENS, held_tokens=CHUNK_TOKENS)
    lengths = []
    for prefills in (True, False):
        stage = stage_of()
        leave(stage)
        assert open_kv(stage, message, prefills=prefills, decodes=not prefills) is None
        lengths.append(stage.length(message.key))

    assert lengths == [2 * CHUNK_TOKENS, CHUNK_TOKENS]


def test_why_a_request_cannot_come_in_says_what_is_to_become_of_it() -> None:
    stage = stage_of()

    not_held = open_kv(stage, opened("a", cached_tokens=CHUNK_TOKENS), prefills=True, decodes=True)
    stage.kv.limit_tokens = 3 * KV_BLOCK_TOKENS
    full = open_kv(stage, opened("b"), prefills=True, decodes=True)

    assert not_held is not None
    assert full is not None
    assert (not_held.retry, not_held.uncached) == (True, True)
    assert (full.retry, full.uncached) == (True, False)
    assert stage.used_tokens == 0

"""Payloads that no receiver may believe, and where a user of the broker may put them."""

from __future__ import annotations

import itertools
import json
import random
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from broker.access import Action, Credential, is_allowed
from broker.codec import MAGIC, encode_control, encode_frame
from broker.events import (
    Granted,
    GrantState,
    LossKind,
    Lost,
    Opened,
    TokenRow,
    Tokens,
    Waiting,
)
from broker.plan import LayerRange
from broker.telemetry import Telemetry
from broker.topics import (
    ALL_TOPICS,
    GATEWAY_EVENTS,
    STAGE_CREDIT,
    STAGE_KV,
    STAGE_WORK,
    Topic,
)
from broker.work import (
    Data,
    FirstToken,
    Forward,
    HandedOver,
    KvChunk,
    KvComplete,
    KvCredit,
    Live,
    Open,
    PrefillProgress,
    Release,
    Repeat,
    RequestKey,
    Resend,
    Reserve,
    ReserveKind,
    RowFailed,
    Sampling,
    Step,
    StepDone,
    StepResult,
    StepRow,
    TensorMeta,
)

NOBODY: Final = "nobody"
HUGE: Final = 2**62
_DATA_TOPICS: Final = (STAGE_WORK, STAGE_KV, STAGE_CREDIT, GATEWAY_EVENTS)
Replicas = tuple[str, str]
_KEY: Final[dict[str, Any]] = {"request_id": NOBODY, "attempt": 1}


def writable_topics(
    credential: Credential, site: str, places: Iterable[Mapping[str, str]]
) -> dict[str, Topic[Any]]:
    """Return every concrete topic of the contract that a user may write, by its path.

    Args:
        credential: The user.
        site: First level of the topics.
        places: Values for all placeholders; each place gives one path per topic.
    """
    found: dict[str, Topic[Any]] = {}
    for topic in ALL_TOPICS:
        for place in places:
            path = topic.path(site, **place)
            if is_allowed(credential.user, credential.kind, Action.WRITE, path, site):
                found[path] = topic
    return found


def unreadable(topic: Topic[Any], rng: random.Random) -> Iterator[bytes]:
    """Yield payloads that are not the topic's message at all."""
    yield rng.randbytes(1)
    yield rng.randbytes(300)
    yield b"\0" * 64
    yield b"[" * 20_000
    yield b"null"
    yield b'"text"'
    yield b'{"version":"\xff"}'
    if topic in _DATA_TOPICS:
        yield encode_control(Telemetry(speed_ratio=0.5))
        yield from _damaged_frames(rng)
    else:
        yield bytes(encode_frame(Release(**_KEY)))
        yield json.dumps({"state": 7, "session": [], "version": {}, "name": 1}).encode()
        yield b'{"state":"ready","session":1'
        # Telemetry is read field by field, since any agent may send some of them.
        yield b'{"speed_ratio":-1,"queue_length":"many","stage_seconds":[1],"cpu_load_ratio":1e999}'


def absurd(topic: Topic[Any], user: str, replicas: Replicas, hidden_size: int) -> Iterator[bytes]:
    """Yield frames that can be read and make no sense.

    Args:
        topic: Where they are for.
        user: The sender, who names itself where a message names a gateway.
        replicas: Ids of a prefill and a decode replica that exist.
        hidden_size: Of the model, so that a shape can be right and the rest wrong.
    """
    makers = {
        STAGE_WORK: _absurd_work,
        STAGE_KV: _absurd_kv,
        STAGE_CREDIT: _absurd_credit,
        GATEWAY_EVENTS: _absurd_events,
    }
    if topic in makers:
        for header, tensor in makers[topic](user, replicas, hidden_size):
            yield bytes(encode_frame(header, tensor))


def _frame(header: bytes, tensor: bytes = b"", *, version: int = 1, length: int = -1) -> bytes:
    length = len(header) if length < 0 else length
    body = struct.pack("<2sBBI", MAGIC, version, 0, length) + header
    return body + b"\0" * (-len(body) % 64) + tensor if tensor else body


def _damaged_frames(rng: random.Random) -> Iterator[bytes]:
    good = bytes(encode_frame(Repeat(**_KEY, position=3)))
    yield good[:5]
    yield good[:-3]
    yield good + b"more"
    yield _frame(good[8:], version=2)
    yield _frame(good[8:], length=2**32 - 1)
    yield _frame(rng.randbytes(40))
    pack = msgspec.msgpack.encode
    yield _frame(pack({"type": "no such type", **_KEY}))
    yield _frame(pack({"type": "repeat", "request_id": 5, "attempt": "x", "position": None}))
    room = {"gateway": NOBODY, "kind": "both", "known_tokens": 5, "max_tokens": 5}
    for negative in ({"known_tokens": -(10**9)}, {"max_tokens": -(10**9)}):
        # Granted, it would make room for everybody.
        yield _frame(pack({"type": "reserve", **_KEY, **room, **negative}))
    # A tensor whose size nobody has memory for, in shapes that must not be multiplied blindly.
    for shape in ([2**31, 2**31], [-1, 64], [HUGE] * 64, [1] * 10_000):
        meta = ["float32", shape]
        yield _frame(pack({"type": "forward", **_KEY, "start_position": 0, "tensor": meta}))
    meta = ["complex128", [1, 1]]
    yield _frame(pack({"type": "forward", **_KEY, "start_position": 0, "tensor": meta}), b"\0" * 16)


def _meta(*shape: int) -> tuple[TensorMeta, bytes]:
    meta = TensorMeta("float32", shape)
    return meta, b"\xff" * meta.num_bytes  # NaN everywhere


def _absurd_work(user: str, replicas: Replicas, hidden_size: int) -> Iterator[tuple[Data, bytes]]:
    for kind in ReserveKind:
        reserve = Reserve(**_KEY, gateway=user, kind=kind, known_tokens=HUGE, max_tokens=HUGE)
        yield reserve, b""
    for message in _absurd_opens(user, replicas):
        # With a grant, so that it is not refused for the lack of one.
        grant = Reserve(
            request_id=message.request_id,
            attempt=message.attempt,
            gateway=user,
            kind=ReserveKind.BOTH,
            known_tokens=1,
            max_tokens=1,
        )
        yield grant, b""
        yield message, b""
    yield Release(**_KEY), b""
    yield Resend(**_KEY, gateway=user, index=-HUGE), b""
    for shape in ((1, hidden_size), (0, hidden_size), (3, 0), (2, 2, 2), ()):
        meta, data = _meta(*shape)
        yield Forward(**_KEY, start_position=-7, tensor=meta), data
        for rows in ([], [StepRow(NOBODY, 1, -5, -7)], [StepRow(NOBODY, 1, HUGE, HUGE)] * 3):
            yield Step(group=10**9, rows=rows, tensor=meta), data
    yield PrefillProgress(**_KEY, end_position=HUGE), b""
    yield FirstToken(**_KEY, position=-1, token_id=-1), b""
    yield KvComplete(**_KEY, stage=-1), b""
    yield HandedOver(**_KEY), b""
    yield StepDone(group=-1, results=[StepResult(NOBODY, 1, -1, HUGE, "no reason")]), b""
    yield Repeat(**_KEY, position=-HUGE), b""
    yield RowFailed(**_KEY, error="x" * 20_000), b""
    yield Live(requests=[RequestKey(f"{NOBODY}-{i}", i) for i in range(1000)]), b""


def _absurd_opens(user: str, replicas: Replicas) -> Iterator[Open]:
    prefill, decode = replicas
    routes = ((NOBODY, NOBODY), (prefill, NOBODY), (NOBODY, decode), replicas, (decode, decode))
    prompts: tuple[tuple[int, ...], ...] = ((), (-1,), (HUGE, 5))
    for number, (route, prompt) in enumerate(itertools.product(routes, prompts)):
        yield Open(
            request_id=f"{NOBODY}-{number}",
            attempt=1,
            gateway=user,
            prefill_replica=route[0],
            decode_replica=route[1],
            num_prompt_tokens=len(prompt) or HUGE,
            num_generated_tokens=0,
            max_tokens=HUGE,
            prompt_ids=prompt,
            sampling=Sampling(temperature=-1.0, top_p=-1.0, top_k=-5, seed=HUGE),
        )


def _absurd_kv(user: str, replicas: Replicas, hidden_size: int) -> Iterator[tuple[Data, bytes]]:
    for shape in ((1, 2, 1, 2, 32), (0, 2, 5, 2, 32), (7,)):
        meta, data = _meta(*shape)
        for position in (-1, HUGE):
            chunk = KvChunk(
                **_KEY,
                layers=LayerRange(0, HUGE),
                position=position,
                num_positions=-position,
                offset=-position,
                total=-1,
                checksum=-1,
                tensor=meta,
            )
            yield chunk, data


def _absurd_credit(user: str, replicas: Replicas, hidden_size: int) -> Iterator[tuple[Data, bytes]]:
    yield KvCredit(**_KEY, received=-HUGE, credit=HUGE), b""
    yield KvCredit(**_KEY, received=HUGE, credit=-HUGE), b""


def _absurd_events(user: str, replicas: Replicas, hidden_size: int) -> Iterator[tuple[Data, bytes]]:
    for kind in ReserveKind:
        for tokens in (-HUGE, HUGE):
            granted = Granted(
                **_KEY,
                replica=replicas[1],
                kind=kind,
                state=GrantState.GRANTED,
                expires_seconds=-1.0,
                kv_credit_bytes=tokens,
                free_tokens=tokens,
                free_slots=tokens,
            )
            yield granted, b""
    yield Opened(**_KEY, replica=replicas[1], stage=-HUGE), b""
    yield Waiting(**_KEY), b""
    yield Tokens(rows=[TokenRow(NOBODY, 1, -1, HUGE, "no reason")] * 1000), b""
    for loss in LossKind:
        yield Lost(**_KEY, kind=loss, reason="y" * 20_000), b""

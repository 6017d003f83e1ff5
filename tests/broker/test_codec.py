"""Every codec against truncated, foreign, oversized and wrongly shaped bytes."""

import contextlib
import random
import struct
import zlib
from typing import Any

import msgspec
import pytest

from broker import events, work
from broker.codec import (
    FRAME_VERSION,
    MAGIC,
    DecodeError,
    decode_control,
    decode_frame,
    encode_control,
    encode_frame,
)
from broker.control import DeviceState, DeviceStatus, ModelManifest, TensorInfo
from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES
from broker.plan import LayerRange, Plan
from broker.telemetry import Telemetry
from broker.topics import ALL_TOPICS
from broker.work import ITEMSIZE, Forward, KvChunk, Reserve, ReserveKind, TensorMeta, Work

FORWARD = Forward(
    request_id="q", attempt=1, start_position=16, tensor=TensorMeta("float32", (2, 3))
)
HIDDEN = bytes(range(24))


def test_a_frame_comes_back_as_it_was() -> None:
    header, tensor = decode_frame(bytes(encode_frame(FORWARD, HIDDEN)), Work)
    assert header == FORWARD
    assert bytes(tensor) == HIDDEN


def test_tensor_bytes_start_at_a_multiple_of_64_and_are_not_copied() -> None:
    frame = encode_frame(FORWARD, HIDDEN)
    _, tensor = decode_frame(frame, Work)
    frame[-1] = 99
    assert tensor[-1] == 99
    assert (len(frame) - len(HIDDEN)) % 64 == 0


@pytest.mark.parametrize("length", range(0, 100, 3))
def test_a_truncated_frame_is_refused(length: int) -> None:
    frame = bytes(encode_frame(FORWARD, HIDDEN))
    with pytest.raises(DecodeError):
        decode_frame(frame[: min(length, len(frame) - 1)], Work)


def test_bytes_behind_the_tensor_are_refused() -> None:
    with pytest.raises(DecodeError, match="25 bytes"):
        decode_frame(bytes(encode_frame(FORWARD, HIDDEN)) + b"x", Work)


def test_a_tensor_that_the_header_does_not_promise_is_refused() -> None:
    with pytest.raises(ValueError, match="23 bytes"):
        encode_frame(FORWARD, HIDDEN[:-1])


def test_a_frame_of_another_version_names_both() -> None:
    frame = encode_frame(FORWARD, HIDDEN)
    frame[2] = 7
    with pytest.raises(DecodeError, match=r"version 7.*speaks 1"):
        decode_frame(frame, Work)


def test_random_and_damaged_bytes_raise_nothing_but_decode_errors() -> None:
    rng = random.Random(3)
    good = bytes(encode_frame(FORWARD, HIDDEN))
    unions: list[Any] = [t.message for t in ALL_TOPICS if t.message is not bytes]
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        for payload in (bytes(damaged), rng.randbytes(rng.randrange(120))):
            for union in (Work, events.Event, KvChunk):
                with contextlib.suppress(DecodeError):
                    decode_frame(payload, union)
            for message in unions[:3]:
                with contextlib.suppress(DecodeError):
                    decode_control(payload, message)


def test_a_message_of_another_topic_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode_frame(bytes(encode_frame(FORWARD, HIDDEN)), events.Event)


def test_values_that_types_cannot_rule_out_are_refused_when_decoding() -> None:
    payload = b'{"layers": [3, 1]}'
    with pytest.raises(DecodeError, match="not a layer range"):
        decode_control(payload, msgspec.defstruct("Holder", [("layers", LayerRange)]))


@pytest.mark.parametrize(("known_tokens", "max_tokens"), [(0, 5), (-(10**9), 5), (5, -1)])
def test_a_reservation_that_would_give_room_back_is_refused(
    known_tokens: int, max_tokens: int
) -> None:
    header = msgspec.to_builtins(
        Reserve(
            request_id="q",
            attempt=1,
            gateway="g",
            kind=ReserveKind.DECODE,
            known_tokens=1,
            max_tokens=1,
        )
    )
    packed = msgspec.msgpack.encode(
        header | {"known_tokens": known_tokens, "max_tokens": max_tokens}
    )
    frame = struct.pack("<2sBBI", MAGIC, FRAME_VERSION, 0, len(packed)) + packed
    with pytest.raises(DecodeError, match="at least one known token"):
        decode_frame(frame, Work)


def test_nothing_and_nonsense_are_refused_as_json() -> None:
    for payload in (b"", b"null", b"[]", b'"x"', b"\xff", b"{", b'{"state": "lost"}', b"[" * 5000):
        with pytest.raises(DecodeError):
            decode_control(payload, DeviceStatus)


def test_a_field_of_a_newer_version_is_ignored() -> None:
    payload = b'{"state": "ready", "session": 5, "colour": "green"}'
    assert decode_control(payload, DeviceStatus) == DeviceStatus(state=DeviceState.READY, session=5)


def test_telemetry_needs_no_field_at_all() -> None:
    assert decode_control(b"{}", Telemetry) == Telemetry()


def test_control_messages_are_json_that_a_person_can_read() -> None:
    status = DeviceStatus(state=DeviceState.READY, session=5)
    assert b'"state":"ready"' in encode_control(status)


def manifest(num_tensors: int) -> ModelManifest:
    tensors = {
        f"model.layers.{n}": TensorInfo(
            file="model.safetensors",
            offset=n,
            num_bytes=1,
            dtype="BF16",
            shape=(1,),
            checksum=random.Random(n).randbytes(32).hex(),
        )
        for n in range(num_tensors)
    }
    return ModelManifest(name="m", revision="r", config={}, tensors=tensors)


def test_a_model_of_many_experts_fits_into_one_message() -> None:
    many = manifest(20_000)
    payload = encode_control(many)
    assert len(payload) < DEFAULT_MAX_PAYLOAD_BYTES < len(msgspec.json.encode(many))
    assert decode_control(payload, ModelManifest) == many
    assert encode_control(manifest(100)).startswith(b"{")


def test_compressed_bytes_that_are_damaged_or_endless_are_refused() -> None:
    payload = encode_control(manifest(4_000))
    for wrong in (payload[:1], payload[:-1], payload[:900] + payload[950:]):
        with pytest.raises(DecodeError):
            decode_control(wrong, ModelManifest)
    with pytest.raises(DecodeError, match="longer than"):
        decode_control(zlib.compress(bytes(40 << 20)), ModelManifest)


def test_a_plan_whose_layers_have_a_gap_is_refused() -> None:
    stage = {
        "device": "a", "embedding": True, "head": True, "predicted_seconds": 0.1,
        "layers": [1, 3],
    }  # fmt: skip
    replica = {
        "id": "r", "role": "both", "slots": 1, "prefill_slots": 1, "kv_tokens": 1,
        "stages": [stage],
    }  # fmt: skip
    plan = {
        "version": 1, "state": "active", "model": "m", "revision": "r", "weights": "float32",
        "kv_format": "float32", "chunk_tokens": 1, "context_tokens": 1, "replicas": [replica],
    }  # fmt: skip
    with pytest.raises(DecodeError, match="contiguous from 0"):
        decode_control(msgspec.json.encode(plan), Plan)


@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
def test_a_shape_says_how_many_bytes_follow(dtype: str) -> None:
    assert TensorMeta(dtype, (3, 5)).num_bytes == 15 * ITEMSIZE[dtype]


@pytest.mark.parametrize(("dtype", "shape"), [("float64", (1,)), ("", (1,)), ("float32", (-1, 2))])
def test_an_unknown_dtype_or_negative_shape_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dtype|negative"):
        TensorMeta(dtype, shape)


def test_every_data_header_has_its_own_tag() -> None:
    tags = [
        cls.__struct_config__.tag
        for cls in (*vars(work).values(), *vars(events).values())
        if isinstance(cls, type)
        and issubclass(cls, work.Data)
        and cls not in (work.Data, work.RequestData)
    ]
    assert len(tags) == len(set(tags)) > 15


def test_a_header_says_what_is_missing() -> None:
    frame = encode_frame(
        Reserve(
            request_id="q", attempt=0, gateway="g", kind=work.ReserveKind.BOTH,
            known_tokens=1, max_tokens=1,
        )
    )  # fmt: skip
    with pytest.raises(DecodeError, match="header"):
        decode_frame(bytes(frame).replace(b"gateway", b"gatewax"), Work)

"""Bytes to messages and back. `DecodeError` is the only error that decoding raises.

Control messages are JSON, because a person reads them with ``mosquitto_sub``; only one that
would hardly fit into a message is compressed (zlib): a model of many experts has a name and a
checksum for each of its matrices. Data messages are frames: a fixed prefix, a MessagePack
header and raw tensor bytes (JSON would carry tensors as base64, a third longer). Tensor bytes
are never copied when decoding.

    0      2        3       4              8
    | "E2" | version| flags | header bytes | header | zeros up to a multiple of 64 | tensor |
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, TypeVar

import msgspec

from broker.control import Control
from broker.work import Data, TensorMeta

MAGIC = b"E2"
FRAME_VERSION = 1
_PREFIX = struct.Struct("<2sBBI")
_ALIGNMENT = 64

_LARGEST_PLAIN_BYTES: Final = 512 << 10
_LARGEST_BYTES: Final = 32 << 20  # of what was compressed, so that no peer can fill the memory
_COMPRESSED: Final = b"x"  # zlib's first byte, with which no JSON object begins

MessageT = TypeVar("MessageT")
Buffer = bytes | bytearray | memoryview

_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()
_json_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_msgpack_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


class DecodeError(Exception):
    """The payload is not the message it should be. Meant to be logged, counted, dropped."""


def encode_control(message: Control) -> bytes:
    """Return the JSON of a control message, compressed if it is very long."""
    text = _json.encode(message)
    return text if len(text) <= _LARGEST_PLAIN_BYTES else zlib.compress(text)


def decode_control(payload: Buffer, message_type: type[MessageT]) -> MessageT:
    """Decode and validate JSON; `DecodeError` is the only error this raises."""
    decoder = _json_decoders.get(message_type)
    if decoder is None:
        decoder = _json_decoders[message_type] = msgspec.json.Decoder(message_type)
    try:
        if payload[:1] == _COMPRESSED:
            payload = _decompressed(payload)
        return decoder.decode(payload)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, zlib.error) as error:
        raise DecodeError(f"not a {_name(message_type)}: {error}") from error


def _decompressed(payload: Buffer) -> bytes:
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(payload, _LARGEST_BYTES)
    if not decompressor.eof:
        raise DecodeError(f"compressed text is cut off, or longer than {_LARGEST_BYTES} bytes")
    return text


def encode_frame(header: Data, tensor: Buffer = b"") -> bytearray:
    """Return one frame; the tensor's bytes are copied once, into it."""
    meta: TensorMeta | None = getattr(header, "tensor", None)
    expected = meta.num_bytes if meta is not None else 0
    if len(tensor) != expected:
        raise ValueError(f"tensor has {len(tensor)} bytes, the header says {expected}")
    head = _msgpack.encode(header)
    start = _PREFIX.size + len(head)
    if expected:
        start += -start % _ALIGNMENT
    frame = bytearray(start + expected)
    _PREFIX.pack_into(frame, 0, MAGIC, FRAME_VERSION, 0, len(head))
    frame[_PREFIX.size : _PREFIX.size + len(head)] = head
    frame[start:] = tensor
    return frame


def decode_frame(payload: Buffer, union: Any) -> tuple[Any, memoryview]:
    """Return a frame's header, one of ``union``, and a view of its tensor bytes.

    `DecodeError` is the only error this raises.
    """
    view = memoryview(payload)
    if len(view) < _PREFIX.size:
        raise DecodeError(f"frame of {len(view)} bytes is shorter than its prefix")
    magic, version, _flags, header_bytes = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise DecodeError("not an E2LLM frame")
    if version != FRAME_VERSION:
        raise DecodeError(f"frame version {version}, this software speaks {FRAME_VERSION}")
    end = _PREFIX.size + header_bytes
    if end > len(view):
        raise DecodeError(f"header of {header_bytes} bytes in a frame of {len(view)}")
    decoder = _msgpack_decoders.get(union)
    if decoder is None:
        decoder = _msgpack_decoders[union] = msgspec.msgpack.Decoder(union)
    try:
        header = decoder.decode(view[_PREFIX.size : end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a {_name(union)} header: {error}") from error
    meta: TensorMeta | None = getattr(header, "tensor", None)
    expected = meta.num_bytes if meta is not None else 0
    if expected:
        end += -end % _ALIGNMENT
    tensor = view[end:]
    if len(tensor) != expected:
        raise DecodeError(f"tensor has {len(tensor)} bytes, the header says {expected}")
    return header, tensor


def _name(message_type: Any) -> str:
    return getattr(message_type, "__name__", "data message")

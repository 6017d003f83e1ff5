"""What a publication may be, checked before it is handed over, so that the error has a caller.

A broker drops a client that sends a packet over its limit, without a word under MQTT 3.1.1.
"""

from __future__ import annotations

from typing import Final

from broker.transport import Publication

# 1 MiB of tensor plus room for the frame's header, whose lists grow with the rows it carries.
DEFAULT_MAX_PAYLOAD_BYTES: Final = (1 << 20) + (64 << 10)

# Fixed header (5), topic (2 + 65535 at most), packet id (2) and MQTT 5 properties beside it.
PACKET_OVERHEAD_BYTES: Final = 66 << 10


def check_publication(publication: Publication, max_payload_bytes: int) -> None:
    """Raise if the message cannot be sent.

    Raises:
        ValueError: The topic is empty or holds a wildcard, or the payload is over the limit.
        TypeError: The payload is not ``bytes`` or ``bytearray``.
    """
    topic, payload = publication.topic, publication.payload
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        raise ValueError(f"cannot publish to {topic!r}: a topic is not empty and has no wildcard")
    if not isinstance(payload, bytes | bytearray):
        raise TypeError(
            f"the payload for {topic} is a {type(payload).__name__}; "
            "build it as bytes or one bytearray"
        )
    if len(payload) > max_payload_bytes:
        raise ValueError(
            f"the payload for {topic} has {len(payload)} bytes, the limit is "
            f"{max_payload_bytes}; send smaller chunks or raise the limit here and at the broker"
        )

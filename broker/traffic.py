"""What went over a connection to the broker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Messages and the bytes of their payloads, since the process started.

    Each direction is written by one thread at a time; readers may be a message behind.
    """

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0

    def sent(self, payload: bytes | bytearray) -> None:
        """Count a message that was handed to the connection."""
        self.messages_sent += 1
        self.bytes_sent += len(payload)

    def received(self, payload: bytes | bytearray) -> None:
        """Count a message that arrived."""
        self.messages_received += 1
        self.bytes_received += len(payload)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.messages_sent + other.messages_sent,
            self.bytes_sent + other.bytes_sent,
            self.messages_received + other.messages_received,
            self.bytes_received + other.bytes_received,
        )

"""The `umqtt.simple` of MicroPython for CPython, as far as examples/ use it.

MQTT 3.1.1 over one socket, without a thread: whatever arrives is read by `wait_msg`, also
while a publication waits for its acknowledgement.
"""

import socket
import struct
from collections.abc import Callable
from typing import Final

_CONNECT: Final = 0x10
_PUBLISH: Final = 0x30
_PUBACK: Final = 0x40
_SUBSCRIBE: Final = 0x82
_DISCONNECT: Final = 0xE0

_CLEAN_SESSION: Final = 0x02
_USER_AND_PASSWORD: Final = 0xC0


class MQTTException(Exception):  # noqa: N818  # its name there
    """The broker refused; the argument is its code."""


class MQTTClient:
    """A client; user, password and keep alive are those of CONNECT."""

    def __init__(
        self,
        client_id: str,
        server: str,
        port: int = 1883,
        user: str = "",
        password: str = "",
        keepalive: int = 0,
    ) -> None:
        self._client_id = client_id
        self._address = (server, port)
        self._credential = (user, password)
        self._keep_alive = keepalive
        self._packet_id = 0
        self._callback: Callable[[bytes, bytes], None] = lambda topic, message: None

    def set_callback(self, callback: Callable[[bytes, bytes], None]) -> None:
        """Have ``callback(topic, message)`` called for each message."""
        self._callback = callback

    def connect(self) -> None:
        """Connect; `MQTTException` if the broker refuses."""
        self._socket = socket.create_connection(self._address)
        flags = _CLEAN_SESSION | _USER_AND_PASSWORD
        head = _string(b"MQTT") + struct.pack("!BBH", 4, flags, self._keep_alive)
        texts = (self._client_id, *self._credential)
        self._send(_CONNECT, head + b"".join(_string(text.encode()) for text in texts))
        kind, body = self._read_packet()
        if kind != 0x20 or body[1]:
            raise MQTTException(body[1])

    def disconnect(self) -> None:
        """Say goodbye and close the socket."""
        self._send(_DISCONNECT, b"")
        self._socket.close()

    def subscribe(self, topic: bytes, qos: int = 0) -> None:
        """Subscribe and wait until the broker has agreed."""
        self._packet_id += 1
        self._send(_SUBSCRIBE, struct.pack("!H", self._packet_id) + _string(topic) + bytes([qos]))
        while True:
            kind, body = self._take()
            if kind == 0x90:
                if body[2] & 0x80:
                    raise MQTTException(body[2])
                return

    def publish(self, topic: bytes, msg: bytes, retain: bool = False, qos: int = 0) -> None:
        """Publish; at QoS 1 wait until the broker has it."""
        self._packet_id += 1
        packet_id = struct.pack("!H", self._packet_id) if qos else b""
        self._send(_PUBLISH | qos << 1 | retain, _string(topic) + packet_id + msg)
        while qos and self._take() != (_PUBACK, packet_id):
            pass

    def wait_msg(self) -> int:
        """Wait for one packet and return its kind; a message goes to the callback."""
        return self._take()[0]

    def _take(self) -> tuple[int, bytes]:
        kind, body = self._read_packet()
        if kind & 0xF0 == _PUBLISH:
            (num_bytes,) = struct.unpack_from("!H", body)
            topic, rest = body[2 : 2 + num_bytes], body[2 + num_bytes :]
            if kind & 0x06:
                packet_id, rest = rest[:2], rest[2:]
            self._callback(topic, rest)
            if kind & 0x06:
                self._send(_PUBACK, packet_id)
        return kind, body

    def _read_packet(self) -> tuple[int, bytes]:
        [kind] = self._read(1)
        num_bytes, shift, more = 0, 0, True
        while more:
            [digit] = self._read(1)
            num_bytes |= (digit & 0x7F) << shift
            shift, more = shift + 7, bool(digit & 0x80)
        return kind, self._read(num_bytes)

    def _read(self, num_bytes: int) -> bytes:
        data = b""
        while len(data) < num_bytes:
            piece = self._socket.recv(num_bytes - len(data))
            if not piece:
                raise OSError("the broker has closed the connection")
            data += piece
        return data

    def _send(self, kind: int, body: bytes) -> None:
        length = b""
        rest = len(body)
        while not length or rest:
            rest, digit = divmod(rest, 128)
            length += bytes([digit | (0x80 if rest else 0)])
        self._socket.sendall(bytes([kind]) + length + body)


def _string(text: bytes) -> bytes:
    return struct.pack("!H", len(text)) + text

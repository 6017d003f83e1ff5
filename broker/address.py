"""Where the broker is and who connects: ``mqtt://user:password@host:port``, parsed once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORT = 1883

# The id may stand in a broker's log, from which a weak password should not be guessed fast:
# 10 ms on a PC, once per credential.
_ROUNDS = 20_000
_SECRET_BYTES = 8


@dataclass(frozen=True)
class BrokerAddress:
    """Host, port and credential of a broker; ``repr`` and ``str`` hide the password.

    Attributes:
        host: Name or IP address, IPv6 without brackets.
        port: TCP port, 1..65535.
        username: The user that the ACL knows: a device id, a gateway id or ``planner``.
        password: Sent in the clear, as MQTT does without TLS.
    """

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("a broker address needs a host: mqtt://user:password@host:port")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"broker port {self.port} is not in 1..65535")
        if self.password is not None and self.username is None:
            # MQTT 3.1.1, 3.1.2.9: without a user name there can be no password.
            raise ValueError("a broker password needs a user name: mqtt://user:password@host:port")

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Return the address in ``mqtt://[user[:password]@]host[:port]``.

        User and password are percent-decoded, so ``p%40ss`` is ``p@ss``.

        Raises:
            ValueError: It is something else. The message never repeats the text, which may
                hold a password.
        """
        remedy = "expected mqtt://user:password@host:port, special characters percent-encoded"
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError:
            raise ValueError(f"the broker address has no valid host and port; {remedy}") from None
        if parts.scheme != "mqtt":
            raise ValueError(f"the broker address does not start with mqtt://; {remedy}")
        if parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise ValueError(f"the broker address has something after host and port; {remedy}")
        if not parts.hostname:
            raise ValueError(f"the broker address names no host; {remedy}")
        return cls(
            host=parts.hostname,
            port=DEFAULT_PORT if port is None else port,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password is not None else None,
        )

    @property
    def url(self) -> str:
        """The address as `parse` reads it, password included: for a child's environment."""
        login = ""
        if self.username is not None:
            login = quote(self.username, safe="")
            if self.password is not None:
                login += ":" + quote(self.password, safe="")
            login += "@"
        return f"mqtt://{login}{self._host_in_url}:{self.port}"

    def secret_client_id(self, name: str) -> str:
        """Return a client id that begins with ``name`` and that only this credential leads to.

        Who connects with the id of another client takes its place, and no broker asks without
        a plug-in whether the id belongs to the user (docs/decisions/0009). So the id has a part
        that other users cannot know, and that is the same in every session of this one. Without
        a password it is the name.
        """
        if self.password is None:
            return name
        return f"{name}~{_secret(self.username or '', self.password)}"

    def __str__(self) -> str:
        login = f"{self.username}@" if self.username is not None else ""
        return f"mqtt://{login}{self._host_in_url}:{self.port}"

    @property
    def _host_in_url(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def listening_address(text: str, what: str) -> tuple[str, int]:
    """Read ``0.0.0.0:8090`` or ``[::]:8090``; ValueError says what was expected of ``what``."""
    host, _, port = text.strip().rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f'{what} {text!r} is not an address and port like "0.0.0.0:8090"')
    return host, int(port)


@cache
def _secret(user: str, password: str) -> str:
    salt = f"e2llm client id of {user}".encode()
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ROUNDS, _SECRET_BYTES)
    return digest.hex()

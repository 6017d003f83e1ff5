"""Where the broker is and who connects: ``mqtt://user:password@host:port``, parsed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORT = 1883


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

    def __str__(self) -> str:
        login = f"{self.username}@" if self.username is not None else ""
        return f"mqtt://{login}{self._host_in_url}:{self.port}"

    @property
    def _host_in_url(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

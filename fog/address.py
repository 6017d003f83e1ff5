"""The address of a gateway, as a person writes it. Pure."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit


class AddressError(Exception):
    """What was given as an address is none."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url!r} is not an address like http://127.0.0.1:8080")


class Address(NamedTuple):
    """Its parts; ``path`` does not end in a slash, without ``port`` it is the scheme's."""

    is_https: bool
    host: str
    port: int | None
    path: str


def parse_address(url: str) -> Address:
    """Return the parts of ``http://host:port/path`` or https, or raise `AddressError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressError(url) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise AddressError(url)
    return Address(parts.scheme == "https", parts.hostname, port, parts.path.rstrip("/"))

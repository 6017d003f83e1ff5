"""Finding a gateway on the local network by mDNS (RFC 6762, 6763). The one place for zeroconf.

Whoever is on the network can answer such a question, so what is found here is a proposal: who
joins sees the address before a token goes there, and names one where there are several.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zeroconf import Error, IPVersion, ServiceBrowser, ServiceInfo, Zeroconf
from zeroconf import ServiceStateChange as Change

SERVICE: Final = "_e2llm._tcp.local."
_INFO_MILLISECONDS: Final = 3000
_OTHERS_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class FoundGateway:
    """A gateway that answered.

    Attributes:
        name: Its id.
        url: Where it says that it is reached.
        through: Address of the interface of this machine over which it answered.
    """

    name: str
    url: str
    through: str


class Advertisement:
    """Tells the local networks of a gateway.

    Args:
        gateway: Its id.
        port: Where it listens.
        url: Its public URL, where it has one; None: follows from address and port.
    """

    def __init__(self, gateway: str, port: int, url: str | None = None) -> None:
        self._gateway = gateway
        self._port = port
        self._url = url
        self._parts: list[Zeroconf] = []

    def start(self, addresses: Sequence[str]) -> None:
        """Begin to answer, on the interface of each address with that address.

        Blocks for about a second each, which asking whether the name is free takes.

        Raises:
            OSError: An interface cannot be used, or the name is taken.
        """
        for address in addresses:
            part = Zeroconf(interfaces=[address], ip_version=IPVersion.V4Only)
            self._parts.append(part)
            info = ServiceInfo(
                SERVICE,
                f"{self._gateway}.{SERVICE}",
                port=self._port,
                parsed_addresses=[address],
                properties={} if self._url is None else {"url": self._url},
                server=f"{socket.gethostname().partition('.')[0]}-e2llm.local.",
            )
            try:
                part.register_service(info, allow_name_change=True)
            except Error as error:
                raise OSError(f"cannot be told on {address}: {error!r}") from error

    def stop(self) -> None:
        """Say goodbye."""
        for part in self._parts:
            with contextlib.suppress(OSError, Error):
                part.close()
        self._parts.clear()


def look(address: str, seconds: float) -> list[FoundGateway]:
    """Return the gateways that answer within a time on the interface of an address.

    Raises:
        OSError: The interface cannot be used.
    """
    found: dict[str, FoundGateway] = {}
    is_found = threading.Event()
    names: set[str] = set()

    def on_change(zeroconf: Zeroconf, service_type: str, name: str, state_change: Change) -> None:
        if state_change is Change.Added:
            names.add(name)
            is_found.set()

    with contextlib.closing(
        Zeroconf(interfaces=[address], ip_version=IPVersion.V4Only)
    ) as zeroconf:
        browser = ServiceBrowser(zeroconf, SERVICE, handlers=[on_change])
        # After the first answer others have a second: to choose, a person must see all.
        is_found.wait(seconds)
        if is_found.is_set():
            time.sleep(min(seconds, _OTHERS_SECONDS))
        browser.cancel()
        for name in sorted(names):
            info = zeroconf.get_service_info(SERVICE, name, _INFO_MILLISECONDS)
            if info is not None and (gateway := _gateway(info, address)) is not None:
                found[gateway.url] = gateway
    return list(found.values())


def _gateway(info: ServiceInfo, through: str) -> FoundGateway | None:
    addresses = info.parsed_addresses(IPVersion.V4Only)
    told = (info.properties or {}).get(b"url")
    if told is not None:
        url = told.decode("utf-8", "replace")
    elif addresses and info.port:
        url = f"http://{addresses[0]}:{info.port}"
    else:
        return None
    return FoundGateway(info.name.removesuffix(f".{SERVICE}"), url, through)

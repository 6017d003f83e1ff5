"""Which of a machine's networks a fog looks for itself on, and why not the others.

Networks of containers and of virtual machines lead nowhere, and a VPN leads to people who did
not ask to see a fog: neither is used unless somebody names it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_CONTAINERS: Final = re.compile(
    r"(docker|podman|veth|cni|flannel|cali|virbr|vmnet|vboxnet|lxc|lxdbr|kube|br-[0-9a-f]{12}).*"
)
_VPN: Final = re.compile(r"(tun|tap|wg|utun|ppp|ipsec|tailscale|zt|nordlynx|proton).*")
_WIRELESS: Final = re.compile(r"(wl|wifi|ath).*")


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface.

    Attributes:
        addresses: IPv4.
        flags: ``up``, ``loopback``, ``pointopoint``, ``multicast`` and others, as Linux has them.
    """

    name: str
    addresses: tuple[str, ...]
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an interface is used, and why or why not."""

    interface: Interface
    is_used: bool
    reason: str

    @property
    def text(self) -> str:
        """One line for people."""
        name, addresses = self.interface.name, ", ".join(self.interface.addresses)
        place = f"{name} ({addresses})" if addresses else name
        return f"{place}: {'used' if self.is_used else 'not used'}, {self.reason}"


def judge(interfaces: Sequence[Interface], wanted: Sequence[str] = ()) -> list[Verdict]:
    """Return a verdict on each interface, those that are used first, wired before wireless.

    Args:
        interfaces: Of this machine.
        wanted: Names that a person has given; empty: as the rules say.
    """
    verdicts = [_verdict(each, wanted) for each in interfaces]
    return sorted(verdicts, key=lambda each: (not each.is_used, _is_wireless(each.interface)))


def addresses_of(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one address of each interface that is used."""
    return [each.interface.addresses[0] for each in verdicts if each.is_used]


def interfaces_here() -> list[Interface]:
    """Return the interfaces of this machine."""
    import psutil

    stats = psutil.net_if_stats()
    found = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        addresses = tuple(entry.address for entry in entries if entry.family == socket.AF_INET)
        known = stats.get(name)
        flags = set(known.flags.split(",")) if known is not None else set()
        if known is not None and known.isup:
            flags.add("up")
        found.append(Interface(name, addresses, frozenset(flags)))
    return found


def _verdict(interface: Interface, wanted: Sequence[str]) -> Verdict:
    if not interface.addresses:
        return Verdict(interface, False, "it has no IPv4 address")
    if wanted:
        is_used = interface.name in wanted
        return Verdict(interface, is_used, "you named it" if is_used else "you named others")
    reason = _obstacle(interface)
    if reason is not None:
        return Verdict(interface, False, reason)
    kind = "a wireless" if _is_wireless(interface) else "a wired"
    return Verdict(interface, True, f"{kind} network of this machine")


def _obstacle(interface: Interface) -> str | None:
    name, flags = interface.name, interface.flags
    if "loopback" in flags or re.fullmatch(r"lo\d*", name):
        return "it leads to this machine alone"
    if "up" not in flags:
        return "it is down"
    if _CONTAINERS.fullmatch(name):
        return "it is of containers or virtual machines"
    if _VPN.fullmatch(name) or "pointopoint" in flags:
        return "it is a VPN, or a link to one other machine"
    return None


def _is_wireless(interface: Interface) -> bool:
    return _WIRELESS.fullmatch(interface.name) is not None

"""How a device joins a fog: from a token to a running node.

What it gets is kept in a state folder of its own, mode 600, so that it starts again without a
token.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.address import BrokerAddress
from broker.credentials import write_private
from broker.interfaces import Interface, Verdict, judge
from broker.mqtt import MqttTransport
from broker.transport import Connected
from fog.client import FogClient, FogRequestError
from fog.services import child_environ, python_command

LOOK_SECONDS: Final = 4.0
TRY_SECONDS: Final = 10.0
_UNAUTHORIZED: Final = 401
_BROKER_FILE: Final = "broker"
_JOINED_FILE: Final = "joined.json"


class JoinError(Exception):
    """The device cannot join; the message says why, and the remedy."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A device that is a user of the broker.

    Attributes:
        broker: With its credential.
        gateway: URL of the gateway that let it in.
    """

    device: str
    site: str
    broker: BrokerAddress
    gateway: str


def check_node() -> None:
    """Return if this machine can compute.

    Raises:
        JoinError: The packages of a device are missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise JoinError(
            "this machine has no torch, without which it cannot compute; install what a device "
            f"needs with: {sys.executable} -m pip install 'e2llm[node]'"
        )


def join(gateway: str, token: str, device: str) -> Joined:
    """Ask a gateway for a credential.

    Raises:
        FogRequestError: It refused.
        FogUnreachableError: Nothing answers there.
        JoinError: It does not know the token, or answered with something else.
    """
    try:
        answer = FogClient(gateway, key=token).change("POST", "/fog/join", {"device": device})
    except FogRequestError as error:
        if error.status != _UNAUTHORIZED:
            raise
        raise JoinError(
            f"{gateway} does not take this token: it is another one, has expired or was revoked. "
            "Make a new one with: e2llm token create"
        ) from error
    try:
        broker = BrokerAddress.parse(answer["broker"])
        return Joined(str(answer["device"]), str(answer["site"]), broker, gateway)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise JoinError(f"{gateway} is no gateway that lets devices join ({error})") from error


def try_broker(joined: Joined, timeout_seconds: float = TRY_SECONDS) -> None:
    """Return when the broker has let the device in.

    Raises:
        JoinError: It did not, within the time.
    """
    deadline = time.monotonic() + timeout_seconds
    last = "it does not answer"
    while (left := deadline - time.monotonic()) > 0:
        transport = MqttTransport(joined.broker, f"{joined.device}~join")
        transport.connect()
        try:
            # One that is refused gives up; the broker may still be reading its users.
            while (event := transport.receive(min(left, 1.0))) is not None:
                if isinstance(event, Connected):
                    return
                last = str(getattr(event, "reason", last))
        finally:
            transport.close()
        time.sleep(0.2)
    raise JoinError(
        f"the broker at {joined.broker} did not let {joined.device} in ({last}). Is that address "
        "right from here? E2LLM_GATEWAY_PUBLIC_BROKER at the gateway sets another"
    )


def keep(joined: Joined, state: Path) -> None:
    """Write down what the device needs to start again; OSError if that is not possible."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(state / _BROKER_FILE, joined.broker.url + "\n")
    public = {"device": joined.device, "site": joined.site, "gateway": joined.gateway}
    write_private(state / _JOINED_FILE, json.dumps(public) + "\n")


def kept(state: Path) -> Joined:
    """Return what `keep` wrote.

    Raises:
        JoinError: There is nothing, or something else.
    """
    try:
        public = json.loads((state / _JOINED_FILE).read_text("utf-8"))
        broker = BrokerAddress.parse((state / _BROKER_FILE).read_text("utf-8"))
        return Joined(public["device"], public["site"], broker, public["gateway"])
    except FileNotFoundError:
        raise JoinError(
            f"no device has joined with the state folder {state}; `e2llm node join` does that"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JoinError(f"{state} cannot be read ({error}); join again") from error


def node_environ(
    joined: Joined, state: Path, memory: str | None, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of ``python -m nodes``: its settings, and those of the person."""
    settings = {
        "E2LLM_BROKER_FILE": str(state / _BROKER_FILE),
        "E2LLM_SITE": joined.site,
        "E2LLM_NODE_ID": joined.device,
    }
    if "E2LLM_NODE_STATE" not in environ:
        settings["E2LLM_NODE_STATE"] = str(state)
    if memory is not None:
        settings["E2LLM_NODE_MEMORY"] = memory
    inherited = {key: value for key, value in environ.items() if key != "E2LLM_BROKER"}
    return {**child_environ(inherited), **settings}


def become_node(joined: Joined, state: Path, memory: str | None) -> None:
    """Go on as the node, in this process; does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    environ = node_environ(joined, state, memory, os.environ)
    os.execve(sys.executable, python_command("nodes"), environ)


def device_name(hostname: str) -> str:
    """Return a name for this device that the broker takes, from that of the machine."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", hostname.partition(".")[0]).strip("-._")
    return name or "device"


def default_state(device: str, environ: Mapping[str, str]) -> Path:
    """Return the state folder of a device that has joined."""
    base = environ.get("XDG_STATE_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state"
    return root / "e2llm" / "nodes" / device


def this_device() -> str:
    """Return the name of this machine as a device."""
    return device_name(socket.gethostname())


def find_gateway(
    interfaces: Sequence[Interface],
    wanted: Sequence[str],
    tell: Callable[[str], None],
    look: Callable[[str], Sequence[tuple[str, str]]],
) -> str:
    """Return the URL of the one gateway on this machine's networks.

    Args:
        interfaces: Of this machine.
        wanted: Names of interfaces to look on; empty: as `broker.interfaces` chooses.
        tell: Gets each interface that is tried or left out, with the reason, and what was found.
        look: Name and URL of the gateways that answer on the interface of an address.

    Raises:
        JoinError: There is none, or there are several.
    """
    verdicts = judge(interfaces, wanted)
    found: dict[str, tuple[str, Verdict]] = {}
    for verdict in verdicts:
        tell(verdict.text)
        if not verdict.is_used:
            continue
        for name, url in look(verdict.interface.addresses[0]):
            tell(f"  {name} answers: {url}")
            # A gateway on two networks is reached over the first, wired before wireless.
            found.setdefault(name, (url, verdict))
    if not found:
        raise JoinError(
            "no gateway answers on these networks; name it with --gateway URL, or an interface "
            "with --interface NAME. A gateway answers with E2LLM_GATEWAY_ADVERTISE=true"
        )
    if len(found) > 1:
        urls = ", ".join(url for url, _ in found.values())
        raise JoinError(f"several gateways answer; choose one with --gateway: {urls}")
    ((name, (url, verdict)),) = found.items()
    tell(f"chosen: {name} at {url}, through {verdict.interface.name}: {verdict.reason}")
    return url

"""Finds and configures Mosquitto, and runs it, or the embedded broker, as this process.

Mosquitto runs as a child that never outlives this process; signals are passed on and its
exit is ours. Either way one line "listening on ..." says when clients may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import getpass
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from broker.access import Credential, mosquitto_acl, mosquitto_password_line
from broker.credentials import load_or_create_credentials, write_private
from broker.joining import LOOK_SECONDS, JoinFolder, take_in
from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES, PACKET_OVERHEAD_BYTES

__all__ = [
    "find_mosquitto",
    "load_or_create_credentials",
    "mosquitto_configuration",
    "run_amqtt",
    "run_mosquitto",
    "write_mosquitto_files",
]

logger = logging.getLogger(__name__)

# Debian puts the broker where an ordinary user's PATH does not look, Homebrew likewise.
_FURTHER_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/opt/homebrew/sbin")

# What may wait in the broker for one receiver: more than all senders' credit together, so
# that the broker drops nothing while the receivers keep their promises.
DEFAULT_CREDIT_BYTES: Final = 256 << 20
_SMALL_MESSAGE_BYTES: Final = 4096
_MIN_QUEUED_MESSAGES: Final = 10_000
_MAX_INFLIGHT_MESSAGES: Final = 1000

_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 3.0
_PR_SET_PDEATHSIG: Final = 1

PASSWORD_FILE: Final = "mosquitto.passwords"
ACL_FILE: Final = "mosquitto.acl"
CONFIG_FILE: Final = "mosquitto.conf"


def find_mosquitto() -> Path | None:
    """Return the Mosquitto binary on PATH or in an sbin folder, None if there is none."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), *_FURTHER_FOLDERS])
    found = shutil.which("mosquitto", path=folders)
    return Path(found) if found else None


def mosquitto_configuration(
    *,
    bind: str,
    port: int,
    password_file: Path,
    acl_file: Path,
    run_as: str | None = None,
    credit_bytes: int = DEFAULT_CREDIT_BYTES,
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
) -> str:
    """Return the text of a ``mosquitto.conf``; ``broker/mosquitto.conf`` explains each line.

    Args:
        bind: Address to listen on.
        port: TCP port.
        password_file: As `broker.access.mosquitto_password_line` writes its lines.
        acl_file: As `broker.access.mosquitto_acl` writes it.
        run_as: User that Mosquitto, started by root, changes to.
        credit_bytes: Sum of the credit that all receivers give: what may wait in queues.
        max_payload_bytes: Of one message.
    """
    lines = [
        "# Written by `python -m broker`; changes are lost at the next start.",
        f"listener {port} {bind}",
        "allow_anonymous false",
        f"password_file {password_file}",
        f"acl_file {acl_file}",
        "persistence false",
        "set_tcp_nodelay true",
        f"max_queued_bytes {2 * credit_bytes}",
        f"max_queued_messages {max(_MIN_QUEUED_MESSAGES, credit_bytes // _SMALL_MESSAGE_BYTES)}",
        f"max_inflight_messages {_MAX_INFLIGHT_MESSAGES}",
        f"max_packet_size {max_payload_bytes + PACKET_OVERHEAD_BYTES}",
        "sys_interval 5",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
    ]
    if run_as is not None:
        lines.append(f"user {run_as}")
    return "\n".join(lines) + "\n"


def write_mosquitto_files(
    folder: Path,
    port: int,
    credentials: Mapping[str, Credential],
    site: str,
    bind: str = "127.0.0.1",
    *,
    home: str | None = None,
    credit_bytes: int = DEFAULT_CREDIT_BYTES,
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
) -> Path:
    """Write configuration, passwords (hashed) and ACL, mode 600; return the configuration.

    Args:
        folder: Where the three files go.
        port: TCP port to listen on.
        credentials: All users.
        site: First level of the topics.
        bind: Address to listen on.
        home: Prefix of Home Assistant's discovery, see `broker.access.rules`.
        credit_bytes: See `mosquitto_configuration`.
        max_payload_bytes: Of one message.
    """
    folder = folder.resolve()
    write_access_files(folder, credentials, site, home)
    text = mosquitto_configuration(
        bind=bind,
        port=port,
        password_file=folder / PASSWORD_FILE,
        acl_file=folder / ACL_FILE,
        # Mosquitto would change to user "mosquitto", who cannot read a folder of root's.
        run_as=getpass.getuser() if os.geteuid() == 0 else None,
        credit_bytes=credit_bytes,
        max_payload_bytes=max_payload_bytes,
    )
    write_private(folder / CONFIG_FILE, text)
    return folder / CONFIG_FILE


def write_access_files(
    folder: Path, credentials: Mapping[str, Credential], site: str, home: str | None = None
) -> None:
    """Write Mosquitto's password and ACL file into ``folder``, mode 600."""
    lines = [mosquitto_password_line(credential) for credential in credentials.values()]
    write_private(folder / PASSWORD_FILE, "\n".join(lines) + "\n")
    write_private(folder / ACL_FILE, mosquitto_acl(site, credentials.values(), home))


class Joining:
    """Lets devices join a broker that runs.

    Args:
        folder: Where gateways ask.
        users: Those at the start.
        keep: Writes other users down, so that the next start knows them.
    """

    def __init__(
        self,
        folder: JoinFolder,
        users: Mapping[str, Credential],
        keep: Callable[[Mapping[str, Credential]], None],
    ) -> None:
        self._folder = folder
        self._users = dict(users)
        self._keep = keep

    def look(self, apply: Callable[[Mapping[str, Credential]], None]) -> None:
        """Answer what is asked; ``apply`` makes the broker go by other users."""

        def keep_and_apply(users: Mapping[str, Credential]) -> None:
            self._keep(users)
            apply(users)

        try:
            self._users = take_in(self._folder, self._users, keep_and_apply)
        except OSError as error:
            logger.error("a device cannot join: %s", error)


def run_mosquitto(
    binary: Path,
    configuration: Path,
    bind: str,
    port: int,
    site: str,
    joining: Joining | None = None,
    *,
    home: str | None = None,
) -> int:
    """Run Mosquitto until it ends or a signal ends it; return the exit status for ours."""
    child = subprocess.Popen([binary, "-c", configuration], preexec_fn=_die_with_parent())
    stopped = False

    def pass_on(number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    # Mosquitto reads its password and ACL files again.
    signal.signal(signal.SIGHUP, lambda number, _frame: child.send_signal(number))
    if not _wait_until_listening(bind, port, lambda: child.poll() is None):
        if not stopped:
            logger.error("Mosquitto did not start to listen on %s:%s", bind, port)
        child.terminate()
    else:
        logger.info("listening on %s:%s (Mosquitto, pid %s)", bind, port, child.pid)

    def reload(users: Mapping[str, Credential]) -> None:
        write_access_files(configuration.parent, users, site, home)
        child.send_signal(signal.SIGHUP)

    def let_join(joining: Joining) -> None:
        while child.poll() is None:
            joining.look(reload)
            time.sleep(LOOK_SECONDS)

    if joining is not None:
        # Beside the wait for its end: that with a time-out would wake up all the time.
        threading.Thread(target=let_join, args=(joining,), name="joins", daemon=True).start()
    status = child.wait()
    return 0 if stopped else status or 1


def run_amqtt(
    bind: str,
    port: int,
    credentials: Mapping[str, Credential],
    site: str,
    joining: Joining | None = None,
    *,
    home: str | None = None,
) -> int:
    """Run the embedded broker in this process until a signal ends it; return the status."""
    # Only here, so that a host with Mosquitto needs no amqtt.
    from broker.embedded import Users, embedded_broker

    # It reports every MQTT 5 client that we send back to 3.1.1 as a warning, and its state
    # machine every state.
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    logging.getLogger("transitions").setLevel(logging.WARNING)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        users = Users(credentials)

        def go_by(changed: Mapping[str, Credential]) -> None:
            users.by_name = changed

        async with embedded_broker(bind, port, users, site, home):
            logger.info("listening on %s:%s (amqtt, embedded, MQTT 3.1.1)", bind, port)
            while not stop.is_set():
                if joining is not None:
                    joining.look(go_by)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_SECONDS)

    try:
        asyncio.run(serve())
    except OSError as error:
        logger.error("cannot listen on %s:%s: %s", bind, port, error.strerror or error)
        return 1
    return 0


def _wait_until_listening(bind: str, port: int, is_alive: Callable[[], bool]) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)
    deadline = time.monotonic() + _START_SECONDS
    while is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            # Another process may own the port; then Mosquitto ends at once.
            time.sleep(0.05)
            return is_alive()
        time.sleep(0.02)
    return False


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs first, so that a kill of its parent ends it too (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return functools.partial(_call, prctl)


def _call(prctl: Callable[[int, int], int]) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

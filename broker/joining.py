"""How a device becomes a user of the broker, and ceases to be: files between two processes.

A gateway that was shown a token writes what it asks for; `python -m broker`, which alone may
change the users, answers after its broker has taken them in. So a gateway makes and removes nodes
and never sees a password of others, and the folder needs no more than to be on the broker's host.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.access import Credential, Kind, generate_password
from broker.credentials import write_private

logger = logging.getLogger(__name__)

FOLDER: Final = "joins"
LOOK_SECONDS: Final = 0.25
"""How often the broker's side looks."""
_REQUEST: Final = ".request"
_ANSWER: Final = ".answer"


class JoinRefusedError(Exception):
    """A device may not become a user, or not with this name; the message says why."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a gateway asks for.

    Attributes:
        id: Of the request.
        may_replace: Whether a device of that name that is there already gets a new password.
    """

    id: str
    device: str
    password: str
    may_replace: bool


@dataclass(frozen=True, slots=True)
class LeaveRequest:
    """What a gateway asks for, for a device that was removed.

    Attributes:
        id: Of the request.
    """

    id: str
    device: str


Request = JoinRequest | LeaveRequest


def admit(users: Mapping[str, Credential], request: JoinRequest) -> dict[str, Credential]:
    """Return the users with the device among them.

    Raises:
        JoinRefusedError: Another user has the name, or it can be none.
    """
    known = users.get(request.device)
    if known is not None and known.kind is not Kind.NODE:
        raise JoinRefusedError(f"{request.device!r} is the name of a {known.kind}; choose another")
    if known is not None and not request.may_replace:
        raise JoinRefusedError(
            f"a device {request.device!r} is there already; choose another name, or use a token "
            "for this device alone, which gives it a new credential"
        )
    try:
        credential = Credential(request.device, request.password, Kind.NODE)
    except ValueError as error:
        raise JoinRefusedError(str(error)) from error
    return {**users, request.device: credential}


def dismiss(users: Mapping[str, Credential], request: LeaveRequest) -> dict[str, Credential]:
    """Return the users without the device.

    Raises:
        JoinRefusedError: It is none of them, or is no device.
    """
    known = users.get(request.device)
    if known is None:
        raise JoinRefusedError(f"{request.device!r} is no user of the broker")
    if known.kind is not Kind.NODE:
        raise JoinRefusedError(f"{request.device!r} is the name of a {known.kind}, not of a device")
    return {name: user for name, user in users.items() if name != request.device}


class JoinFolder:
    """The folder; both sides use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make it, for its owner alone, and forget what nobody waits for any more."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in (*self.path.glob(f"*{_REQUEST}"), *self.path.glob(f"*{_ANSWER}")):
            old.unlink(missing_ok=True)

    def ask(self, device: str, *, may_replace: bool) -> JoinRequest:
        """Ask for a device, with a password made here; OSError if that cannot be written."""
        request = JoinRequest(secrets.token_hex(8), device, generate_password(), may_replace)
        text = json.dumps(
            {"device": device, "password": request.password, "may_replace": may_replace}
        )
        write_private(self.path / f"{request.id}{_REQUEST}", text)
        return request

    def ask_leave(self, device: str) -> LeaveRequest:
        """Ask that a device be no user any more; OSError if that cannot be written."""
        request = LeaveRequest(secrets.token_hex(8), device)
        text = json.dumps({"device": device, "leaves": True})
        write_private(self.path / f"{request.id}{_REQUEST}", text)
        return request

    def is_settled(self, request: Request) -> bool:
        """Whether the broker goes by what was asked for; False: there is no answer yet.

        Raises:
            JoinRefusedError: It was refused.
        """
        answer = self.path / f"{request.id}{_ANSWER}"
        if not answer.is_file():
            return False
        reason = json.loads(answer.read_text("utf-8"))["refused"]
        answer.unlink()
        if reason is not None:
            raise JoinRefusedError(reason)
        return True

    def withdraw(self, request: Request) -> None:
        """Ask no longer."""
        for ending in (_REQUEST, _ANSWER):
            (self.path / f"{request.id}{ending}").unlink(missing_ok=True)

    def requests(self) -> list[Request]:
        """Return what is asked for and not answered; what cannot be read is thrown away."""
        found: list[Request] = []
        for path in sorted(self.path.glob(f"*{_REQUEST}")):
            try:
                asked = json.loads(path.read_text("utf-8"))
                device = str(asked["device"])
                if asked.get("leaves") is True:
                    found.append(LeaveRequest(path.stem, device))
                    continue
                password, may_replace = str(asked["password"]), asked["may_replace"] is True
                found.append(JoinRequest(path.stem, device, password, may_replace))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
                # Without the text: it may hold a password.
                logger.warning("dropped %s: %s", path.name, type(error).__name__)
                path.unlink(missing_ok=True)
        return found

    def settle(self, request: Request, refused: str | None) -> None:
        """Answer a request."""
        write_private(self.path / f"{request.id}{_ANSWER}", json.dumps({"refused": refused}))
        (self.path / f"{request.id}{_REQUEST}").unlink(missing_ok=True)


def _changed(users: Mapping[str, Credential], request: Request) -> dict[str, Credential]:
    if isinstance(request, JoinRequest):
        return admit(users, request)
    return dismiss(users, request)


def take_in(
    folder: JoinFolder,
    users: Mapping[str, Credential],
    apply: Callable[[Mapping[str, Credential]], None],
) -> dict[str, Credential]:
    """Answer what is asked for in the folder; return the users after it.

    Args:
        folder: Where gateways ask.
        users: All users of the broker.
        apply: Makes the broker go by other users; called before anybody is told of it.
    """
    known = dict(users)
    verdicts: list[tuple[Request, str | None]] = []
    for request in folder.requests():
        try:
            known = _changed(known, request)
            verdicts.append((request, None))
        except JoinRefusedError as error:
            verdicts.append((request, str(error)))
    if known != users:
        apply(known)
    for request, refused in verdicts:
        folder.settle(request, refused)
        done = "joined" if isinstance(request, JoinRequest) else "is no user any more"
        logger.info("device %s: %s", request.device, refused or done)
    return known

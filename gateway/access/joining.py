"""``POST /fog/join``: a device shows its token and gets a credential for the broker.

And how a device that was removed loses it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request

from broker.address import BrokerAddress
from broker.joining import JoinFolder, JoinRefusedError, JoinRequest, LeaveRequest
from gateway.access.caller import current_visit
from gateway.access.door import JOIN_PATH
from gateway.bodies import Body, check_body, parse_object
from gateway.connection import read_body
from gateway.errors import ApiError, forbidden, not_ready
from gateway.openapi import body_of, errors
from gateway.owners import UnknownDeviceError, back
from gateway.requests import Engine, NotReadyError
from gateway.settings import Settings, is_loopback

RequestT = TypeVar("RequestT", JoinRequest, LeaveRequest)

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES: Final = 4096
_LOOK_SECONDS: Final = 0.05
_WAIT_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 5


class JoinBody(Body):
    """Which device wants to join: its id, which will be its user name at the broker."""

    device: str


@dataclass(frozen=True, slots=True)
class Joining:
    """What joining needs.

    Attributes:
        folder: Where the broker is asked; None: this gateway cannot reach it.
        wait_seconds: How long the broker may take.
    """

    settings: Settings
    folder: JoinFolder | None
    wait_seconds: float = _WAIT_SECONDS

    async def join(self, device: str, *, may_replace: bool) -> JoinRequest:
        """Make a device a user of the broker; `ApiError` where that is not possible."""
        if self.folder is None:
            raise ApiError(
                501,
                "devices cannot join here: set E2LLM_GATEWAY_JOINS to the folder `joins` in the "
                "state folder of `python -m broker`, or add the device there with --node",
                code="joining_not_set_up",
                kind="server_error",
            )
        try:
            return await self._settled(
                self.folder, lambda folder: folder.ask(device, may_replace=may_replace)
            )
        except JoinRefusedError as error:
            raise ApiError(409, str(error), param="device", code="join_refused") from error

    async def leave(self, device: str) -> bool:
        """Take a device's user from the broker; return whether it had one that can be reached.

        Raises:
            ApiError: 503, the broker does not answer.
        """
        if self.folder is None:
            return False
        try:
            await self._settled(self.folder, lambda folder: folder.ask_leave(device))
        except JoinRefusedError:
            return False
        return True

    async def _settled(self, folder: JoinFolder, ask: Callable[[JoinFolder], RequestT]) -> RequestT:
        try:
            request = ask(folder)
        except OSError as error:
            raise not_ready(f"the broker cannot be asked: {error}", _RETRY_SECONDS) from error
        deadline = time.monotonic() + self.wait_seconds
        try:
            while not folder.is_settled(request):
                if time.monotonic() > deadline:
                    raise not_ready(
                        f"the broker does not answer; is `python -m broker` running, and "
                        f"{folder.path} in its state folder?",
                        _RETRY_SECONDS,
                    )
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            folder.withdraw(request)
        return request


def add_join_route(app: FastAPI, joining: Joining, engine: Engine) -> None:
    """Add ``POST /fog/join``."""
    settings = joining.settings

    @app.post(JOIN_PATH, openapi_extra=body_of(JoinBody), responses=errors(400, 409, 413, 501, 503))
    async def join(http: Request) -> dict[str, Any]:
        """Make a credential for a device; it is in this answer and nowhere else."""
        asked = check_body(parse_object(await read_body(http, _MAX_BODY_BYTES)), JoinBody)
        visit = current_visit()
        if visit.device not in (None, asked.device):
            raise forbidden(f"this token is for the device {visit.device!r}")
        may_replace = visit.device is not None or visit.caller.is_admin
        request = await joining.join(asked.device, may_replace=may_replace)
        # Whoever is unknown, or cannot be told of now, has nothing to take back or keeps it.
        with contextlib.suppress(UnknownDeviceError, NotReadyError):
            engine.ask_of_device(asked.device, back)
        logger.info("device %s joined with %r", asked.device, visit.caller.name)
        address = broker_for(settings, http.url.hostname or "")
        broker = BrokerAddress(address.host, address.port, asked.device, request.password)
        return {"device": asked.device, "site": settings.site, "broker": broker.url}


def broker_for(settings: Settings, reached_at: str) -> BrokerAddress:
    """Return where a device finds the broker, without a credential.

    What the settings say; else where this gateway finds it; and where that is this machine, under
    the name by which the device reached this machine.
    """
    if settings.public_broker is not None:
        return BrokerAddress.parse(settings.public_broker)
    own = settings.address
    host = reached_at if is_loopback(own.host) and reached_at else own.host
    return BrokerAddress(host, own.port)

"""``DELETE /fog/devices/{id}``: a device that does not come back loses all that it had here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI

from gateway.access.joining import Joining
from gateway.access.store import KeyFileError, KeyStore
from gateway.errors import ApiError, not_ready
from gateway.openapi import errors
from gateway.owners import UnknownDeviceError, removed
from gateway.requests import Engine, NotReadyError

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.05
_WAIT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Removal:
    """Removes devices.

    Attributes:
        wait_seconds: How long the planner may take to forget a device.
    """

    engine: Engine
    keys: KeyStore
    joining: Joining
    wait_seconds: float = _WAIT_SECONDS

    async def remove(self, device: str) -> dict[str, Any]:
        """Take credential, tokens and all that is kept of a device; return what was there.

        Raises:
            ApiError: 404, nobody knows it; 409, it is on the bus and can stay there; 503.
        """
        had_user = await self.joining.leave(device)
        state = self._state(device)
        # Who is no user any more can say nothing more, not even by a last will: what the broker
        # keeps of it may well be that it is ready.
        if state == "ready" and not had_user:
            raise ApiError(
                409,
                f"{device} is on the bus, and its credential cannot be taken from here: stop it, "
                "then remove it",
                param="device",
                code="device_in_use",
            )
        tokens = await self._revoke_tokens(device)
        if state is None and not had_user and not tokens:
            raise ApiError(404, f"no device {device[:80]!r} is known", code="not_found")
        is_forgotten = state is None or await self._forget(device)
        logger.info("device %s was removed", device)
        return {
            "id": device,
            "credential": "removed" if had_user else "not here",
            "tokens": tokens,
            "forgotten": is_forgotten,
        }

    async def _revoke_tokens(self, device: str) -> list[str]:
        """End the tokens that are for this device alone; return their ids."""
        now = time.time()
        own = [
            key.id
            for key in self.keys.ring.keys.values()
            if key.device == device and key.problem(now) is None
        ]
        try:
            for key_id in own:
                await self.keys.revoke(key_id)
        except KeyFileError as error:
            raise not_ready(str(error), _RETRY_SECONDS) from error
        return own

    async def _forget(self, device: str) -> bool:
        """Let the planner clear what the broker keeps; return whether it has.

        Otherwise what is asked stays there, for when the planner runs.
        """
        try:
            self.engine.ask_of_device(device, lambda known: removed(known, time.time()))
            if not await self._until(lambda: self._state(device) is None):
                return False
            self.engine.ask_of_device(device, lambda _: None)
        except UnknownDeviceError:
            return True  # Somebody else removed it at the same time.
        except NotReadyError as error:
            raise not_ready(str(error), error.retry_after_seconds) from error
        return True

    def _state(self, device: str) -> str | None:
        found = (each["state"] for each in self.engine.devices() if each["id"] == device)
        return next(found, None)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self.wait_seconds
        while not condition():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True


def add_removal_route(app: FastAPI, removal: Removal) -> None:
    """Add ``DELETE /fog/devices/{id}``."""

    @app.delete("/fog/devices/{device}", responses=errors(404, 409, 503))
    async def remove_device(device: str) -> dict[str, Any]:
        """Remove a device for good: its credential, its tokens, and what the broker keeps of it."""
        return await removal.remove(device)

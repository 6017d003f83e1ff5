"""The HTTP routes by which admins make, list and revoke API keys, and see requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Request
from pydantic import Field

from gateway.access.keys import Key, KeyRefusedError, Limits, Scope
from gateway.access.store import KeyFileError, KeyStore
from gateway.bodies import Body, check_body, parse_object
from gateway.connection import read_body
from gateway.errors import ApiError, not_ready
from gateway.meter import Meter
from gateway.openapi import body_of, errors
from gateway.requests import Engine

_MAX_BODY_BYTES: Final = 4096
_RETRY_SECONDS: Final = 10

Positive = Annotated[int, Field(ge=1)]


class KeyRequest(Body):
    """What key is wanted.

    Attributes:
        scope: ``user``, ``admin``, or ``join`` for a device that has no credential yet.
        expires_seconds: From now; none: never.
        device: With ``join``: the only device that it is good for.
    """

    name: str
    scope: Literal["user", "admin", "join"] = "user"
    expires_seconds: Annotated[float, Field(gt=0)] | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrency: Positive | None = None
    device: str | None = None


def add_access_routes(
    app: FastAPI,
    keys: KeyStore,
    meter: Meter,
    engine: Engine,
    clock: Callable[[], float] = time.time,
) -> None:
    """Add ``/fog/keys`` and ``GET /fog/requests``."""

    @app.post("/fog/keys", openapi_extra=body_of(KeyRequest), responses=errors(400, 413, 503))
    async def create_key(http: Request) -> dict[str, Any]:
        """Make a key; its text is in this answer and nowhere else."""
        asked = check_body(parse_object(await read_body(http, _MAX_BODY_BYTES)), KeyRequest)
        now = clock()
        try:
            text, key = await keys.create(
                asked.name,
                Scope(asked.scope),
                expires_at=None if asked.expires_seconds is None else now + asked.expires_seconds,
                limits=Limits(
                    requests_per_minute=asked.requests_per_minute,
                    tokens_per_minute=asked.tokens_per_minute,
                    concurrency=asked.concurrency,
                ),
                device=asked.device,
            )
        except KeyRefusedError as error:
            raise ApiError(400, str(error), code="key_refused") from error
        except KeyFileError as error:
            raise not_ready(str(error), _RETRY_SECONDS) from error
        return {"key": text, **key_body(key, now)}

    @app.get("/fog/keys")
    async def list_keys() -> list[dict[str, Any]]:
        """Return all keys, without what is secret in them, in the order of their making."""
        now = clock()
        known = sorted(keys.ring.keys.values(), key=lambda key: (key.created_at, key.id))
        return [key_body(key, now) for key in known]

    @app.delete("/fog/keys/{key_id}", responses=errors(400, 404, 503))
    async def revoke_key(key_id: str) -> dict[str, Any]:
        """End a key, at every gateway of the site within seconds."""
        if key_id not in keys.ring.keys:
            raise ApiError(404, f"no key {key_id[:80]!r}", code="not_found")
        try:
            key = await keys.revoke(key_id)
        except KeyRefusedError as error:
            raise ApiError(400, str(error), code="key_refused") from error
        except KeyFileError as error:
            raise not_ready(str(error), _RETRY_SECONDS) from error
        return key_body(key, clock())

    @app.get("/fog/requests")
    async def list_requests() -> list[dict[str, Any]]:
        """Return the requests of this gateway that are open, then the latest that ended."""
        return meter.requests(engine.courses())


def key_body(key: Key, now: float) -> dict[str, Any]:
    """Return what is told of a key."""
    return {
        "id": key.id,
        "name": key.name,
        "scope": key.scope.value,
        "state": key.problem(now) or "good",
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        **{name: getattr(key.limits, name) for name in Limits.__struct_fields__},
        "device": key.device,
    }

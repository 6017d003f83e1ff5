"""The HTTP routes by which owners say what their devices may do.

They need a key with the scope admin, where a gateway has keys (`gateway.access.door`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from msgspec.structs import replace

from broker.control import DeviceControl, OwnerRules
from gateway.connection import read_body
from gateway.errors import ApiError, not_ready
from gateway.openapi import COMPONENT, errors
from gateway.owners import VERBS, UnknownDeviceError, WrongRulesError, parse_rules, placed
from gateway.requests import Engine, NotReadyError

_MAX_RULES_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Asking:
    engine: Engine

    def of(self, device: str, change: Callable[[DeviceControl], DeviceControl]) -> JSONResponse:
        try:
            return JSONResponse(self.engine.ask_of_device(device, change))
        except UnknownDeviceError as error:
            raise ApiError(404, str(error), code="not_found") from error
        except NotReadyError as error:
            raise not_ready(str(error), error.retry_after_seconds) from error


def _rules_body() -> dict[str, Any]:
    """Return the description of a body with rules, or with ``null``."""
    [rules], parts = msgspec.json.schema_components([OwnerRules], ref_template=COMPONENT)
    parts["OwnerRules"]["properties"]["layers"]["anyOf"].append(
        {"type": "string", "description": "First and last layer, as in 0-3."}
    )
    schema = {"anyOf": [rules, {"type": "null"}], "$defs": parts}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_administration_routes(app: FastAPI, engine: Engine) -> None:
    """Add ``POST /fog/devices/{id}/{verb}`` and ``PUT /fog/devices/{id}/owner``."""
    asking = _Asking(engine)

    @app.post("/fog/devices/{device}/{verb}", responses=errors(404, 503))
    async def place(device: str, verb: str) -> JSONResponse:
        """Cordon, drain or uncordon a device."""
        if verb not in VERBS:
            known = ", ".join(VERBS)
            raise ApiError(404, f"a device can be asked to {known}, not {verb}", code="not_found")
        return asking.of(device, lambda known: placed(known, verb, time.time()))

    @app.put(
        "/fog/devices/{device}/owner",
        openapi_extra=_rules_body(),
        responses=errors(400, 404, 413, 503),
    )
    async def rule(device: str, http: Request) -> JSONResponse:
        """Say what the owner allows, instead of what the device says; ``null`` takes it back."""
        try:
            rules = parse_rules(
                await read_body(http, _MAX_RULES_BYTES), engine.utc_offset_of(device)
            )
        except WrongRulesError as error:
            raise ApiError(400, str(error), code="invalid_rules") from error
        return asking.of(device, lambda known: replace(known, rules=rules, at=time.time()))

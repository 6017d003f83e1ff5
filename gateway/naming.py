"""From the name in a request to the model that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.errors import ApiError, not_ready
from gateway.model import ServedModel
from gateway.models import Models
from gateway.requests import Engine

DEFAULT_MODEL: Final = "default"
"""Names whichever model is in use, for clients that must name one."""

RETRY_SECONDS: Final = 5


def require_model(models: Models, engine: Engine, asked: str | None) -> ServedModel:
    """Return the model that a request gets.

    Raises:
        ApiError: There is none yet, or none of that name that new requests may have.
    """
    named = models.named(engine)
    if not named:
        raise not_ready(f"the gateway is {models.first.slot.stage}", RETRY_SECONDS)
    found = next((model for model in named if model.name == asked), None)
    if found is None and asked in (None, DEFAULT_MODEL):
        return named[0]
    if found is None:
        raise unknown_model(asked or "", [model.name for model in named])
    return found


def unknown_model(asked: str, served: Sequence[str]) -> ApiError:
    """Return the 404 about a model that is not served."""
    return ApiError(
        404,
        f"the model {asked!r} is not served here; this gateway serves "
        f"{', '.join(map(repr, served))}",
        param="model",
        code="model_not_found",
    )

"""Who asks: set where a request comes in, read where it begins to cost something.

It travels in a context variable: between the two lie the routes, which differ in all else, and
the tasks that a request starts inherit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from gateway.access.keys import NO_LIMITS, Limits, Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        id: As the journal and the counters know it: a key's id, ``mqtt:<client>``, or "" where
            no key was asked for.
        name: For people.
        scope: None: nothing that needs a key.
    """

    id: str
    name: str
    scope: Scope | None
    limits: Limits = NO_LIMITS

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything."""
        return self.scope is Scope.ADMIN

    def may_read(self, owner: str) -> bool:
        """Whether it may have an answer that ``owner``, another caller's id, has asked for."""
        return self.is_admin or self.id == owner


ANYBODY: Final = Caller("", "anybody", Scope.ADMIN)
"""Whoever reaches a gateway without keys."""
NOBODY: Final = Caller("", "nobody", None)
"""Who brings no key to a gateway that has some."""


@dataclass(slots=True)
class Visit:
    """One request and who it is from.

    Attributes:
        rate_headers: What the answer says of the caller's limits, once they are looked at.
        device: The only device that may join with the caller's token; None: any new one.
        carrier: ``traceparent`` and ``tracestate`` of the caller's trace, where it has one.
    """

    caller: Caller
    rate_headers: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    carrier: Mapping[str, str] = field(default_factory=dict)


def mqtt_caller(client: str) -> Caller:
    """Return who a prompt over MQTT is from: the broker vouches for the name."""
    return Caller(f"mqtt:{client}", f"{client} (MQTT)", Scope.USER)


_VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def begin_visit(visit: Visit) -> None:
    """Say who this task, and all that it starts, works for."""
    _VISIT.set(visit)


def current_visit() -> Visit:
    """Return who this task works for; `ANYBODY` where nobody has said it."""
    return _VISIT.get() or Visit(ANYBODY)

"""Who may in: looks at the key of each HTTP request before any route sees it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from gateway.access.caller import ANYBODY, NOBODY, Caller, Visit, begin_visit
from gateway.access.keys import Key, Scope, WrongKeyError
from gateway.access.store import KeyStore
from gateway.errors import ApiError, forbidden, unauthorized
from gateway.settings import is_address, is_loopback
from gateway.tracing.tracer import TRACE_CONTEXT

# Health checks come without a key; weights have signed addresses (`gateway.weights`), and the
# dashboard asks for a key on its page (`gateway.dashboard.frame`).
_PUBLIC: Final = re.compile(r"/|/healthz|/readyz|/openapi\.json|/weights/.*|/dashboard(?:/.*)?")
_USER: Final = re.compile(r"/v1/.*|/api/.*|/tokenize|/detokenize|/fog/requests/.+")
JOIN_PATH: Final = "/fog/join"
KEY_ADVICE: Final = "send one as Authorization: Bearer KEY"


def needed_scope(path: str) -> Scope | None:
    """Return what a key must be good for to go there; None: no key is needed.

    What is not named is for admins, so a route that somebody forgets here is closed.
    """
    if path == JOIN_PATH:
        return Scope.JOIN
    if _PUBLIC.fullmatch(path):
        return None
    return Scope.USER if _USER.fullmatch(path) else Scope.ADMIN


def is_foreign(origin: str | None, host: str, own: str | None) -> bool:
    """Whether a request comes from a page of somebody else in a browser of this network.

    Without keys, what a browser may reach any page that it shows may change: a page's requests
    need no key that it would have to know. Browsers say in ``Origin`` whose page it is.

    Args:
        origin: That header; None: it is no browser, or a page of ours that only reads.
        host: The header ``Host``. A name in it proves nothing: its owner may let it point here.
        own: The gateway's public URL.
    """
    if origin is None:
        return False
    try:
        asking = urlsplit(origin).hostname or ""
    except ValueError:
        return True
    if is_loopback(asking):
        return False
    if own is not None and asking == urlsplit(own).hostname:
        return False
    return not (is_address(asking) and asking == urlsplit(f"//{host}").hostname)


class Door:
    """Lets a request in with the key that it needs; ASGI middleware.

    Args:
        app: What is behind it.
        keys: Those that count.
        own_url: The gateway's public URL, where it has one.
        refuse: Makes the answer to a path from an error.
        clock: UTC seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyStore,
        own_url: str | None,
        refuse: Callable[[str, ApiError], Response],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._keys = keys
        self._own_url = own_url
        self._refuse = refuse
        self._clock = clock

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self._is_foreign(Headers(scope=scope)):
                # Before it is accepted: the browser sees a 403.
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        try:
            headers = Headers(scope=scope)
            visit = self._visit(path, headers)
        except ApiError as error:
            await self._refuse(path, error)(scope, receive, send)
            return
        visit.carrier = {name: headers[name] for name in TRACE_CONTEXT if name in headers}
        begin_visit(visit)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and visit.rate_headers:
                added = [(k.encode(), v.encode()) for k, v in visit.rate_headers.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_limits)

    def _visit(self, path: str, headers: Headers) -> Visit:
        """Return who comes in; `ApiError` 401 or 403 for who does not."""
        needed = needed_scope(path)
        # Who joins gets a credential for the broker: never without a token.
        if self._keys.ring.is_open and needed is not Scope.JOIN:
            if self._is_foreign(headers):
                raise forbidden(
                    "a gateway without API keys answers no page of another site in a browser; "
                    "make a key"
                )
            return Visit(ANYBODY)
        try:
            key = self._key(headers.get("authorization"))
        except ApiError:
            if needed is not None:
                raise
            return Visit(NOBODY)
        if needed is not None and not key.scope.allows(needed):
            makes = "token create" if needed is Scope.JOIN else f"key create --scope {needed}"
            raise forbidden(
                f"{path} needs a key with the scope {needed}, and {key.name!r} has {key.scope}; "
                f"e2llm {makes} makes one"
            )
        return Visit(Caller(key.id, key.name, key.scope, key.limits), device=key.device)

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether a page of another site asks where no key would stop it."""
        origin, host = headers.get("origin"), headers.get("host", "")
        return self._keys.ring.is_open and is_foreign(origin, host, self._own_url)

    def _key(self, authorization: str | None) -> Key:
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise unauthorized(f"this gateway needs an API key; {KEY_ADVICE}")
        try:
            return self._keys.ring.find(text.strip(), self._clock())
        except WrongKeyError as error:
            raise unauthorized(str(error)) from error

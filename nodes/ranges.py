"""One byte range of a file over HTTP, resumed where a connection broke.

Only the standard library: a node has no HTTP client otherwise. Knows nothing of tensors.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Final

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
# What a connection that breaks takes with it at most.
_PIECE_BYTES: Final = 1 << 18
_REMEDIES: Final = {
    401: "the signed URL is not accepted; wait for the gateway's next manifest or restart it",
    403: "the signed URL has expired or is for another file; wait for the next manifest",
    404: "the server does not have the file; check the model folder of the gateway",
}


class RangeError(Exception):
    """The range cannot be had from this URL; the message says why, without the URL."""


class AbsentError(RangeError):
    """The server does not have what the URL names."""


class _DroppedError(Exception):
    """The connection broke or the server is busy: worth another try."""


class RangeReader:
    """Reads byte ranges.

    Args:
        wait: Called with seconds before another try.
    """

    def __init__(self, wait: Callable[[float], None] = time.sleep) -> None:
        self._wait = wait

    def read(
        self,
        url: str,
        offset: int,
        num_bytes: int,
        take: Callable[[memoryview], None],
        *,
        attempts: int = 4,
        timeout_seconds: float = 20.0,
        token: str | None = None,
    ) -> None:
        """Give the bytes of the file from ``offset`` on to ``take``, piece by piece, in order.

        Args:
            url: Of the file.
            offset: Of the first byte.
            num_bytes: Bytes from there on.
            take: Keeps what it gets, also when the rest does not come; what it raises ends
                the reading.
            attempts: Tries without a new byte after which the URL is given up.
            timeout_seconds: Silence after which a connection counts as broken.
            token: Goes as a bearer token to the URL itself, and not where that redirects to.

        Raises:
            RangeError: The server refuses, lacks the file or ignores ranges, or the
                connection broke too often.
        """
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise RangeError("not an http or https URL")
        position, end, failures = offset, offset + num_bytes, 0
        while position < end:
            before = position
            request = urllib.request.Request(url, headers={"Range": f"bytes={position}-{end - 1}"})
            if token is not None:
                request.add_unredirected_header("Authorization", f"Bearer {token}")
            try:
                for piece in _stream(request, position, end, timeout_seconds):
                    take(piece)
                    position += len(piece)
            except _DroppedError as error:
                failures = 1 if position > before else failures + 1
                if failures >= attempts:
                    raise RangeError(f"{error} ({failures} times)") from error
                self._wait(0.2 * 2**failures)


def _stream(
    request: urllib.request.Request, start: int, end: int, timeout_seconds: float
) -> Iterator[memoryview]:
    """Yield bytes [start, end); every piece is good until the next one is asked for."""
    try:
        response = urllib.request.urlopen(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(_reason(error)) from error
    with response:
        _check_answer(response, start, end - 1)
        buffer = memoryview(bytearray(min(_PIECE_BYTES, end - start)))
        position = start
        while position < end:
            try:
                count = response.readinto(buffer[: end - position])
            except (OSError, http.client.HTTPException) as error:
                raise _DroppedError(_reason(error)) from error
            if not count:
                raise _DroppedError(f"the connection ended at byte {position}")
            position += count
            yield buffer[:count]


def shown_url(url: str) -> str:
    """Return a URL as it may stand in a message: without its signature."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _check_answer(response: http.client.HTTPResponse, offset: int, end: int) -> None:
    if response.status != 206:
        raise RangeError(
            f"status {response.status} instead of 206: the server ignores byte ranges; "
            "serve the files with a server that supports them"
        )
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found or (int(found[1]), int(found[2])) != (offset, end):
        raise RangeError(
            f"bytes {offset}-{end} asked, Content-Range is "
            f"{response.headers.get('Content-Range')!r}"
        )


def _refusal(status: int) -> Exception:
    if status == 429 or status >= 500:
        return _DroppedError(f"status {status}")
    if status == 416:
        return RangeError("status 416: the file is shorter than the manifest says")
    kind = AbsentError if status == 404 else RangeError
    return kind(f"status {status}: {_REMEDIES.get(status, 'the server refuses')}")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__

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
_PIECE_BYTES: Final = 1 << 20
_REMEDIES: Final = {
    401: "the signed URL is not accepted; wait for the gateway's next manifest or restart it",
    403: "the signed URL has expired or is for another file; wait for the next manifest",
    404: "the server does not have the file; check the model folder of the gateway",
}


class RangeError(Exception):
    """The range cannot be had from this URL; the message says why, without the URL."""


class _DroppedError(Exception):
    """The connection broke or the server is busy: worth another try."""


class RangeReader:
    """Reads byte ranges.

    Args:
        attempts: Tries without a new byte after which a URL is given up.
        timeout_seconds: Silence after which a connection counts as broken.
        wait: Called with seconds before another try.
    """

    def __init__(
        self,
        *,
        attempts: int = 4,
        timeout_seconds: float = 20.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._attempts = attempts
        self._timeout_seconds = timeout_seconds
        self._wait = wait

    def read(self, url: str, offset: int, data: bytearray, progress: Callable[[int], None]) -> None:
        """Fill ``data`` with the bytes of the file from ``offset`` on.

        Raises:
            RangeError: The server refuses, lacks the file or ignores ranges, or the
                connection broke too often; bytes that ``progress`` was told of are taken back.
        """
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise RangeError("not an http or https URL")
        filled, failures = 0, 0
        try:
            while filled < len(data):
                before = filled
                try:
                    for count in self._stream(url, offset + filled, memoryview(data)[filled:]):
                        filled += count
                        progress(count)
                except _DroppedError as error:
                    failures = 1 if filled > before else failures + 1
                    if failures >= self._attempts:
                        raise RangeError(f"{error} ({failures} times)") from error
                    self._wait(0.2 * 2**failures)
        except RangeError:
            progress(-filled)
            raise

    def _stream(self, url: str, offset: int, view: memoryview) -> Iterator[int]:
        end = offset + len(view) - 1
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-{end}"})
        try:
            response = urllib.request.urlopen(request, timeout=self._timeout_seconds)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise _DroppedError(_reason(error)) from error
        with response:
            _check_answer(response, offset, end)
            position = 0
            while position < len(view):
                try:
                    count = response.readinto(view[position : position + _PIECE_BYTES])
                except (OSError, http.client.HTTPException) as error:
                    raise _DroppedError(_reason(error)) from error
                if not count:
                    raise _DroppedError(f"the connection ended at byte {offset + position}")
                position += count
                yield count


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
    return RangeError(f"status {status}: {_REMEDIES.get(status, 'the server refuses')}")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__

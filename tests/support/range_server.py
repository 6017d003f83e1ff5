"""An HTTP server of byte ranges on loopback that misbehaves where it is told to."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """How one request is answered.

    Attributes:
        status: 206 serves the range; 200 ignores it; others refuse.
        drop_after: Bytes of the body after which the connection is cut.
        flip: Byte of the body that is damaged.
        shift: Added to the first byte in Content-Range.
        location: Where a redirect leads.
    """

    status: int = 206
    drop_after: int | None = None
    flip: int | None = None
    shift: int = 0
    location: str = ""


Script = Callable[[int], Answer]
"""From the number of the request, 0-based, to how it is answered."""


@dataclass
class RangeServer:
    """A folder served under ``url``.

    Attributes:
        ranges: Those asked so far.
        num_bytes: Sent so far.
        most_busy: Requests that were answered at once, at most.
    """

    folder: Path
    script: Script
    url: str = ""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    num_bytes: int = 0
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request while it is answered."""
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1


@contextmanager
def serve_ranges(folder: Path, script: Script = lambda number: Answer()) -> Iterator[RangeServer]:
    """Serve ``folder`` until the context ends."""
    state = RangeServer(folder, script)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert found
            start, end = int(found[1]), int(found[2])
            with state.counted():
                answer = state.script(len(state.ranges))
                state.ranges.append((start, end))
                self.answer(answer, start, end)

        def answer(self, answer: Answer, start: int, end: int) -> None:
            self.send_response(answer.status)
            body = bytearray()
            if answer.status in (200, 206):
                name = self.path.partition("?")[0].lstrip("/")
                content = (state.folder / name).read_bytes()
                body = bytearray(content if answer.status == 200 else content[start : end + 1])
                first = start + answer.shift
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
            if answer.flip is not None:
                body[answer.flip] ^= 0x40
            if answer.location:
                self.send_header("Location", answer.location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: answer.drop_after])
            state.num_bytes += len(body[: answer.drop_after])
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            """Keep the test's output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

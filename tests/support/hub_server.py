"""A small stand-in of the hub: the routes that a download uses, with faults on demand.

``/api/models/<id>/revision/<revision>`` and ``.../tree/<revision>`` describe a model,
``/<id>/resolve/<revision>/<file>`` redirects large files to ``/cdn/...``, which knows ranges
and can break off in mid-file. Private models need a token.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

COMMIT: Final = "c" * 40
TOKEN: Final = "hf_right"
_LARGE_BYTES: Final = 4096


@dataclass
class Hub:
    """What the hub has and what happened.

    Attributes:
        models: Hub id to folder.
        private: Ids that need `TOKEN`; without it they are not found, as at the real hub.
        gated: Ids whose terms must be accepted.
        drops: How many downloads break off in the middle.
        is_down: Every answer is 503.
        served: Method, path and range of each request.
        tokens: Credentials of each request that had any: path and header.
    """

    models: dict[str, Path] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    drops: int = 0
    is_down: bool = False
    served: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes_drop(self) -> bool:
        """Return whether this download is one that breaks off."""
        with self.lock:
            self.drops -= 1
            return self.drops >= 0


@contextmanager
def hub_server(hub: Hub) -> Iterator[str]:
    """Serve ``hub`` on a free port; give its URL, for ``HF_ENDPOINT``."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.served.append((self.command, path, self.headers.get("Range")))
            if token := self.headers.get("Authorization"):
                self.hub.tokens.append((path, token))
        if self.hub.is_down:
            self._answer(503, b"down")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            if self._may_read(found[1]):
                self._json({"id": found[1], "sha": COMMIT, "siblings": [], "private": False})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            if self._may_read(found[1]):
                folder = self.hub.models[found[1]]
                files = sorted(each for each in folder.rglob("*") if each.is_file())
                self._json([_entry(file, folder) for file in files])
        elif found := re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            # The redirect's target is signed by its address: it takes no token.
            if found[1] or self._may_read(found[2]):
                self._file(self.hub.models[found[2]] / found[3], is_cdn=bool(found[1]))
        else:
            self._answer(404, b"not found")

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def _may_read(self, model: str) -> bool:
        if model in self.hub.gated:
            self._answer(403, b"gated", {"X-Error-Code": "GatedRepo"})
        elif model not in self.hub.models:
            self._answer(404, b"no such model", {"X-Error-Code": "RepoNotFound"})
        elif model in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            # Who may not read it does not learn that it exists.
            self._answer(401, b"no such model", {"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def _file(self, path: Path, *, is_cdn: bool) -> None:
        if not path.is_file():
            self._answer(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if len(content) > _LARGE_BYTES and not is_cdn:
            headers["X-Linked-Size"] = str(len(content))
            headers["X-Linked-ETag"] = headers["ETag"]
            headers["Location"] = f"/cdn{self.path}"
            # The location of large files is absolute at the real hub.
            host = self.headers["Host"]
            headers["Location"] = f"http://{host}{headers['Location']}"
            self._answer(302, b"", headers)
            return
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(found[1]), int(found[2] or len(content) - 1)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        # Only what a client must resume: small files come whole.
        is_dropped = is_cdn and self.command == "GET" and self.hub.takes_drop()
        self._answer(status, content, headers, sent=len(content) * 3 // 4 if is_dropped else None)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
        if sent is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output quiet."""


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    content = path.read_bytes()
    entry: dict[str, Any] = {
        "type": "file",
        "path": path.relative_to(folder).as_posix(),
        "size": len(content),
        "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
    }
    if len(content) > _LARGE_BYTES:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry

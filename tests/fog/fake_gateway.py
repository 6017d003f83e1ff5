"""A gateway that needs no fog: the routes that the command line uses, canned answers.

Run as a script: ``python fake_gateway.py PORT REFUSALS [PLANNER_PROBLEM]`` refuses readiness
that often.
Started in a thread by `serve`, it also records the bodies that it was asked.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAN: dict[str, Any] = {
    "version": 3,
    "state": "active",
    "model": "tiny",
    "weights": "float32",
    "replicas": [
        {
            "id": "r-1",
            "role": "prefill",
            "slots": 2,
            "stages": [
                {
                    "device": "laptop",
                    "layers": [0, 5],
                    "embedding": True,
                    "head": False,
                    "predicted_seconds": 0.004,
                },
                {
                    "device": "pi",
                    "layers": [5, 6],
                    "embedding": False,
                    "head": True,
                    "predicted_seconds": 0.012,
                },
            ],
        }
    ],
    "idle": [{"device": "toaster", "reason": "too slow [by far]"}],
    "predicted": {"decode_tokens_per_second": 25.0, "ttft_seconds": 0.25},
    "measured": {"replicas": {"r-1": {"tpot_seconds": 0.04}}},
    "best_single_device": None,
}
DEVICES: list[dict[str, Any]] = [
    {
        "id": "laptop",
        "state": "ready",
        "pid": 12,
        "memory_bytes": 4096,
        "loaded_bytes": 2048,
        "tensors": ["a", "b"],
        "last_seen_seconds": 0.4,
        "stages": ["r-1/0"],
    },
    {"id": "pi", "state": "sleeping", "stages": []},
]
REMOVED: dict[str, dict[str, Any]] = {
    "laptop": {"credential": "removed", "tokens": [], "forgotten": True},
    "pi": {"credential": "not here", "tokens": ["5a21"], "forgotten": False},
}
KEYS: list[dict[str, Any]] = [
    {"id": "1", "name": "lamp [kitchen]", "scope": "user", "state": "good", "concurrency": 2}
]
REQUESTS: list[dict[str, Any]] = [
    {"id": "chatcmpl-7", "caller": "lamp", "state": "answering", "answer_tokens": 5, "seconds": 1.5}
]
PIECES = (("Twelve", [7]), ("", [8]), (".", [9]))


@dataclass
class Behaviour:
    """What the gateway does; tests change it.

    Attributes:
        cut_after: Pieces after which each stream breaks, one after the other; then none.
        key: API key that every request needs; None: none.
        resumed: Answer id and ``Last-Event-ID`` of streams that went on.
    """

    key: str | None = None
    refusals: int = 0
    model: str = "tiny"
    problem: str | None = None
    chat_template: bool = True
    fail_in_stream: bool = False
    cut_after: list[int] = field(default_factory=list)
    resumed: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def make_server(port: int, behaviour: Behaviour) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def _send(self, status: int, body: object) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def _is_refused(self) -> bool:
            if behaviour.key in (
                None,
                (self.headers["Authorization"] or "").removeprefix("Bearer "),
            ):
                return False
            self._send(401, {"error": {"message": "incorrect API key", "param": None}})
            return True

        def do_GET(self) -> None:
            if self._is_refused():
                return
            if self.path == "/readyz" and behaviour.refusals > 0:
                behaviour.refusals -= 1
                reason = behaviour.problem or "2 of 6 devices have measured"
                details = {"planner_problem": behaviour.problem}
                self._send(503, {"reason": reason, "progress": 0.3, "details": details})
                return
            bodies: dict[str, Any] = {
                "/healthz": {},
                "/readyz": {"reason": ""},
                "/fog/plan": PLAN,
                "/fog/plans": [{"version": 3, "outcome": "adopted", "reason": "the first plan"}],
                "/fog/devices": DEVICES,
                "/v1/models": {"data": [{"id": behaviour.model}]},
                "/fog/keys": KEYS,
                "/fog/requests": REQUESTS,
            }
            if self.path.startswith("/fog/requests/"):
                self._resume()
            elif self.path in bodies:
                self._send(200, bodies[self.path])
            else:
                self._send(404, {"error": {"message": "no such route", "param": None}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour.asked.append((self.path, body))
            if self._is_refused():
                return
            if self.path == "/fog/join":
                # As a server that is something else: JSON, but no credential.
                self._send(200, {})
                return
            if self.path == "/fog/what-if":
                self._send(200, {"plan": None, "reason": "10 MB are missing", "before": None})
                return
            if self.path == "/fog/keys":
                self._send(200, {"key": "e2llm-1-secret", "id": "1", **body})
                return
            if self.path.startswith("/fog/devices/"):
                _, _, _, device, verb = self.path.split("/")
                known = any(entry["id"] == device for entry in DEVICES)
                placed = {"id": device, "placement": verb}
                missing = {"error": {"message": f"no device {device} is known", "param": None}}
                self._send(200 if known else 404, placed if known else missing)
                return
            chat = self.path == "/v1/chat/completions"
            if chat and not behaviour.chat_template:
                message = "the model has no chat template"
                self._send(400, {"error": {"message": message, "param": "messages"}})
                return
            if body.get("max_tokens") == 9999:
                message = "max_tokens must be at most 512"
                self._send(400, {"error": {"message": message, "param": "max_tokens"}})
                return
            self.send_response(200)
            self.end_headers()
            if chat:
                self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            self._stream(0, chat=chat)

        def do_DELETE(self) -> None:
            if self.path.startswith("/fog/devices/"):
                device = self.path.rpartition("/")[2]
                if device not in REMOVED:
                    missing = {"error": {"message": f"no device {device}", "param": None}}
                    self._send(404, missing)
                else:
                    self._send(200, {"id": device, **REMOVED[device]})
                return
            known = self.path == "/fog/keys/1"
            missing = {"error": {"message": "no such key", "param": None}}
            self._send(200 if known else 404, KEYS[0] if known else missing)

        def _resume(self) -> None:
            position = self.headers["Last-Event-ID"]
            answer_id = self.path.split("/")[3].partition("?")[0]
            behaviour.resumed.append((answer_id, position))
            if behaviour.refusals > 0:
                behaviour.refusals -= 1
                self._send(503, {"error": {"message": "the gateway is loading", "param": None}})
                return
            self.send_response(200)
            self.end_headers()
            self._stream(int(position), chat=True)

        def _stream(self, start: int, *, chat: bool) -> None:
            num_pieces = behaviour.cut_after.pop(0) if behaviour.cut_after else len(PIECES)
            for number, (text, token_ids) in enumerate(PIECES[start:], start + 1):
                if number > start + num_pieces:
                    return
                piece = {"delta": {"content": text}} if chat else {"text": text}
                self._event({"choices": [{**piece, "token_ids": token_ids}]}, number)
                if behaviour.fail_in_stream:
                    self._event({"error": {"message": "the request failed on every replica"}})
                    return
            self._event({"choices": [{"delta": {}, "text": "", "finish_reason": "stop"}]})
            self.wfile.write(b": keep-alive\n\ndata: [DONE]\n\n")

        def _event(self, body: dict[str, Any], number: int | None = None) -> None:
            if number is not None:
                self.wfile.write(f"id: {number}\n".encode())
            body = {"id": "chatcmpl-1", **body}
            self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
            self.wfile.flush()

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


@contextmanager
def serve(behaviour: Behaviour | None = None) -> Iterator[str]:
    """Serve on a free port and give the URL."""
    server = make_server(0, behaviour or Behaviour())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    problem = sys.argv[3] if len(sys.argv) > 3 else None
    behaviour = Behaviour(refusals=int(sys.argv[2]), problem=problem)
    make_server(int(sys.argv[1]), behaviour).serve_forever()

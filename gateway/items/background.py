"""Responses that nobody waits for: generated in the background, fetched from the journal."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.errors import ApiError
from gateway.inference import Answer, Inference, Recalled
from gateway.items.answers import BACKGROUND, RESPONSES, body_of_response

MAX_FAILED = 1000
"""Failures that are remembered; those before the first token are in no journal."""


class BackgroundResponses:
    """Runs responses to their end, whoever asks for them."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, ApiError] = {}

    async def start(self, answer: Answer[Any]) -> str:
        """Begin to generate; return the body that the client gets at once.

        Raises:
            ApiError: 503 without a journal: nobody could fetch the response.
        """
        await self._inference.recall(answer.id, BACKGROUND)
        self._begin(answer)
        return _body(Recalled(answer.request, answer.head, ""), "in_progress")

    async def fetch(self, response_id: str) -> str:
        """Return the body of a response as it is now.

        Raises:
            ApiError: 404, it is not known (any more); 503 without a journal.
        """
        form = BACKGROUND if BACKGROUND.has_id(response_id) else RESPONSES
        known = await self._inference.recall(response_id, form)
        failed = self._failed.get(response_id)
        if known is None:
            if failed is not None:
                raise failed
            raise ApiError(
                404,
                f"no response {response_id[:80]!r}; what was asked is kept for an hour",
                code="response_not_found",
            )
        if known.status == "finished":
            answer = await self._inference.resume(response_id, None, stream=False, forms=[form])
            return await answer.whole()
        if known.status != "running":
            return _body(known, known.status, failed)
        if form is BACKGROUND and response_id not in self._tasks:
            # Another gateway, or this one before it was started again, has begun it.
            self._begin(await self._inference.resume(response_id, None, stream=False, forms=[form]))
        return _body(known, "in_progress")

    async def cancel(self, response_id: str) -> str:
        """End a response in the background; return its body."""
        if not BACKGROUND.has_id(response_id):
            raise ApiError(400, "only a background response can be cancelled", code="invalid_value")
        task = self._tasks.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        return await self.fetch(response_id)

    def _begin(self, answer: Answer[Any]) -> None:
        task = asyncio.create_task(self._run(answer), name=f"background-{answer.id}")
        self._tasks[answer.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(answer.id, None))

    async def _run(self, answer: Answer[Any]) -> None:
        try:
            await answer.whole()
        except ApiError as error:
            self._failed[answer.id] = error
            if len(self._failed) > MAX_FAILED:
                del self._failed[next(iter(self._failed))]


def _body(known: Recalled, status: str, failed: ApiError | None = None) -> str:
    error = None
    if status == "failed":
        message = "the response failed" if failed is None else failed.message
        error = {"code": "server_error", "message": message}
    is_background = BACKGROUND.has_id(known.head["id"])
    body = body_of_response(
        known.head, known.request, status, error=error, background=is_background
    )
    return body.json_text()

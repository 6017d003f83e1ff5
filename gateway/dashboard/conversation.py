"""A chat with the fog, kept while a tab is open. It knows nothing of browsers.

Answers come through the same door as those of the API (`gateway.inference`): the caller's limits
hold, and the answer stands in the list of requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from gateway.access.caller import Caller, Visit, begin_visit
from gateway.errors import ApiError
from gateway.forms import CHAT
from gateway.inference import Answer, Inference
from gateway.schemas import ChatRequest


@dataclass(slots=True)
class Said:
    """One message.

    Attributes:
        role: ``user`` or ``assistant``.
        note: What else there is to say of an answer: that it was cut off, or why it failed.
    """

    role: str
    text: str
    note: str = ""


@dataclass(slots=True)
class Conversation:
    """What was said, and the answer that comes.

    Attributes:
        caller: Whose limits hold.
        said: In order; the last one grows while an answer comes.
        is_busy: Whether one does.
    """

    inference: Inference
    caller: Caller
    said: list[Said] = field(default_factory=list)
    is_busy: bool = False

    def models(self) -> list[str]:
        """Return the models that may answer, first the one that does by default."""
        return [model.name for model in self.inference.named()]

    def ask(self, text: str) -> None:
        """Say something; an answer that is still empty stands behind it."""
        self.said += [Said("user", text), Said("assistant", "")]
        self.is_busy = True

    async def answer(self, model: str | None) -> AsyncGenerator[None, None]:
        """Yield whenever the answer has grown; closing it ends the answer.

        It is to be read in a task of its own, which works for the caller from then on. What fails
        is noted with the answer, so nothing is raised.
        """
        begin_visit(Visit(self.caller))
        answer = self.said[-1]
        try:
            begun = await self._begin(model, answer)
            async with aclosing(_pieces(begun, answer)) as pieces:
                async for piece in pieces:
                    answer.text += piece
                    yield
        except ApiError as error:
            answer.note = error.message
        except (asyncio.CancelledError, GeneratorExit):
            answer.note = "stopped"
            raise
        finally:
            self.is_busy = False

    def forget(self) -> None:
        """Begin anew."""
        self.said.clear()

    async def _begin(self, model: str | None, answer: Said) -> Answer[ChatRequest]:
        """Begin the answer to all that was said, or to as much of the end as the context holds."""
        # What failed before it said anything is no message for a template.
        messages = [{"role": s.role, "content": s.text} for s in self.said if s.text]
        while True:
            content = {"messages": messages, "stream": True, **({"model": model} if model else {})}
            try:
                return await self.inference.begin(content, CHAT, len(json.dumps(content)))
            except ApiError as error:
                # Templates want a user's message first.
                users = [i for i, m in enumerate(messages) if i and m["role"] == "user"]
                if error.code != "context_length_exceeded" or not users:
                    raise
                messages = messages[users[0] :]
                answer.note = "the beginning of this chat no longer fits and was left out"


async def _pieces(begun: Answer[ChatRequest], answer: Said) -> AsyncGenerator[str, None]:
    async with aclosing(begun.events()) as events:
        async for event in events:
            for choice in json.loads(event.data)["choices"]:
                if choice["finish_reason"] == "length":
                    answer.note = "cut off: no more tokens fit into the context"
                if piece := choice["delta"].get("content"):
                    yield piece

"""The page to chat with the fog: answers stream in as their tokens come."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

from nicegui import background_tasks, ui

from gateway.dashboard.conversation import Conversation, Said
from gateway.dashboard.elements import main_button
from gateway.dashboard.view import View

_DRAW_SECONDS: Final = 0.08
"""Tokens that come faster are drawn together."""


def build(view: View) -> None:
    """Put the page into the frame."""
    _Chat(Conversation(view.sources.inference, view.caller))


class _Chat:
    """The elements of one tab's chat.

    Args:
        talk: What was said.
    """

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._task: asyncio.Task[None] | None = None
        self._messages: list[_Message] = []
        with (
            ui.element("div").props('tabindex="0" aria-label="Conversation"').classes("chat-scroll")
        ):
            self._log = ui.element("div").props('role="log"').classes("chat-log")
        with ui.element("div").classes("chat-entry"):
            names = talk.models()
            self._model = ui.select(names, value=next(iter(names), None), label="Model")
            self._model.props("outlined dense options-dense")
            self._model.set_visibility(len(names) > 1)
            self._entry = ui.textarea(placeholder="Ask the fog").props(
                'outlined dense autogrow autofocus aria-label="Message" maxlength=20000'
            )
            # Shift and Enter begin a new line.
            self._entry.on("keydown.enter.exact.prevent", self._send)
            self._entry.on("keydown.escape", self._stop)
            self._sender = main_button("Send", self._turn)
            self._cleaner = ui.button("New chat", on_click=self._begin_anew)
            self._cleaner.props("flat no-caps")
        self._timer = ui.timer(_DRAW_SECONDS, self._draw, active=False)
        # A tab that is closed wants no answer.
        ui.context.client.on_delete(self._stop)

    def _turn(self) -> None:
        """Send, or stop what comes; the cursor goes back to where one writes."""
        self._stop() if self._talk.is_busy else self._send()
        self._entry.run_method("focus")

    def _send(self) -> None:
        text = (self._entry.value or "").strip()
        if text and not self._talk.is_busy:
            self._entry.set_value("")
            self._talk.ask(text)
            self._draw()
            self._task = background_tasks.create(self._answer(), name="chat")

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _begin_anew(self) -> None:
        if not self._talk.is_busy:
            self._talk.forget()
            self._messages.clear()
            self._log.clear()
        self._entry.run_method("focus")

    async def _answer(self) -> None:
        self._timer.activate()
        try:
            async with aclosing(self._talk.answer(self._model.value)) as growing:
                async for _ in growing:
                    pass
        finally:
            if not self._log.is_deleted:
                self._timer.deactivate()
                self._draw()

    def _draw(self) -> None:
        """Bring the page up to date with what was said."""
        is_busy = self._talk.is_busy
        self._sender.set_text("Stop" if is_busy else "Send")
        self._cleaner.set_enabled(not is_busy)
        for said in self._talk.said[len(self._messages) :]:
            with self._log:
                self._messages.append(_Message(said))
        for message in self._messages[-2:]:
            message.draw(is_busy=is_busy and message is self._messages[-1])


class _Message:
    """One message as text: what a model writes is never HTML here."""

    def __init__(self, said: Said) -> None:
        self._said = said
        with ui.element("div").classes(f"chat-message is-{said.role}"):
            ui.label("You" if said.role == "user" else "Fog").classes("chat-who")
            self._text = ui.label().classes("chat-text")
            self._note = ui.label().classes("hint")

    def draw(self, *, is_busy: bool) -> None:
        """Show what it has by now."""
        self._text.set_text(self._said.text or ("…" if is_busy else ""))
        self._note.set_text(self._said.note)

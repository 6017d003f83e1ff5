"""From the inbox of a transport to the event loop: the one thread that the bus needs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final

from broker.transport import Disconnected, Publication, Transport, TransportEvent

_RECEIVE_SECONDS: Final = 0.5


class Receiver:
    """Hands every event of a transport to a function on the event loop.

    Args:
        transport: Connected by whoever made it; closed by `stop`.
        on_event: Called on the event loop, never after `stop` was called.
        name: Of the thread.
    """

    def __init__(
        self, transport: Transport, on_event: Callable[[TransportEvent], None], name: str
    ) -> None:
        self._transport = transport
        self._on_event = on_event
        self._name = name
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Begin to hand over, on the running event loop."""
        self._thread = threading.Thread(
            target=self._run, args=(asyncio.get_running_loop(),), name=self._name, daemon=True
        )
        self._thread.start()

    async def stop(self, farewell: Publication | None = None) -> None:
        """Close the transport with a farewell and end the thread."""
        self._stopping.set()
        # May wait for the broker's acknowledgement.
        await asyncio.to_thread(self._transport.close, farewell)
        if self._thread is not None:
            # Wakes it up.
            self._transport.inbox.put(Disconnected(self._name, "the gateway stops"))
            await asyncio.to_thread(self._thread.join)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self.is_stopping:
            event = self._transport.receive(_RECEIVE_SECONDS)
            if event is not None and not self.is_stopping:
                # The loop is closed when the process ends without `stop`.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._deliver, event)

    def _deliver(self, event: TransportEvent) -> None:
        if not self.is_stopping:
            self._on_event(event)

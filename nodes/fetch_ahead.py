"""Brings tensors into the cache before they are asked for, several at a time.

Beside `nodes.read_ahead`, which reads one tensor ahead into memory: a disk has room for more.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from nodes.checkpoint import GivenUpError, TensorError, TensorSource

_THREADS: Final = 4
# On disk and not yet read: enough to bridge a slow conversion, less than any cache holds.
_AHEAD_BYTES: Final = 512 << 20


class FetchAhead:
    """Fetches tensors of a source, in about the order in which they will be asked for.

    Args:
        names: In that order.
        threads: Tensors that are fetched at once, at most.
        ahead_bytes: Fetched and not yet asked for, at most; one tensor may always be.
    """

    def __init__(
        self,
        source: TensorSource,
        names: Sequence[str],
        *,
        threads: int = _THREADS,
        ahead_bytes: int = _AHEAD_BYTES,
    ) -> None:
        self._source = source
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._waiting = deque(names)
        # Taken up and not yet asked for.
        self._ahead: set[str] = set()
        self._running: set[str] = set()
        self._errors: dict[str, Exception] = {}
        self._is_stopping = False
        for number in range(min(threads, len(names))):
            # Daemons: a read that runs may take long, over a slow link; nobody waits for it.
            threading.Thread(target=self._run, name=f"fetch-{number}", daemon=True).start()

    def take(self, name: str) -> None:
        """Return when a tensor is no longer being fetched: it is there, or is left to the caller.

        Raises:
            TensorError: No source gave it.
        """
        with self._changed:
            if name in self._waiting:
                self._waiting.remove(name)
            self._changed.wait_for(lambda: name not in self._running)
            self._ahead.discard(name)
            self._changed.notify_all()
            error = self._errors.pop(name, None)
        if error is not None:
            raise error

    def stop(self) -> None:
        """Begin no more."""
        with self._changed:
            self._is_stopping = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while (name := self._next()) is not None:
            error: Exception | None = None
            try:
                self._source.fetch(name)
            except GivenUpError:
                self.stop()
            except TensorError as failure:
                error = failure
            finally:
                with self._changed:
                    self._running.discard(name)
                    if error is not None:
                        self._errors[name] = error
                    self._changed.notify_all()

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or not self._waiting or self._has_room)
            if self._is_stopping or not self._waiting:
                return None
            name = self._waiting.popleft()
            self._ahead.add(name)
            self._running.add(name)
            return name

    @property
    def _has_room(self) -> bool:
        if not self._ahead:
            return True
        names = (*self._ahead, self._waiting[0])
        return sum(map(self._source.num_bytes, names)) <= self._ahead_bytes

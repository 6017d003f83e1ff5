"""Reads the next tensor while the one before it is being converted.

Half of what loading takes is reading and checking bytes, and from another machine more than
that. Costs the memory of one more tensor. What has to be fetched comes into the cache earlier
still (`nodes.fetch_ahead`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType

from nodes.checkpoint import TensorSource
from nodes.fetch_ahead import FetchAhead
from nodes.stored import Stored


class ReadAhead:
    """Tensors of a source; all are read by one thread, which ends with the block.

    Args:
        names: In about the order in which they will be asked for; another order costs time
            alone.
    """

    def __init__(self, source: TensorSource, names: Sequence[str]) -> None:
        self._source = source
        self._fetching = FetchAhead(source, names) if source.fetches_ahead else None
        self._following = dict(pairwise(names))
        self._begun: set[str] = set()
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._ahead: dict[str, Future[Stored]] = {}

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A read that runs may take long, over a slow link; nobody waits for it.
        if self._fetching is not None:
            self._fetching.stop()
        self._source.give_up()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def load_tensor(self, name: str) -> Stored:
        """Return a tensor, and begin to read the one that follows it; raises as the source."""
        wanted = self._ahead.pop(name, None) or self._begin(name)
        following = self._following.get(name)
        if following is not None and following not in self._begun:
            self._ahead[following] = self._begin(following)
        return wanted.result()

    def _begin(self, name: str) -> Future[Stored]:
        self._begun.add(name)
        return self._thread.submit(self._load, name)

    def _load(self, name: str) -> Stored:
        if self._fetching is not None:
            self._fetching.take(name)
        return self._source.load_tensor(name)

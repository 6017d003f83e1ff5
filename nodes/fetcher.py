"""Fetches one tensor from whoever has it, and goes on elsewhere where a source fails."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from broker.control import ModelManifest, TensorInfo
from nodes.awaited import wait_for_offer
from nodes.landing import Landing
from nodes.ranges import AbsentError, RangeError, shown_url
from nodes.read_log import ReadLog
from nodes.sources import MANNERS, Kind, Source
from nodes.supply import Supply

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called with the number of bytes that just arrived; negative when they must come again."""

# Of a source for one tensor: it may have been the way.
_TRIES: Final = 2


class TensorError(Exception):
    """A tensor could not be had; the message names tensor, place and remedy."""


class MissingTensorError(TensorError):
    """The tensor is nowhere to be found, or no place lets this node read it."""


class DamagedTensorError(TensorError):
    """Bytes came, but not those that the manifest describes."""


class GivenUpError(Exception):
    """Nobody wants the tensor any more."""


class Fetcher:
    """Reads tensors of one model over HTTP.

    Args:
        supply: Who has them.
        progress: Told about bytes as they arrive.
        log: Told about them as well, with their source.
        given_up: Set when nobody wants them any more.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        supply: Supply,
        progress: Progress,
        log: ReadLog,
        given_up: threading.Event,
    ) -> None:
        self._manifest = manifest
        self._supply = supply
        self._progress = progress
        self._log = log
        self._given_up = given_up
        self._positions = {name: place for place, name in enumerate(sorted(manifest.tensors))}

    def pause(self, seconds: float) -> None:
        """Sleep; raises `GivenUpError` when nobody wants the result any more."""
        if self._given_up.wait(seconds):
            raise GivenUpError

    def wait_for(self, device: str, name: str, is_here: Callable[[], bool]) -> None:
        """Return when a device hands on a tensor that it is about to read, or is not going to.

        Args:
            device: Who is about to read it.
            name: Of the tensor.
            is_here: Whether the tensor came meanwhile in another way.

        Raises:
            GivenUpError: Nobody wants it any more.
        """
        if self._manifest.tensor_key:
            wait_for_offer(
                self._supply.neighbours,
                device,
                self._manifest.revision,
                self._manifest.tensors[name].num_bytes,
                is_here=is_here,
                pause=self.pause,
            )

    def fetch(self, name: str, info: TensorInfo, landing: Landing) -> None:
        """Fill ``landing`` with the bytes of a tensor, from where it stands on.

        Raises:
            MissingTensorError: No source gave them.
            DamagedTensorError: All that came differs from the manifest.
            GivenUpError: Nobody wants them any more; what came stays.
        """
        if landing.position == info.num_bytes and not landing.is_intact():
            landing.restart()
        self._count("cache", landing.position)
        if landing.is_intact():
            return
        sources = self._supply.sources(self._manifest, self._positions.get(name), info)
        tries: Counter[str] = Counter()
        givers: dict[str, Source] = {}
        problems: list[str] = []
        is_damaged = False
        while True:
            open_sources = [source for source in sources if tries[source.name] < _TRIES]
            source = self._supply.book.lease(open_sources, partial(self.pause, 0.0))
            if source is None:
                self._progress(-landing.position)
                raise _failure(name, info, problems, is_damaged=is_damaged)
            tries[source.name] += 1
            before = landing.position
            # Judged before it is free again, or the next range would be read from it as well.
            try:
                self._read(source, info, landing)
            except RangeError as error:
                if source.kind is not Kind.NEIGHBOUR or isinstance(error, AbsentError):
                    tries[source.name] = _TRIES
                if landing.position > before:
                    givers[source.name] = source
                problems.append(self._complain(name, source, str(error), error))
            else:
                if landing.is_intact():
                    self._supply.book.trust(source)
                    return
                is_damaged = True
                givers[source.name] = source
                for giver in givers.values():
                    problems.append(self._complain(name, giver, "checksum differs"))
                givers.clear()
                # They will come again, and count once.
                self._progress(-landing.position)
                landing.restart()
            finally:
                self._supply.book.release(source)

    def _read(self, source: Source, info: TensorInfo, landing: Landing) -> None:
        def take(piece: memoryview) -> None:
            landing.take(piece)
            self._count(source.name, len(piece))
            self.pause(0.0)

        manner = MANNERS[source.kind]
        began, before = time.monotonic(), landing.position
        self._supply.reader.read(
            source.url,
            source.first_byte + landing.position,
            info.num_bytes - landing.position,
            take,
            attempts=manner.attempts,
            timeout_seconds=manner.timeout_seconds,
            token=source.token,
        )
        seconds = time.monotonic() - began
        self._supply.book.measure(source, landing.position - before, seconds)

    def _count(self, source: str, num_bytes: int) -> None:
        if num_bytes:
            self._log.add(source, num_bytes)
            self._progress(num_bytes)

    def _complain(
        self, name: str, source: Source, problem: str, error: RangeError | None = None
    ) -> str:
        # Who merely lacks one tensor may well have the next.
        if not isinstance(error, AbsentError):
            self._supply.book.distrust(source)
        self._log.complain(source.name, f"{name}: {problem}")
        logger.warning("tensor %s from %s: %s", name, source.name, problem)
        return f"{source.name} ({shown_url(source.url)}): {problem}"


def _failure(name: str, info: TensorInfo, problems: list[str], *, is_damaged: bool) -> TensorError:
    if not problems:
        return MissingTensorError(
            f"tensor {name}: its folder does not exist here, and neither a neighbour nor the "
            f"manifest has a URL for {info.file}; is the gateway serving weights?"
        )
    kind = DamagedTensorError if is_damaged else MissingTensorError
    remedy = (
        "the file on the server is not the one of the manifest, restart the gateway"
        if is_damaged
        else "check that the gateway runs and that its address is reachable from here"
    )
    return kind(f"tensor {name} of {info.file}: {'; '.join(problems)}; {remedy}")

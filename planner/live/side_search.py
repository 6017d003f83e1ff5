"""Answers what-if questions in a process of its own, so that live planning never waits for one.

``python -m planner.live.side_search`` is that process: a supposition in, an answer out, and at
most so many seconds in between. It takes processor time only when nobody else wants it.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec.structs

from broker.codec import DecodeError, decode_control, encode_control
from broker.topics import WHAT_IF_ANSWER
from broker.transport import Publication
from broker.whatif import Finding, WhatIf, WhatIfAnswer
from planner.live.suppositions import Supposition, answer, unanswered

logger = logging.getLogger("planner")

_NICENESS: Final = 10

Work = Callable[[Supposition, float, "Child"], WhatIfAnswer]
"""Answers within so many seconds, in a thread of its own."""


class Child:
    """The process that computes, if there is one now; whoever wants may end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.is_given_up = False

    def start(self) -> subprocess.Popen[bytes] | None:
        """Return the process, or None when nobody waits for it any more."""
        with self._lock:
            if self.is_given_up:
                return None
            self._process = subprocess.Popen(
                [sys.executable, "-m", "planner.live.side_search"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            return self._process

    def give_up(self) -> None:
        """End the process, and start none."""
        with self._lock:
            self.is_given_up = True
            if self._process is not None:
                self._process.kill()


def in_a_process(supposition: Supposition, seconds: float, child: Child) -> WhatIfAnswer:
    """Return what a process of its own answers, or why it did not."""
    asked = supposition.asked
    process = child.start()
    if process is None:
        return unanswered(asked, Finding.FAILED, "nobody waits for it any more")
    with process:
        try:
            found, _ = process.communicate(pickle.dumps((supposition, seconds)), seconds)
            return decode_control(found, WhatIfAnswer)
        except subprocess.TimeoutExpired:
            process.kill()
            late = f"it takes longer than {seconds:.3g} s"
            return unanswered(asked, Finding.FAILED, late)
        except (DecodeError, OSError):
            return unanswered(
                asked, Finding.FAILED, "the search broke off; the planner's log has why"
            )


@dataclass(frozen=True, slots=True)
class _Job:
    gateway: str
    asked: WhatIf
    child: Child
    thread: threading.Thread


class SideSearch:
    """One question at a time; a gateway's newer one takes the place of its older one.

    Args:
        site: Of the answers.
        work: What answers a supposition.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        site: str,
        work: Work = in_a_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._site = site
        self._work = work
        self._clock = clock
        self._job: _Job | None = None
        self._answers: queue.SimpleQueue[tuple[Child, WhatIfAnswer]] = queue.SimpleQueue()

    def ask(self, gateway: str, supposition: Supposition) -> list[Publication]:
        """Begin to answer, or say at once why not."""
        job = self._job
        if job is not None and job.gateway != gateway:
            busy = "the planner answers another gateway's question"
            return [self.reply(gateway, unanswered(supposition.asked, Finding.BUSY, busy))]
        replies = []
        if job is not None:
            job.child.give_up()
            newer = "a newer question took its place"
            replies.append(self.reply(gateway, unanswered(job.asked, Finding.FAILED, newer)))
        child = Child()
        thread = threading.Thread(
            target=self._think, args=(supposition, child), name="what-if", daemon=True
        )
        self._job = _Job(gateway, supposition.asked, child, thread)
        thread.start()
        return replies

    def collect(self) -> list[Publication]:
        """Return what has been answered meanwhile."""
        replies = []
        while not self._answers.empty():
            child, found = self._answers.get()
            if self._job is not None and self._job.child is child:
                replies.append(self.reply(self._job.gateway, found))
                self._job = None
        return replies

    def close(self) -> None:
        """End the process, if there is one."""
        if self._job is not None:
            self._job.child.give_up()
            self._job.thread.join()

    def reply(self, gateway: str, found: WhatIfAnswer) -> Publication:
        """Return what tells a gateway."""
        path = WHAT_IF_ANSWER.path(self._site, gateway=gateway)
        return Publication(path, encode_control(found), WHAT_IF_ANSWER.qos)

    def _think(self, supposition: Supposition, child: Child) -> None:
        began = self._clock()
        try:
            found = self._work(supposition, supposition.asked.wait_seconds, child)
        except Exception:
            # A bug: without an answer no gateway's question would be taken any more.
            logger.exception("a what-if question failed")
            found = unanswered(supposition.asked, Finding.FAILED, "the search broke off")
        seconds = round(self._clock() - began, 3)
        self._answers.put((child, msgspec.structs.replace(found, seconds=seconds)))


def main() -> None:
    """Read a supposition from standard input, write its answer to standard output."""
    # The planner ends it, also when a person ends both with Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    supposition, seconds = pickle.load(sys.stdin.buffer)  # From the planner that started it.
    # Should that one be gone by then, nobody else ends this.
    signal.alarm(math.ceil(seconds) + 1)
    sys.stdout.buffer.write(encode_control(answer(supposition)))


if __name__ == "__main__":
    main()

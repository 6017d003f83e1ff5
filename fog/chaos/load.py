"""A load of streamed answers, each of them known from before the faults."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fog.answer import Answer
from fog.client import CutOffError, FogClient, FogRequestError, FogUnreachableError

PATIENCE_SECONDS: Final = 180.0
"""How long a client goes on asking before it calls its request lost."""
PAUSE_SECONDS: Final = 0.5
_COME_AGAIN: Final = (429, 503)
_TEMPERATURE: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, and its answer when nothing disturbs it.

    Attributes:
        body: Of ``POST /v1/chat/completions``.
    """

    body: dict[str, Any]
    undisturbed: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request.

    Attributes:
        answer: None when it was lost.
        error: Why it was.
        num_refused: How often it was told to come again before it was taken.
        began_at, ended_at: By the clock of the load.
    """

    job: Job
    answer: Answer | None
    error: str = ""
    num_refused: int = 0
    began_at: float
    ended_at: float


def make_bodies(
    model: str, seed: int, max_tokens: int, sampled: float, count: int
) -> list[dict[str, Any]]:
    """Return different requests with the same length of answer; some drawn, some greedy."""
    rng = random.Random(seed)
    bodies = []
    for number in range(count):
        a, b = rng.randrange(1, 100), rng.randrange(1, 100)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"What is {a} plus {b}?"}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "return_token_ids": True,
            "temperature": _TEMPERATURE if (number + 0.5) / count < sampled else 0.0,
            "seed": rng.randrange(2**31),
            # Said, so that what the model's folder suggests does not matter.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        bodies.append(body)
    rng.shuffle(bodies)
    return bodies


def answer_undisturbed(
    client: FogClient, bodies: Sequence[dict[str, Any]], on_answer: Callable[[int], None]
) -> list[Job]:
    """Ask one request after the other, each alone; ``on_answer`` gets how many are done."""
    jobs = []
    for number, body in enumerate(bodies, start=1):
        jobs.append(Job(body=body, undisturbed=client.chat(body)))
        on_answer(number)
    return jobs


@dataclass
class Load:
    """Streams that ask one request after the other until they are told to stop.

    Attributes:
        num_requests: After so many in all they stop by themselves; None: never.
        patience_seconds: How long a client goes on asking before it calls its request lost.
        outcomes: Of the requests that have ended, in that order.
        key: API key, where the gateway needs one.
    """

    url: str
    jobs: Sequence[Job]
    num_streams: int
    clock: Callable[[], float] = time.monotonic
    num_requests: int | None = None
    patience_seconds: float = PATIENCE_SECONDS
    outcomes: list[Outcome] = field(default_factory=list)
    key: str | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._numbers: Iterator[int] = itertools.count()
        self._threads = [
            threading.Thread(target=self._run, name=f"stream-{number}", daemon=True)
            for number in range(self.num_streams)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_seconds: float = PATIENCE_SECONDS + 60) -> int:
        """Let the requests that run end; return how many did not within the time."""
        self._stop.set()
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float) -> int:
        """Wait until all streams have stopped; return how many did not within the time."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        client = FogClient(
            self.url,
            key=self.key,
            timeout_seconds=self.patience_seconds,
            resume_seconds=self.patience_seconds,
            clock=self.clock,
        )
        while not self._stop.is_set():
            number = next(self._numbers)
            if self.num_requests is not None and number >= self.num_requests:
                return
            job = self.jobs[number % len(self.jobs)]
            self.outcomes.append(self._ask(client, job))

    def _ask(self, client: FogClient, job: Job) -> Outcome:
        began_at = self.clock()
        num_refused = 0
        while True:
            answer: Answer | None = None
            error = ""
            try:
                answer = client.chat(job.body)
            except CutOffError as problem:
                error = str(problem)
                break
            except FogUnreachableError as problem:
                error = str(problem)
            except FogRequestError as problem:
                error = f"HTTP {problem.status}: {problem}"
                if problem.status not in _COME_AGAIN:
                    break
            if answer is not None or self.clock() - began_at >= self.patience_seconds:
                break
            num_refused += 1
            time.sleep(PAUSE_SECONDS)
        return Outcome(
            job=job,
            answer=answer,
            error=error,
            num_refused=num_refused,
            began_at=began_at,
            ended_at=self.clock(),
        )

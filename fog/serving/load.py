"""Sends requests as they are due, or so many at a time, and collects what came of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fog.serving.prompts import WordScale, make_prompt
from fog.serving.sample import Sample
from fog.serving.server import Dialect, Server

if TYPE_CHECKING:
    from planner.simulation import SimRequest


@dataclass
class Progress:
    """How far a load is.

    Attributes:
        samples: Of the requests that have ended, in that order.
        num_sent: Ended ones included.
        num_failed, num_tokens: Of the ended ones.
        is_interrupted: What is left was not sent.
    """

    samples: list[Sample] = field(default_factory=list)
    num_sent: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    started_at: float = 0.0
    is_interrupted: bool = False

    @property
    def num_in_flight(self) -> int:
        """Requests that are being answered."""
        return self.num_sent - len(self.samples)

    def add(self, sample: Sample) -> None:
        """Count a request that has ended."""
        self.samples.append(sample)
        self.num_failed += bool(sample.error)
        self.num_tokens += sample.answer_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What is sent.

    Attributes:
        requests: When they come and how long they are.
        concurrency: So many at a time, whenever they would come; None: as they come.
        seed: Of the words of the prompts.
    """

    requests: Sequence[SimRequest]
    concurrency: int | None
    dialect: Dialect
    scale: WordScale
    seed: int

    def bodies(self) -> list[dict[str, object]]:
        """Return the bodies of all requests, made before the clock starts."""
        rng = random.Random(self.seed)
        return [
            self.dialect.body(make_prompt(self.scale, r.prompt_tokens, rng), r.answer_tokens)
            for r in self.requests
        ]


async def send_load(
    plan: LoadPlan, server: Server, progress: Progress, on_change: Callable[[], None]
) -> None:
    """Send all requests and wait for their answers, which ``progress`` collects.

    A cancelled load leaves the requests in flight as interrupted ones.
    """
    bodies = plan.bodies()
    progress.started_at = start = time.perf_counter()
    places = asyncio.Semaphore(plan.concurrency or len(bodies))
    tasks: list[asyncio.Task[None]] = []

    async def ask(body: dict[str, object], due_at: float) -> None:
        progress.num_sent += 1
        on_change()
        try:
            progress.add(await server.stream(plan.dialect, body, due_at, start))
        finally:
            places.release()
            on_change()

    try:
        for request, body in zip(plan.requests, bodies, strict=True):
            if plan.concurrency is None:
                await asyncio.sleep(start + request.arrival_seconds - time.perf_counter())
                due_at = request.arrival_seconds
            await places.acquire()
            if plan.concurrency is not None:
                due_at = time.perf_counter() - start
            tasks.append(asyncio.create_task(ask(body, due_at)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        progress.is_interrupted = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

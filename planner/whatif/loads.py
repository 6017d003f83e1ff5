"""Workloads by name or from a file, and what a planner plans for them. Pure but for the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
from numpy.random import Generator

from planner.model import ModelSpec, Workload
from planner.paper.published import PaperWorkload, load_published
from planner.paper.waiting import ANSWER_CV, PROMPT_CV
from planner.simulation import SimRequest
from planner.simulation.workloads import (
    AZURE_CODE_ANSWER,
    AZURE_CODE_GAP_CV,
    AZURE_CODE_PROMPT,
    AZURE_CONVERSATION_ANSWER,
    AZURE_CONVERSATION_GAP_CV,
    AZURE_CONVERSATION_PROMPT,
    Lengths,
    Times,
    bursty,
    fixed_period,
    lognormal,
    poisson,
    read_trace,
    requests,
)

Arrivals = Callable[[int, float, Generator], Times]
"""(how many, requests per second, rng) to arrival times."""


class LoadError(ValueError):
    """There is no such workload, or its file is wrong."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the making.

    Attributes:
        text: What it is, for a person.
        trace: Requests with times of their own; empty where they are drawn.
    """

    text: str
    prompt_tokens: float
    answer_tokens: float
    prompt: Lengths | None = None
    answer: Lengths | None = None
    arrivals: Arrivals | None = None
    trace: tuple[SimRequest, ...] = ()

    def requests(self, number: int | None, rate: float, seed: int) -> tuple[SimRequest, ...]:
        """Return requests: as many as asked for (100, or a whole trace), at ``rate``."""
        if self.trace:
            return self._replayed(number, rate)
        assert self.prompt is not None
        assert self.answer is not None
        assert self.arrivals is not None
        rng = np.random.default_rng(seed)
        arrivals = self.arrivals(number or DEFAULT_REQUESTS, rate, rng)
        return requests(arrivals, self.prompt, self.answer, rng)

    @property
    def trace_rate(self) -> float | None:
        """Requests per second of the trace; None without one."""
        if len(self.trace) < 2 or self.trace[-1].arrival_seconds <= 0:
            return None
        return (len(self.trace) - 1) / self.trace[-1].arrival_seconds

    def _replayed(self, number: int | None, rate: float) -> tuple[SimRequest, ...]:
        factor = (self.trace_rate or rate) / rate
        return tuple(
            replace(request, arrival_seconds=request.arrival_seconds * factor)
            for request in self.trace[:number]
        )


DEFAULT_REQUESTS: Final = 100
_CHAT: Final = Workload()


def named_loads() -> Mapping[str, Load]:
    """Return the workloads that have a name."""
    published = load_published().workloads
    paper = {
        str(name): Load(
            f"{name}: the paper's mean lengths, lognormal, one request every period",
            means.prompt_tokens,
            means.answer_tokens,
            lognormal(means.prompt_tokens, PROMPT_CV),
            lognormal(means.answer_tokens, ANSWER_CV),
            lambda number, rate, _: fixed_period(number, 1 / rate),
        )
        for name, means in published.items()
        if name in PaperWorkload
    }
    chat = Load(
        "chat: short turns, lognormal, Poisson arrivals",
        _CHAT.prompt_tokens,
        _CHAT.answer_tokens,
        lognormal(_CHAT.prompt_tokens, 1.0),
        lognormal(_CHAT.answer_tokens, ANSWER_CV),
        poisson,
    )
    code = Load(
        "azure-code: lengths of Azure's code trace of 2023, as bursty",
        AZURE_CODE_PROMPT.mean,
        AZURE_CODE_ANSWER.mean,
        AZURE_CODE_PROMPT.lengths(),
        AZURE_CODE_ANSWER.lengths(),
        lambda number, rate, rng: bursty(number, rate, AZURE_CODE_GAP_CV, rng),
    )
    conversation = Load(
        "azure-conversation: lengths of Azure's conversation trace of 2023",
        AZURE_CONVERSATION_PROMPT.mean,
        AZURE_CONVERSATION_ANSWER.mean,
        AZURE_CONVERSATION_PROMPT.lengths(),
        AZURE_CONVERSATION_ANSWER.lengths(),
        lambda number, rate, rng: bursty(number, rate, AZURE_CONVERSATION_GAP_CV, rng),
    )
    return {**paper, "chat": chat, "azure-code": code, "azure-conversation": conversation}


def choose_load(text: str) -> Load:
    """Return the workload of a name, or of a CSV file of arrival, prompt, answer.

    Raises:
        LoadError: There is neither, or the file's line so-and-so is wrong.
    """
    loads = named_loads()
    if text in loads:
        return loads[text]
    path = Path(text)
    if not path.is_file():
        raise LoadError(
            f"workload {text}: no such file and no such workload; known: {', '.join(loads)}"
        )
    try:
        trace = read_trace(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"workload {text}: {error}") from error
    return Load(
        f"{path.name}: {len(trace)} requests",
        fmean(request.prompt_tokens for request in trace),
        fmean(request.answer_tokens for request in trace),
        trace=trace,
    )


def planned_workload(load: Load, base: Workload, model: ModelSpec) -> Workload:
    """Return what is planned for: the load's means in the base's context and speeds."""
    return replace(
        base,
        prompt_tokens=max(round(load.prompt_tokens), 1),
        answer_tokens=max(round(load.answer_tokens), 1),
    ).fitted_to(model.context_limit)


def cut_to_context(
    found: tuple[SimRequest, ...], context_tokens: int
) -> tuple[tuple[SimRequest, ...], int]:
    """Return requests that a gateway would take, and how many had to be shortened.

    Too long a prompt leaves room for one answer token; then the answer is cut.
    """
    cut = tuple(_cut(request, context_tokens) for request in found)
    return cut, sum(old != new for old, new in zip(found, cut, strict=True))


def _cut(request: SimRequest, context_tokens: int) -> SimRequest:
    prompt = min(request.prompt_tokens, context_tokens - 1)
    answer = min(request.answer_tokens, context_tokens - prompt)
    return replace(request, prompt_tokens=prompt, answer_tokens=answer)

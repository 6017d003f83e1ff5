"""Workloads by name or from a file, and what a planner plans for them. Pure but for the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
from numpy.random import Generator

from planner.lengths import buckets_of
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
    """There is no such workload, or its file, lengths or arrivals are wrong."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the making.

    Attributes:
        name: Of the workload, or of its file.
        lengths_text: How long requests are, for a person.
        arrivals_text: How they come.
        prompt_tokens: Mean.
        answer_tokens: Mean.
        trace: Requests with times of their own; empty where they are drawn.
    """

    name: str
    lengths_text: str
    arrivals_text: str
    prompt_tokens: float
    answer_tokens: float
    prompt: Lengths | None = None
    answer: Lengths | None = None
    arrivals: Arrivals | None = None
    trace: tuple[SimRequest, ...] = ()

    @property
    def text(self) -> str:
        """What it is, for a person."""
        return f"{self.name}: {self.lengths_text}; {self.arrivals_text}"

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
        """Requests per second of the trace; None without one, or when all come at once."""
        if len(self.trace) < 2 or self.trace[-1].arrival_seconds <= 0:
            return None
        return (len(self.trace) - 1) / self.trace[-1].arrival_seconds

    def _replayed(self, number: int | None, rate: float) -> tuple[SimRequest, ...]:
        factor = (self.trace_rate or rate) / rate
        return tuple(
            replace(request, arrival_seconds=request.arrival_seconds * factor)
            for request in self.trace[:number]
        )

    def with_lengths(self, prompt_tokens: int | None, answer_tokens: int | None) -> Load:
        """Return the same arrivals with lognormal lengths of these means; None keeps them."""
        changed, texts = self, []
        if prompt_tokens is not None:
            changed = replace(
                changed, prompt_tokens=prompt_tokens, prompt=lognormal(prompt_tokens, _CHAT_CV)
            )
            texts.append(f"prompts of {prompt_tokens}")
        if answer_tokens is not None:
            changed = replace(
                changed, answer_tokens=answer_tokens, answer=lognormal(answer_tokens, ANSWER_CV)
            )
            texts.append(f"answers of {answer_tokens}")
        if not texts:
            return self
        return replace(changed, lengths_text=f"{' and '.join(texts)} tokens on average, lognormal")

    def with_arrivals(self, text: str) -> Load:
        """Return the same lengths with ``poisson``, ``fixed``, ``bursty``, ``bursty:CV`` arrivals.

        Raises:
            LoadError: It is none of these.
        """
        kind, colon, cv_text = text.partition(":")
        if kind == "poisson" and not colon:
            return replace(self, arrivals=poisson, arrivals_text=_POISSON_TEXT)
        if kind == "fixed" and not colon:
            return replace(self, arrivals=_fixed, arrivals_text=_FIXED_TEXT)
        if kind == "bursty":
            cv = _number(cv_text) if colon else BURSTY_CV
            if 0 < cv <= _MOST_CV:
                return replace(self, arrivals=_bursty(cv), arrivals_text=_bursty_text(cv))
        raise LoadError(
            f"arrivals {text}: use poisson, fixed, bursty, or bursty:CV with the coefficient of "
            f"variation of the gaps, greater than 0 and at most {_MOST_CV:g} (bursty alone: "
            f"{BURSTY_CV:g})"
        )


DEFAULT_REQUESTS: Final = 100
_SAMPLE: Final = 2000
BURSTY_CV: Final = 4.0
"""Of gaps that are called bursty without a number: between Azure's conversations, 1.09, and
its code completions, 13.2."""
_MOST_CV: Final = 100.0
_CHAT: Final = Workload()
_CHAT_CV: Final = 1.0
_POISSON_TEXT: Final = "Poisson arrivals"
_FIXED_TEXT: Final = "one every period"


def _fixed(number: int, rate: float, _: Generator) -> Times:
    return fixed_period(number, 1 / rate)


def _bursty(cv: float) -> Arrivals:
    return lambda number, rate, rng: bursty(number, rate, cv, rng)


def _bursty_text(cv: float) -> str:
    return f"bursty, gaps vary by {cv:g} times their mean"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def named_loads() -> Mapping[str, Load]:
    """Return the workloads that have a name."""
    published = load_published().workloads
    paper = {
        str(name): Load(
            str(name),
            "the paper's mean lengths, lognormal",
            _FIXED_TEXT,
            means.prompt_tokens,
            means.answer_tokens,
            lognormal(means.prompt_tokens, PROMPT_CV),
            lognormal(means.answer_tokens, ANSWER_CV),
            _fixed,
        )
        for name, means in published.items()
        if name in PaperWorkload
    }
    chat = Load(
        "chat",
        "short turns, lognormal",
        _POISSON_TEXT,
        _CHAT.prompt_tokens,
        _CHAT.answer_tokens,
        lognormal(_CHAT.prompt_tokens, _CHAT_CV),
        lognormal(_CHAT.answer_tokens, ANSWER_CV),
        poisson,
    )
    code = Load(
        "azure-code",
        "lengths of Azure's code completions of 2023",
        _bursty_text(AZURE_CODE_GAP_CV),
        AZURE_CODE_PROMPT.mean,
        AZURE_CODE_ANSWER.mean,
        AZURE_CODE_PROMPT.lengths(),
        AZURE_CODE_ANSWER.lengths(),
        _bursty(AZURE_CODE_GAP_CV),
    )
    conversation = Load(
        "azure-conversation",
        "lengths of Azure's conversations of 2023",
        _bursty_text(AZURE_CONVERSATION_GAP_CV),
        AZURE_CONVERSATION_PROMPT.mean,
        AZURE_CONVERSATION_ANSWER.mean,
        AZURE_CONVERSATION_PROMPT.lengths(),
        AZURE_CONVERSATION_ANSWER.lengths(),
        _bursty(AZURE_CONVERSATION_GAP_CV),
    )
    return {**paper, **{load.name: load for load in (chat, code, conversation)}}


def choose_load(
    text: str,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    arrivals: str | None = None,
) -> Load:
    """Return the workload of a name, or of a CSV file of arrival, prompt, answer.

    Args:
        text: Name or file.
        prompt_tokens: Another mean than the named workload's.
        answer_tokens: The same for answers.
        arrivals: Others than the named workload's, as `Load.with_arrivals` reads them.

    Raises:
        LoadError: There is neither, the file's line so-and-so is wrong, or a trace, which has
            lengths and arrivals of its own, is to have others.
    """
    loads = named_loads()
    if text in loads:
        load = loads[text].with_lengths(prompt_tokens, answer_tokens)
        return load if arrivals is None else load.with_arrivals(arrivals)
    path = Path(text)
    if not path.is_file():
        raise LoadError(
            f"workload {text}: no such file and no such workload; known: {', '.join(loads)}"
        )
    if (prompt_tokens, answer_tokens, arrivals) != (None, None, None):
        raise LoadError(f"workload {text}: a trace has lengths and arrivals of its own")
    try:
        trace = read_trace(path)
    except UnicodeDecodeError as error:
        raise LoadError(f"workload {text}: is not UTF-8 text: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"workload {text}: {error}") from error
    return Load(
        path.name,
        f"lengths of {len(trace)} recorded requests",
        "arrivals as recorded",
        fmean(request.prompt_tokens for request in trace),
        fmean(request.answer_tokens for request in trace),
        trace=trace,
    )


def planned_workload(load: Load, base: Workload, model: ModelSpec) -> Workload:
    """Return what is planned for: the load's lengths in the base's context and speeds.

    Lengths that are drawn are those of a fixed sample, whatever the seed of a run, so equal
    workloads have equal plans.
    """
    context = min(base.context_tokens, model.context_limit)
    sample, _ = cut_to_context(load.requests(_SAMPLE, 1.0, seed=0), context)
    lengths = [(request.prompt_tokens, request.answer_tokens) for request in sample]
    return replace(base, buckets=buckets_of(lengths)).fitted_to(model.context_limit)


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

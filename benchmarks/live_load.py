"""What a load of streamed answers says of a fog: rates, gaps, and whether all is right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fog.chaos.load import Job, Load, Outcome, answer_undisturbed, make_bodies
from fog.chaos.replay import ties
from fog.chaos.run import judge_all
from fog.chaos.verdict import Verdict
from fog.client import FogClient
from fog.model_choice import DEMO_MODEL

STREAMS = 16
MAX_TOKENS = 120
NUM_ANSWERS = 8


@dataclass(frozen=True, slots=True)
class Window:
    """A time, by `time.monotonic`."""

    begin: float
    end: float


@dataclass
class MeasuredLoad:
    """Streams that ask without a pause, as in `e2llm chaos`; read when it has ended.

    Attributes:
        hanging: Requests that did not end.
    """

    url: str
    jobs: Sequence[Job]
    hanging: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> MeasuredLoad:
        self._load = Load(self.url, self.jobs, STREAMS)
        self._load.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.hanging = self._load.stop()
        self.outcomes = self._load.outcomes

    def window(self, seconds: float) -> Window:
        """Let the load run for a while, and return that while."""
        begin = time.monotonic()
        time.sleep(seconds)
        return Window(begin, time.monotonic())

    def tokens_per_second(self, window: Window) -> float:
        """Return the tokens that clients got within a window, per second."""
        inside = sum(window.begin <= at < window.end for at in self._token_times())
        return inside / (window.end - window.begin)

    def longest_gap(self, window: Window) -> float:
        """Return the longest time between two tokens of one answer that touches a window."""
        return max(
            (
                later - earlier
                for outcome in self.outcomes
                if outcome.answer is not None
                for earlier, later in pairwise(outcome.answer.token_times)
                if later > window.begin and earlier < window.end
            ),
            default=0.0,
        )

    def _token_times(self) -> list[float]:
        answers = [outcome.answer for outcome in self.outcomes if outcome.answer is not None]
        return [at for answer in answers for at in answer.token_times]

    def findings(self) -> dict[str, int]:
        """Return how many requests there were, and how many are not as they should be."""
        return findings(self.outcomes, self.hanging)


def findings(outcomes: Sequence[Outcome], hanging: int) -> dict[str, int]:
    """Compare answers with the undisturbed ones; see `MeasuredLoad.findings`."""
    judged = judge_all(outcomes, ties(str(DEMO_MODEL), "float32"))
    count = {verdict: sum(each.verdict is verdict for each in judged) for verdict in Verdict}
    return {
        "requests": len(judged) + hanging,
        "lost": hanging + sum(each.verdict is None for each in judged),
        "wrong": count[Verdict.WRONG],
        "ties": count[Verdict.TIE],
    }


def short_jobs(client: FogClient) -> list[Job]:
    """Return short questions with long answers, as they are when nothing disturbs them."""
    bodies = make_bodies(client.model(), 1, MAX_TOKENS, 0.5, NUM_ANSWERS)
    return answer_undisturbed(client, bodies, lambda number: None)


def long_jobs(client: FogClient, count: int, prompt_tokens: int, max_tokens: int) -> list[Job]:
    """Return long prompts with short answers, as they are when nothing disturbs them."""
    bodies = make_bodies(client.model(), 2, max_tokens, 0.5, count)
    probe = client.chat({**bodies[0], "max_tokens": 1})
    for number, body in enumerate(bodies):
        (message,) = body["messages"]
        # Each begins differently, so that nobody has any of it from before.
        text = f"{number} {message['content']} "
        repeats = max(prompt_tokens // len(probe.prompt_token_ids), 1)
        body["messages"] = [{**message, "content": text * repeats}]
    return answer_undisturbed(client, bodies, lambda number: None)

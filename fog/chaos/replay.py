"""Near ties of answers in float32, judged by a replay in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from broker.work import Sampling
from fog.chaos.load import Job
from fog.chaos.verdict import Gap

if TYPE_CHECKING:
    from nodes.replay import Replay


def ties(model: str, weights: str) -> Callable[[Job], Gap] | None:
    """Return what judges the differences of a job's answers; None: there can be no tie.

    Args:
        model: Folder of the model; from anywhere else it cannot be replayed, and then every
            difference counts as wrong.
        weights: Format in which the fog holds it; only in float32 the order of a sum matters.
    """
    folder = Path(model)
    if weights != "float32" or not folder.is_dir():
        return None

    @cache
    def replay() -> Replay:
        # Not before there is a difference: it needs torch, and memory for all of the model.
        from nodes.replay import Replay

        return Replay(folder)

    def gap_of(job: Job) -> Gap:
        sampling = Sampling(
            temperature=job.body["temperature"], seed=job.body["seed"], ignore_eos=True
        )

        def gap(so_far: Sequence[int], one: int, other: int) -> float:
            prompt = job.undisturbed.prompt_token_ids
            return replay().gap(prompt, so_far, sampling, one, other)

        return gap

    return gap_of

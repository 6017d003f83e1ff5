"""What a client saw of one request, and what it comes to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import nan
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request. Times are in seconds since the load began.

    Attributes:
        due_at: When it was to be sent; what follows is counted from there, so that a load
            generator that falls behind flatters no server.
        sent_at: When it was.
        times: When each piece of the answer came; a piece is a token or several.
        piece_tokens: Tokens of each piece, where the server says; 1 where it does not.
        answer_id: The server's id of the answer.
        prompt_tokens: As the server counted them; 0: it did not say.
        answer_tokens: The same, or the pieces.
        error: Why there is no whole answer.
    """

    due_at: float
    sent_at: float
    times: tuple[float, ...] = ()
    piece_tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0
    answer_id: str = ""
    error: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole."""
        return not self.error and bool(self.times)

    @property
    def ttft_seconds(self) -> float:
        """Until the first token; NaN without one."""
        return self.times[0] - self.due_at if self.times else nan

    @property
    def tpot_seconds(self) -> float:
        """Mean time of a token after the first piece; NaN where there is none."""
        later = self.answer_tokens - (self.piece_tokens[0] if self.piece_tokens else 1)
        return (self.times[-1] - self.times[0]) / later if self.times and later > 0 else nan

    @property
    def waiting_seconds(self) -> float:
        """Until the first decode step, as far as a client can see it; NaN for one piece.

        That is the paper's waiting time: queue, prefill, KV transfer and the queue behind it. The
        second token comes a step after it, and a step takes the median of the later gaps.
        """
        if len(self.times) < 2:
            return nan
        gaps = [after - before for before, after in pairwise(self.times[1:])]
        step = min(median(gaps) if gaps else 0.0, self.times[1] - self.times[0])
        return self.times[1] - step - self.due_at

    @property
    def longest_gap_seconds(self) -> float:
        """Longest time between two pieces; NaN for one."""
        return max((after - before for before, after in pairwise(self.times)), default=nan)

    @property
    def end_to_end_seconds(self) -> float:
        """Until the last token; NaN without one."""
        return self.times[-1] - self.due_at if self.times else nan

    def meets(self, ttft_seconds: float | None, tpot_seconds: float | None) -> bool:
        """Return whether it finished within the targets; None is no target."""
        return (
            self.is_finished
            and (ttft_seconds is None or self.ttft_seconds <= ttft_seconds)
            # An answer of one piece has no later token that could be late.
            and (tpot_seconds is None or not self.tpot_seconds > tpot_seconds)
        )

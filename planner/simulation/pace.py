"""How long a replica's rounds take, in closed form. Pure.

A *round* gives every decoding request one token: its G groups pass all stages once. While
nothing changes, rounds differ only in the context, which grows by one position each; their
sum over any number of rounds is arithmetic. That is what makes a run cheap.

With G groups in flight a round takes the way of a group round the ring, or the time in which
the slowest stage or link serves all groups, whichever is longer; exact for equal groups in
a steady state. While prompts are prefilled beside them, groups wait for slices of chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil, inf
from typing import Final

from broker.grouping import best_grouping
from broker.plan import BatchSeconds, LayerRange, Stage
from planner.cost import table_batches
from planner.simulation.scenario import DecodeSeconds, GroupRule, SimReplica, SimStage

# Step times are taken at multiples of this many positions and are linear between.
_CELL: Final = 256
# Knots of the grouping tables where no number of slots limits the rows.
_MOST_KNOT_ROWS: Final = 64


class Pace:
    """Times of one replica whose devices are slowed down by given factors.

    Args:
        replica: Its tables, with the errors of the planner's model.
        slowdowns: One factor for each stage on top of these.
    """

    def __init__(self, replica: SimReplica, slowdowns: tuple[float, ...]) -> None:
        stages = replica.stages
        self.replica = replica
        self.num_stages = len(stages)
        self._decode = [
            (stage.decode_seconds, stage.decode_factor * slow)
            for stage, slow in zip(stages, slowdowns, strict=True)
        ]
        self._prefill = [
            (stage.prefill_seconds, stage.prefill_factor * slow)
            for stage, slow in zip(stages, slowdowns, strict=True)
        ]
        is_ring = len(stages) > 1
        self._hops = [stage.hop_seconds if is_ring else 0.0 for stage in stages]
        self._link_rows = [stage.hop_row_seconds if is_ring else 0.0 for stage in stages]
        self._has_links = any(self._link_rows)
        # What a chunk passes, in order: stage 0, link into 1, stage 1, ...; and the latency
        # before each.
        self.delays: tuple[float, ...] = (0.0,)
        for hop in self._hops[1:]:
            self.delays += (hop, 0.0) if self._has_links else (hop,)
        # Into how many slices a chunk can be cut at each of these; on links into any number.
        self._most_slices: tuple[float, ...] = ()
        for index, stage in enumerate(stages):
            layers = inf if stage.layers is None else stage.layers[1] - stage.layers[0]
            self._most_slices += (inf, layers) if index and self._has_links else (layers,)
        self.is_context_free = all(_is_context_free(function) for function, _ in self._decode)
        self._steps: dict[int, list[float]] = {}
        self._groups: dict[int, tuple[int, int]] = {}
        self._cells: dict[tuple[int, int], tuple[float, float]] = {}
        self._chunks: dict[tuple[int, int], tuple[float, ...]] = {}
        self._prompts: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._busy: dict[int, list[float]] = {}
        self._planned: dict[int, float] = {}

    # --- decode -----------------------------------------------------------------------------

    def groups(self, num_rows: int) -> tuple[int, int]:
        """Return (groups in flight, rows of the largest) for ``num_rows`` requests."""
        found = self._groups.get(num_rows)
        if found is None:
            if self.replica.groups is GroupRule.BEST:
                grouping = best_grouping(_planned_stages(self.replica), num_rows)
                found = grouping.num_groups, grouping.group_rows
            else:
                group_rows = ceil(num_rows / self.num_stages)
                found = ceil(num_rows / group_rows), group_rows
            self._groups[num_rows] = found
        return found

    def _stage_seconds(self, rows: int, context: float) -> list[float]:
        if not self.is_context_free:
            return [factor * seconds(rows, context) for seconds, factor in self._decode]
        found = self._steps.get(rows)
        if found is None:
            found = [factor * seconds(rows, context) for seconds, factor in self._decode]
            self._steps[rows] = found
        return found

    def round_seconds(self, num_rows: int, context: float) -> float:
        """Return the time of one round without prefill, by the tables themselves."""
        groups, rows = self.groups(num_rows)
        return self._round_seconds(groups, rows, self._stage_seconds(rows, context))

    def _round_seconds(self, groups: int, rows: int, times: list[float]) -> float:
        links = [rows * seconds for seconds in self._link_rows]
        slowest = max(*times, *links)
        if self.replica.groups is GroupRule.PAPER:
            hops = (hop + link for hop, link in zip(self._hops, links, strict=True))
            return self.num_stages * max(slowest, *hops)
        return max(sum(times) + sum(links) + sum(self._hops), groups * slowest)

    def _cell(self, num_rows: int, index: int) -> tuple[float, float]:
        """Return a round's time at the cell's first context, and its slope."""
        found = self._cells.get((num_rows, index))
        if found is None:
            low = self.round_seconds(num_rows, index * _CELL)
            slope = 0.0
            if not self.is_context_free:
                slope = (self.round_seconds(num_rows, (index + 1) * _CELL) - low) / _CELL
            found = self._cells[num_rows, index] = low, slope
        return found

    def run_seconds(self, num_rows: int, context: float, num_rounds: int) -> float:
        """Return the time of ``num_rounds`` rounds, the first at mean context ``context``."""
        if self.is_context_free:
            return num_rounds * self._cell(num_rows, 0)[0]
        total = 0.0
        while num_rounds > 0:
            index = int(context // _CELL)
            low, slope = self._cell(num_rows, index)
            rounds = min(num_rounds, max(ceil((index + 1) * _CELL - context), 1))
            total += rounds * (low + slope * (context - index * _CELL + (rounds - 1) / 2))
            context += rounds
            num_rounds -= rounds
        return total

    def rounds_until(self, num_rows: int, context: float, seconds: float, most: int) -> int:
        """Return the fewest rounds, 1 to ``most``, that take ``seconds`` or longer."""
        if self.is_context_free:
            step = self._cell(num_rows, 0)[0]
            return min(max(ceil(seconds / step - 1e-9), 1), most) if step > 0 else most
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self.run_seconds(num_rows, context, middle) >= seconds - 1e-9:
                high = middle
            else:
                low = middle + 1
        return low

    def decode_busy(self, num_rows: int, context: float) -> list[float]:
        """Return what each stage computes in one round without prefill."""
        found = self._busy.get(num_rows)
        if found is None:
            groups, rows = self.groups(num_rows)
            found = [groups * seconds for seconds in self._stage_seconds(rows, context)]
            if self.is_context_free:
                self._busy[num_rows] = found
        return found

    def planned_seconds(self, num_rows: int) -> float:
        """Return the time of a round at the planned context."""
        found = self._planned.get(num_rows)
        if found is None:
            found = self.round_seconds(num_rows, self.replica.planned_context)
            self._planned[num_rows] = found
        return found

    # --- prefill ----------------------------------------------------------------------------

    def chunk_tokens(self, prompt_tokens: int, position: int) -> int:
        """Return the size of a prompt's chunk that begins at ``position``, on the grid."""
        grid = self.replica.chunk_tokens or prompt_tokens
        return min(grid - position % grid, prompt_tokens - position)

    def num_chunks(self, prompt_tokens: int) -> int:
        """Return the chunks of a prompt."""
        return ceil(prompt_tokens / (self.replica.chunk_tokens or prompt_tokens))

    def chunk_seconds(self, num_tokens: int, position: int) -> tuple[float, ...]:
        """Return a chunk's time in each stage, with the links between where they count."""
        found = self._chunks.get((num_tokens, position))
        if found is None:
            times: list[float] = []
            for stage, (seconds, factor) in enumerate(self._prefill):
                if self._has_links and stage:
                    times.append(num_tokens * self._link_rows[stage])
                times.append(factor * seconds(num_tokens, position))
            found = self._chunks[num_tokens, position] = tuple(times)
        return found

    def count_chunk(self, chunk: tuple[float, ...], busy_seconds: list[float]) -> None:
        """Add a chunk's time in each stage to ``busy_seconds``."""
        for stage, seconds in enumerate(chunk[::2] if self._has_links else chunk):
            busy_seconds[stage] += seconds

    def pass_chunk(self, free: list[float], start: float, chunk: Sequence[float]) -> float:
        """Take a chunk through the pipeline; return when it leaves.

        Args:
            free: When each stage, and link, has done what it had; changed to what follows.
            start: When the chunk may enter.
            chunk: From `chunk_seconds`.
        """
        for index, (delay, seconds) in enumerate(zip(self.delays, chunk, strict=True)):
            start = max(start + delay, free[index]) + seconds
            free[index] = start
        return start

    def prompt_seconds(self, num_tokens: int) -> float:
        """Return the time of a prompt that is alone in the replica."""
        found = self._prompts.get(num_tokens)
        if found is None:
            free = [0.0] * len(self.delays)
            position, found = 0, 0.0
            while position < num_tokens:
                size = self.chunk_tokens(num_tokens, position)
                found = self.pass_chunk(free, 0.0, self.chunk_seconds(size, position))
                position += size
            self._prompts[num_tokens] = found
        return found

    def prefill_rate(self, num_tokens: int) -> float:
        """Return positions per second, the pipeline full of prompts of ``num_tokens``."""
        found = self._rates.get(num_tokens)
        if found is None:
            totals = [0.0] * len(self.delays)
            position = 0
            while position < num_tokens:
                size = self.chunk_tokens(num_tokens, position)
                for index, seconds in enumerate(self.chunk_seconds(size, position)):
                    totals[index] += seconds
                position += size
            found = self._rates[num_tokens] = num_tokens / max(*totals, 1e-12)
        return found

    # --- both -------------------------------------------------------------------------------

    def mixed_round(
        self, num_rows: int, context: float, chunk: tuple[float, ...]
    ) -> tuple[float, tuple[float, ...]]:
        """Return the time of a round while prompts are prefilled, and what that does to chunks.

        As our nodes have it (decision 0011): a stage without a waiting group works on chunks,
        a slice of layers after the other, and after each group on one slice in any case. So a
        group finds half a slice before it at each stage of its way, and a stage that serves
        all groups without a pause one slice between two. What a stage has left of a round goes
        into chunks, which take so many times as long there: the second value, for each of the
        stages and links that a chunk passes.

        Args:
            num_rows: Decoding requests.
            context: Their mean context.
            chunk: What a chunk takes by itself, from `chunk_seconds`.
        """
        groups, rows = self.groups(num_rows)
        times = self._stage_seconds(rows, context)
        group: list[float] = []
        for stage, seconds in enumerate(times):
            if self._has_links and stage:
                group.append(rows * self._link_rows[stage])
            group.append(seconds)
        slices = [
            min(whole, max(own, whole / most))
            for whole, own, most in zip(chunk, group, self._most_slices, strict=True)
        ]
        way = sum(group) + sum(slices) / 2 + sum(self._hops) + rows * self._link_rows[0]
        fullest = max(own + piece for own, piece in zip(group, slices, strict=True))
        seconds = max(self._round_seconds(groups, rows, times), way, groups * fullest)
        left = [max(seconds - groups * own, 1e-12) for own in group]
        return seconds, tuple(seconds / share for share in left)


def _is_context_free(function: DecodeSeconds) -> bool:
    return bool(getattr(function, "is_context_free", False))


@lru_cache(maxsize=4096)
def pace_of(replica: SimReplica, slowdowns: tuple[float, ...]) -> Pace:
    """Return the replica's pace, shared by all runs: it only remembers what it computed."""
    return Pace(replica, slowdowns)


@lru_cache(maxsize=4096)
def planned_pace(replica: SimReplica) -> Pace:
    """Return the pace that the planner, and so a router, believes in."""
    exact = replace(
        replica,
        stages=tuple(
            replace(stage, prefill_factor=1.0, decode_factor=1.0) for stage in replica.stages
        ),
    )
    return pace_of(exact, (1.0,) * len(replica.stages))


@lru_cache(maxsize=1024)
def _planned_stages(replica: SimReplica) -> tuple[Stage, ...]:
    """Return the stages as a plan names them: what the master of the replica knows."""
    most = min(replica.slots or _MOST_KNOT_ROWS, _MOST_KNOT_ROWS)
    return tuple(
        Stage(
            device=stage.device,
            layers=LayerRange(index, index + 1),
            embedding=index == 0,
            head=index == len(replica.stages) - 1,
            predicted_seconds=0.0,
            decode_seconds=_knots(stage, replica.planned_context, most),
            hop_seconds=stage.hop_seconds if len(replica.stages) > 1 else 0.0,
        )
        for index, stage in enumerate(replica.stages)
    )


def _knots(stage: SimStage, context: float, most: int) -> list[BatchSeconds]:
    points = [(rows, stage.decode_seconds(rows, context)) for rows in table_batches(most)]
    for rows, seconds in points:
        if not 0 <= seconds < inf:
            raise ValueError(f"stage on {stage.device}: {rows} rows take {seconds} seconds")
    return [BatchSeconds(rows, seconds) for rows, seconds in points]

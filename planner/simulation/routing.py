"""How requests find their replicas: which rules decide, and when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.queueing import WORTH_WAITING
from planner.simulation.rules import (
    Rule,
    decode_count,
    estimated_decode_wait,
    estimated_prefill_wait,
    pending_tokens,
    prompt_count,
    reserved_memory,
    reserved_seconds,
)


class Bind(StrEnum):
    """When a request is given its replicas."""

    ARRIVAL = "arrival"
    """Both when it arrives, so that KV can move while prefill runs."""
    AFTER_PREFILL = "after-prefill"
    """Prefill when it arrives, decode after that."""
    LATE = "late"
    """Both when both can grant: one first-come queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPool:
    """Splitwise's limits of its pools (reference simulator).

    Attributes:
        max_pending_tokens: Prompt positions at which a prompt machine is full.
        counts_slots: A token machine is full when its slots are taken, too, not only when its
            memory is: slots are what limits a batch where each request has a least speed.
    """

    max_pending_tokens: int = 8192
    counts_slots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How requests find their replicas.

    Attributes:
        prefill: Picks the prefill replica; unused by late binding.
        decode: Picks the decode replica; unused by late binding.
        ties_by_speed: Equals go to the faster replica, else to the first in the plan.
        counts_others: Late binding adds the time that the replicas' other requests lose.
        knows_speeds: Routers see true speeds, slow-downs included, as by measuring; else the
            planned ones.
        mixed_pool: Borrow from the other pool as Splitwise does; None: pools never change.
        worth_waiting: Late binding waits for a pair that cannot grant yet if all others take this
            many times as long; infinite: it takes what it can get.
    """

    prefill: Rule = estimated_prefill_wait
    decode: Rule = estimated_decode_wait
    bind: Bind = Bind.ARRIVAL
    ties_by_speed: bool = True
    counts_others: bool = False
    knows_speeds: bool = False
    mixed_pool: MixedPool | None = None
    worth_waiting: float = WORTH_WAITING

    def __post_init__(self) -> None:
        if self.mixed_pool is not None and self.bind is not Bind.ARRIVAL:
            raise ValueError("a mixed pool chooses both machines when a request arrives")


PAPER_JSQ: Final = Routing()
"""The paper: shortest estimated waiting time, both replicas at arrival."""
JSQ_COUNT: Final = Routing(prefill=prompt_count, decode=decode_count)
"""Fewest requests."""
SPLITWISE: Final = Routing(prefill=pending_tokens, decode=reserved_memory, ties_by_speed=False)
"""Splitwise's pools: fewest pending tokens, least reserved memory, blind to speed."""
SPLITWISE_SPEED: Final = Routing(prefill=estimated_prefill_wait, decode=reserved_seconds)
"""The same, divided by planned speeds."""
SPLITWISE_MIXED: Final = Routing(
    prefill=pending_tokens,
    decode=reserved_memory,
    ties_by_speed=False,
    mixed_pool=MixedPool(),
)
"""Splitwise's pools with its mixed pool."""
LEAST_ADDED: Final = Routing(bind=Bind.LATE, counts_others=True)
"""Ours, and the default of our gateways: one queue, bound when both can grant, to the pair in
which the request takes and costs others the least time."""
LEAST_FINISH: Final = Routing(bind=Bind.LATE)
"""The same by its own time alone."""

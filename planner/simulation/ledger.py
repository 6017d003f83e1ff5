"""What a replica has promised and what a router may know of it: counts and planned speeds."""

from __future__ import annotations

from math import inf
from typing import Final

from planner.simulation.attempts import Attempt
from planner.simulation.pace import Pace, planned_pace
from planner.simulation.scenario import SimReplica
from planner.simulation.states import has_room

# Rows for which the decode rate of a replica without slots is stated.
_FULL_ROWS: Final = 16


class Ledger:
    """Requests bound to a replica and the memory that they hold.

    Args:
        replica: What it is.
        mean_prompt_tokens: For which the planned prefill rate is stated.
        is_growing: Whether requests reserve what they have, not what they will need.
    """

    def __init__(self, replica: SimReplica, mean_prompt_tokens: int, is_growing: bool) -> None:
        self.replica = replica
        self.id = replica.id
        self.role = replica.role
        self.pool = replica.role
        self.slots: float = inf if replica.slots is None else replica.slots
        self.prefill_slots = replica.prefill_slots or len(replica.stages) + 1
        self.kv_tokens = replica.kv_tokens
        self.num_prompts = 0
        self.num_decodes = 0
        self.held_tokens = 0
        self.reserved_tokens = 0
        self._prompts_held = 0
        self._mean_prompt_tokens = mean_prompt_tokens
        self.believe(planned_pace(replica))
        self._is_growing = is_growing
        self._pending_tokens = 0

    def believe(self, pace: Pace) -> None:
        """Let routers count with these speeds."""
        self.planned = pace
        self.prefill_tokens_per_second = pace.prefill_rate(self._mean_prompt_tokens)
        full = int(min(self.slots, _FULL_ROWS))
        self.decode_tokens_per_second = full / max(pace.planned_seconds(full), 1e-12)

    @property
    def whole_tokens(self) -> int:
        """KV positions that what is bound here will need."""
        return self.reserved_tokens + self._prompts_held

    @property
    def is_unused(self) -> bool:
        """Whether nothing is bound here."""
        return self.num_prompts == 0 and self.num_decodes == 0

    def step_seconds(self, num_rows: int) -> float:
        """Return the planned time from one token of a request to its next."""
        rows = num_rows if num_rows < self.slots else int(self.slots)
        return self.planned.planned_seconds(max(rows, 1))

    def bind_prompt(self, attempt: Attempt) -> None:
        """Count a prompt that will be prefilled here."""
        attempt.prefill = self
        self.num_prompts += 1
        self._pending_tokens += attempt.prompt_tokens

    def bind_decode(self, attempt: Attempt) -> None:
        """Count a request that will decode here."""
        attempt.decode = self
        self.num_decodes += 1
        self.reserved_tokens += attempt.life.request.total_tokens

    def hold_prompt(self, attempt: Attempt) -> bool:
        """Take the memory of a prompt; where it also decodes, all that it reserves."""
        if attempt.decode is self:
            return self.hold_decode(attempt)
        if attempt.prefill_held == 0:
            if not has_room(self, attempt.prompt_tokens, is_growing=self._is_growing):
                return False
            attempt.prefill_held = attempt.prompt_tokens
            self.held_tokens += attempt.prompt_tokens
            self._prompts_held += attempt.prompt_tokens
        return True

    def hold_decode(self, attempt: Attempt) -> bool:
        """Take the memory that a request reserves where it decodes."""
        if attempt.decode_held == 0:
            if not has_room(self, attempt.reserved_tokens, is_growing=self._is_growing):
                return False
            attempt.decode_held = attempt.reserved_tokens
            self.held_tokens += attempt.reserved_tokens
        return True

    def forget_prompt(self, attempt: Attempt) -> None:
        """Free what a prompt has here."""
        self.num_prompts -= 1
        self._pending_tokens -= attempt.prompt_tokens - attempt.position
        self.held_tokens -= attempt.prefill_held
        self._prompts_held -= attempt.prefill_held
        attempt.prefill_held = 0
        attempt.prefill = None

    def forget_decode(self, attempt: Attempt) -> None:
        """Free what a request has where it decodes."""
        self.num_decodes -= 1
        self.reserved_tokens -= attempt.life.request.total_tokens
        self.held_tokens -= attempt.decode_held
        attempt.decode_held = 0
        attempt.decode = None

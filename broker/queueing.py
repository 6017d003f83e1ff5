"""How long until a decode slot is free, as any router expects it, and when to wait. Pure.

Shared by the gateway and the simulated routers, so that both make the same choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

WORTH_WAITING: Final = 2.0
"""A pair that cannot grant yet is waited for if all others take this many times as long.

Decision 0016.
"""


def slot_wait_tokens(
    slots: int, num_requests: int, generated: Sequence[int], expected_tokens: float
) -> float:
    """Return the decode steps until one more request has a slot; 0 while one is free.

    Every answer is taken to be of the expected length. With slots that become free after r_i
    steps and q requests ahead that take m steps each, the next one begins at the (q + 1)-th
    smallest of ``r_i + j m``. No r_i exceeds m, so that is ``r[q % slots] + (q // slots) m``.

    Args:
        slots: Requests that are decoded at once, at least 1.
        num_requests: Bound to decode there, or decoding.
        generated: Tokens that each decoding request has, most first; an unknown one has none.
        expected_tokens: Length of an answer.
    """
    # Waiting requests take the free slots first, and then those that become free.
    ahead = num_requests - slots
    if ahead < 0:
        return 0.0
    mean = max(expected_tokens, 1.0)
    lap, index = divmod(ahead, slots)
    left = max(mean - generated[index], 0.0) if index < len(generated) else mean
    return left + lap * mean

"""The feed-forward part of a block: one for all rows, or a mixture of experts.

A row's result never depends on the other rows (design, section 4): each row's choice of
experts is computed alone, and what its experts give is added in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch
import torch.nn.functional as F

from broker.architecture import Experts
from nodes.packed import Linear, Norm

_UNSHARED: Final = 32768  # elements that torch computes in one thread
_VECTOR: Final = 64  # a multiple of what torch's vector loops take at a time


class FeedForward(Protocol):
    """The second half of a block."""

    def __call__(self, x: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        """Return (n, hidden) of (n, hidden), normalised by ``norm`` on the way in."""

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""

    def products(self, x: torch.Tensor) -> list[tuple[Linear, torch.Tensor]]:
        """Return the matrix products of a call with ``x``, for measuring them alone.

        In a mixture as if each row had chosen its experts at random.
        """


class Mlp:
    """Gate, up and down projection.

    Args:
        gate_up: (2 * intermediate, hidden); rows of gate, then up.
        down: (hidden, intermediate).
    """

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self._gate_up, self._down = gate_up, down

    def __call__(self, x: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        gate, up = self._gate_up(x, norm).chunk(2, -1)
        return self._down(_silu(gate) * up)

    @property
    def num_bytes(self) -> int:
        return self._gate_up.num_bytes + self._down.num_bytes

    def products(self, x: torch.Tensor) -> list[tuple[Linear, torch.Tensor]]:
        gate, _ = self._gate_up(x).chunk(2, -1)
        return [(self._gate_up, x), (self._down, gate.contiguous())]


class Mixture:
    """Experts of which each row takes those that the router finds most likely.

    Rows that take the same expert go through it together.

    Args:
        router: (experts, hidden).
    """

    def __init__(self, config: Experts, router: torch.Tensor, experts: Sequence[Mlp]) -> None:
        self._config, self._router, self._experts = config, router, tuple(experts)

    def __call__(self, x: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
        x = norm(x) if norm else x
        shares, chosen = self._route(x)
        # Sorted by expert: a stretch of rows for each, and each row's sum in experts' order.
        order = chosen.flatten().argsort(stable=True)
        rows, shares = order // self._config.active, shares.flatten()[order, None]
        result = torch.zeros_like(x)
        start = 0
        for expert, count in enumerate(chosen.flatten().bincount().tolist()):
            if count:
                part = slice(start, start + count)
                mine = rows[part]
                result.index_add_(0, mine, self._experts[expert](x[mine]) * shares[part])
                start += count
        return result

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each row's shares and experts, (n, active) both.

        Row by row, and each in memory of its own: another order of adding changes the last
        bits, which may choose another expert.
        """
        logits = torch.cat([F.linear(row[None].clone(), self._router) for row in x])
        likely = logits.softmax(-1, dtype=torch.float32)
        shares, chosen = likely.topk(self._config.active)
        if self._config.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(x.dtype), chosen

    @property
    def num_bytes(self) -> int:
        return self._router.nbytes + sum(expert.num_bytes for expert in self._experts)

    def products(self, x: torch.Tensor) -> list[tuple[Linear, torch.Tensor]]:
        count, active = self._config.count, self._config.active
        touched = round(count * (1 - (1 - active / count) ** len(x)))
        share = x[: max(1, round(len(x) * active / touched))]
        return [product for mlp in self._experts[:touched] for product in mlp.products(share)]


def _silu(x: torch.Tensor) -> torch.Tensor:
    """Return silu of each row, in the same bits however many rows there are.

    torch shares long arrays out to threads in equal parts, and the end of a part that does
    not fill a vector is computed by another exponential. Parts below are never shared out.
    """
    rows, columns = x.shape
    if rows * columns <= _UNSHARED or columns % (_VECTOR * torch.get_num_threads()) == 0:
        return F.silu(x)
    return torch.cat([F.silu(part) for part in torch.split(x, max(1, _UNSHARED // columns))])

"""The feed-forward part of a block: one for all rows, or a mixture of experts.

A row's result never depends on the other rows (design, section 4): each row's choice of
experts is computed alone, and what its experts give is added in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import torch
import torch.nn.functional as F

from broker.architecture import Activation, Experts
from nodes.activations import Norm
from nodes.packed import Linear

_UNSHARED: Final = 32768  # elements that torch computes in one thread
_VECTOR: Final = 64  # a multiple of what torch's vector loops take at a time


class FeedForward(Protocol):
    """The second half of a block."""

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (n, hidden) of (n, hidden), normalised by ``norm`` on the way in.

        With ``residual`` (n, hidden), the sum with it.
        """

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

    def __init__(self, gate_up: Linear, down: Linear, activation: Activation) -> None:
        self._gate_up, self._down, self._activation = gate_up, down, activation

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        gate, up = self._gate_up(x, norm).chunk(2, -1)
        return self._down(activate(gate, up, self._activation), residual=residual)

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
        bias: (experts,), of the router; None: none.
    """

    def __init__(
        self,
        config: Experts,
        router: torch.Tensor,
        bias: torch.Tensor | None,
        experts: Sequence[Mlp],
    ) -> None:
        self._config, self._experts = config, tuple(experts)
        self._router, self._bias = router, bias

    def __call__(
        self, x: torch.Tensor, norm: Norm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
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
        return result if residual is None else result.add_(residual)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each row's shares and experts, (n, active) both.

        Row by row, and each in memory of its own: another order of adding changes the last
        bits, which may choose another expert.
        """
        logits = torch.cat([F.linear(row[None].clone(), self._router, self._bias) for row in x])
        likely = logits.softmax(-1, dtype=torch.float32)
        shares, chosen = likely.topk(self._config.active)
        if self._config.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(x.dtype), chosen

    @property
    def num_bytes(self) -> int:
        bias_bytes = 0 if self._bias is None else self._bias.nbytes
        experts_bytes = sum(expert.num_bytes for expert in self._experts)
        return self._router.nbytes + bias_bytes + experts_bytes

    def products(self, x: torch.Tensor) -> list[tuple[Linear, torch.Tensor]]:
        count, active = self._config.count, self._config.active
        touched = round(count * (1 - (1 - active / count) ** len(x)))
        share = x[: max(1, round(len(x) * active / touched))]
        return [product for mlp in self._experts[:touched] for product in mlp.products(share)]


def activate(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return what goes into the down projection; may change ``gate`` and ``up``."""
    function = _FUNCTIONS[activation.name]
    limit, slope = activation.limit, activation.slope
    if limit is None:
        return _by_row(function, gate).mul_(up)
    # In place, because rows that are apart in memory stay so (see `_by_row`).
    gate.clamp_(max=limit).mul_(slope)
    return _by_row(function, gate).div_(slope) * up.clamp_(-limit, limit).add_(1)


_FUNCTIONS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def _by_row(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the function of each row, in the same bits however many rows there are.

    torch shares long arrays out to threads in equal parts, and the end of a part that does
    not fill a vector is computed by another exponential. Parts below are never shared out.
    """
    rows, columns = x.shape
    if rows * columns <= _UNSHARED or columns % (_VECTOR * torch.get_num_threads()) == 0:
        return function(x)
    return torch.cat([function(part) for part in torch.split(x, max(1, _UNSHARED // columns))])

"""What a stage of so much work takes at least, on every kind of device. Pure.

Work is counted in whole units: a layer is one unit where all layers are alike, else a few,
in proportion to its time on the average device. A pipeline's stages share all units of the
model among them, whatever the weights are, so a bound may choose them freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost import DeviceCost, PhaseCost
from planner.model import ModelSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIDDLE: Final = 0
FIRST: Final = 1
LAST: Final = 2
PLACES: Final = (MIDDLE, FIRST, LAST)
"""Where a stage stands in a pipeline of two or more: it may hold the embedding or the head."""

# Units of an average layer when layers differ.
_UNITS_PER_LAYER: Final = 4


class StageTables(NamedTuple):
    """Of N kinds of devices and a model of Q units, in one phase.

    Attributes:
        seconds: [N, 3, Q], the least time of a stage of at least 1, 2, ... Q units; infinite
            where its layers and their KV cache fit in no memory.
        unit_seconds: [N], and
        base_seconds: [N, 3]: a stage of ``q`` units takes at least
            ``base_seconds + q * unit_seconds``.
        link_seconds: [N, 3, Q], the least time for which a request keeps the link of such a
            stage busy; None where links do not count.
    """

    seconds: Floats
    unit_seconds: Floats
    base_seconds: Floats
    link_seconds: Floats | None = None

    @property
    def num_units(self) -> int:
        """Units of the whole model."""
        return int(self.seconds.shape[2])

    def units_within(self, seconds: Floats) -> Ints:
        """Return [N, 3, K], the most units that a stage does in each of [K] times."""
        return _units_within(self.seconds, seconds)

    def linked_units_within(self, seconds: Floats) -> Ints | None:
        """Return the same of a request and the stage's link; None where links do not count."""
        return None if self.link_seconds is None else _units_within(self.link_seconds, seconds)


class Carried(NamedTuple):
    """What the link of a stage carries for one request beside the KV cache of its layers.

    Attributes:
        prompt_tokens: Positions of the KV cache.
        hidden_tokens: Positions of hidden states.
        end: The place without them: nothing leaves the last stage of prefill, or reaches
            the first stage of decode.
    """

    prompt_tokens: int
    hidden_tokens: int
    end: int


def _units_within(table: Floats, seconds: Floats) -> Ints:
    fits = table[:, :, :, None] <= seconds
    return np.asarray(fits.sum(axis=2), dtype=np.int64)


def stage_tables(
    costs: Sequence[DeviceCost],
    model: ModelSpec,
    rows: int | None,
    kv_tokens: int,
    carried: Carried | None = None,
) -> StageTables:
    """Return the tables of prefill (``rows`` None) or of a decode step of ``rows`` rows.

    Args:
        costs: One device of each kind.
        model: Two layers at least.
        rows: Rows of one group in flight.
        kv_tokens: KV positions for which every stage has room.
        carried: What links carry for a request; None where they do not count.
    """
    phases = [cost.prefill if rows is None else cost.decode[rows - 1] for cost in costs]
    layers = np.array([phase.layers for phase in phases])
    weights = _weights(layers)
    spans = _Spans(model, _are_alike(model, phases))
    until = np.concatenate([np.zeros((len(costs), 1)), np.cumsum(layers, axis=1)], axis=1)
    seconds = until[:, spans.ends] - until[:, spans.starts]
    seconds += _moving_seconds(costs, phases, model, spans, kv_tokens)
    embedding = np.array([[phase.embedding] for phase in phases])
    head = np.array([[phase.head] for phase in phases])
    seconds += np.where(spans.places == FIRST, embedding, 0.0)
    seconds += np.where(spans.places == LAST, head, 0.0)

    units_until = np.concatenate([[0], np.cumsum(weights)])
    num_units = int(units_until[-1])
    units = units_until[spans.ends] - units_until[spans.starts]
    least = _least(spans, units, seconds, num_units)
    slopes = until[:, -1] / num_units
    above = least - slopes[:, None, None] * np.arange(1, num_units + 1)
    base = above.min(axis=2)
    links = None
    if carried is not None:
        links = _least(spans, units, _carrying_seconds(costs, model, spans, carried), num_units)
    return StageTables(least, slopes, np.where(np.isfinite(base), base, 0.0), links)


class _Spans:
    """Every range of layers that one stage of several may hold: starts, ends and place."""

    def __init__(self, model: ModelSpec, alike: bool) -> None:
        num_layers = model.num_layers
        inner = range(1, 2 if alike else num_layers - 1)
        spans = [(MIDDLE, a, b) for a in inner for b in range(a + 1, num_layers)]
        spans += [(FIRST, 0, b) for b in range(1, num_layers)]
        spans += [(LAST, a, num_layers) for a in range(1, num_layers)]
        self.places, self.starts, self.ends = np.array(spans).T


def _least(spans: _Spans, units: Ints, seconds: Floats, num_units: int) -> Floats:
    """Return [N, 3, Q], the least of [N, R] over ranges of at least 1, 2, ... units."""
    least = np.full((len(seconds), len(PLACES), num_units), np.inf)
    for place, unit, column in zip(spans.places, units - 1, seconds.T, strict=True):
        least[:, place, unit] = np.minimum(least[:, place, unit], column)
    return np.minimum.accumulate(least[:, :, ::-1], axis=2)[:, :, ::-1]


def _carrying_seconds(
    costs: Sequence[DeviceCost], model: ModelSpec, spans: _Spans, carried: Carried
) -> Floats:
    """Return [N, R], how long a request keeps the link busy, as `planner.promises` has it."""
    until = np.array([0, *accumulate(model.sent_kv_bytes)])
    kv_bytes = carried.prompt_tokens * (until[spans.ends] - until[spans.starts])
    rates = np.array([[cost.bytes_per_second] for cost in costs])
    hidden = carried.hidden_tokens * np.array([[cost.row_seconds] for cost in costs])
    return np.asarray(kv_bytes / rates + np.where(spans.places == carried.end, 0.0, hidden))


def _weights(layers: Floats) -> Ints:
    """Return the units of each layer: its share of a device's time, on average."""
    shares = (layers / np.maximum(layers.mean(axis=1, keepdims=True), 1e-15)).mean(axis=0)
    units = np.maximum(np.rint(shares * _UNITS_PER_LAYER), 1).astype(np.int64)
    return np.asarray(units // np.gcd.reduce(units), dtype=np.int64)


def _are_alike(model: ModelSpec, phases: Sequence[PhaseCost]) -> bool:
    sizes = (model.block_bytes, model.kv_bytes, model.ffn_bytes)
    times = [row for phase in phases for row in (phase.layers, phase.offload_extra)]
    return all(len(set(row)) <= 1 for row in (*sizes, *times))


def _moving_seconds(
    costs: Sequence[DeviceCost],
    phases: Sequence[PhaseCost],
    model: ModelSpec,
    spans: _Spans,
    kv_tokens: int,
) -> Floats:
    """Return [N, R], what moving feed-forward parts to host memory costs each range.

    0 where everything fits, infinite where not even moving helps; the first layers move, and
    no more of them than must, as `planner.splits.split.Offload` says.
    """
    sizes = [w + kv_tokens * kv for w, kv in zip(model.block_bytes, model.kv_bytes, strict=True)]
    until = np.array([0, *accumulate(sizes)])
    needed = until[spans.ends] - until[spans.starts]
    needed += np.where(spans.places == FIRST, model.embedding_bytes, 0)
    needed += np.where(spans.places == LAST, model.head_bytes, 0)
    excess = needed - np.array([[cost.memory_bytes] for cost in costs])
    lost = np.where(excess > 0, np.inf, 0.0)
    if not model.ffn_bytes:
        return lost
    moved = np.array([0, *accumulate(model.ffn_bytes)])
    for kind, (cost, phase) in enumerate(zip(costs, phases, strict=True)):
        if not cost.host_memory_bytes:
            continue
        extra = np.array([0.0, *accumulate(phase.offload_extra)])
        until_layer = np.searchsorted(moved, moved[spans.starts] + excess[kind])
        enough = until_layer <= spans.ends
        until_layer = np.minimum(until_layer, spans.ends)
        fits = moved[until_layer] - moved[spans.starts] <= cost.host_memory_bytes
        helps = (excess[kind] > 0) & enough & fits
        lost[kind, helps] = (extra[until_layer] - extra[spans.starts])[helps]
    return lost

"""Integer kernels of this build of torch: which are exact here, and which is fastest.

Weights and activations in int8 are whole numbers, so a kernel that adds them without loss
gives the same bits for any number of rows, any order of adding and any other exact kernel.
Only kernels that show that on this device are used. Beyond 2**24 a float32 cannot hold every
sum; there kernels may round differently, by a few units in 2**24.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import torch

from broker.control import Control
from nodes.hardware import describe_hardware
from nodes.profiles import MeasurementCache, short_hash

logger = logging.getLogger(__name__)

# torch announces that quantised tensors will go; `quantized::linear_prepack` takes no other
# argument, and the versions that we allow all have them.
warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)


class PackedInt8(NamedTuple):
    """Weights that are ready for one kernel.

    Attributes:
        sums: Whole numbers (n, columns + padding), as float32 and finite, to their sums of
            products (n, rows), float32.
        ends: (padding,) what the kernel wants to the right of every row.
    """

    sums: Callable[[torch.Tensor], torch.Tensor]
    ends: torch.Tensor


_NO_ENDS: Final = torch.empty(0)

_PADDED_TO: Final = 8
_OFFSET: Final = 128
_CHUNK_ROWS: Final = 128
_PROBE: Final = (1536, 512)  # rows and columns: small, but more than one tile of any kernel
_TIMED_ROWS: Final = (1, 8, _CHUNK_ROWS)
_TIMED_REPETITIONS: Final = 5
_prepack_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Int8Kernel:
    """A way to multiply whole numbers by int8 weights.

    Attributes:
        levels: Activations are whole numbers in ``[-levels, levels]``.
        pack: Makes weights, int8 (rows, columns), ready.
    """

    name: str
    levels: int
    pack: Callable[[torch.Tensor], PackedInt8]


class KernelTimes(Control, frozen=True, kw_only=True):
    """Seconds that each kernel took for the same work; also the cache file."""

    seconds: dict[str, float]


def _pack_plain(values: torch.Tensor) -> PackedInt8:
    transposed = values.t()

    def sums(x: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(x.to(torch.int8), transposed).float()

    return PackedInt8(sums, _NO_ENDS)


def _pack_onednn(values: torch.Tensor) -> PackedInt8:
    # The hint is a chunk's: packed for one row, longer ones are slower and one row no faster.
    packed = torch.ops.onednn.qlinear_prepack(values, [_CHUNK_ROWS, values.shape[1]])
    multiply = torch.ops.onednn.qlinear_pointwise
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.long)

    def sums(x: torch.Tensor) -> torch.Tensor:
        # Signed activations need another packing on processors without AMX.
        unsigned = (x + _OFFSET).to(torch.uint8)
        result: torch.Tensor = multiply(
            unsigned, 1.0, _OFFSET, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result

    return PackedInt8(sums, _NO_ENDS)


def _pack_fbgemm(levels: int, values: torch.Tensor) -> PackedInt8:
    """Pack for `quantized::linear_dynamic`, which quantises all rows with one scale.

    Two columns with zero weights hold the ends of the range in every row, so that the scale
    is always 1 and whole numbers stay what they are, whoever the neighbours.
    """
    rows, columns = values.shape
    padding = 2 + -(columns + 2) % _PADDED_TO
    padded = torch.cat((values, values.new_zeros((rows, padding))), 1)
    ends = torch.zeros(padding)
    ends[0], ends[1] = -levels - 1, levels
    with _prepack_lock:  # the engine is a setting of the process
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            quantised = torch._make_per_channel_quantized_tensor(
                padded, torch.ones(rows, dtype=torch.double), torch.zeros(rows, dtype=torch.long), 0
            )
            packed = torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before
    multiply, is_reduced = torch.ops.quantized.linear_dynamic, levels < _FULL

    def sums(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = multiply(x, packed, is_reduced)
        return result

    return PackedInt8(sums, ends)


def _pack_exact(values: torch.Tensor) -> PackedInt8:
    return PackedInt8(lambda x: (x.double() @ values.t().double()).float(), _NO_ENDS)


_FULL: Final = 127
# Processors without VNNI add pairs of products in 16 bits; these stay below.
_REDUCED: Final = 63


def candidates(levels: int) -> list[Int8Kernel]:
    """Return the kernels that this build of torch may have.

    Those that keep a second copy of the weights are not among them: `linear_dynamic` with
    the engines onednn and qnnpack.
    """
    return [
        Int8Kernel(f"fbgemm-{levels}", levels, partial(_pack_fbgemm, levels)),
        Int8Kernel(f"onednn-{levels}", levels, _pack_onednn),
        Int8Kernel(f"int_mm-{levels}", levels, _pack_plain),
    ]


EXACT: Final = Int8Kernel("float64", _FULL, _pack_exact)
"""Exact by construction, and many times slower: what is left when nothing else is exact."""


@cache
def exact_kernels() -> tuple[Int8Kernel, ...]:
    """Return the kernels that are exact on this device, all with the same levels; never none."""
    for levels in (_FULL, _REDUCED):
        found = tuple(kernel for kernel in candidates(levels) if is_exact(kernel))
        if found:
            return found
    logger.warning("no int8 kernel of torch is exact here; int8 will be slow on this device")
    return (EXACT,)


def is_exact(kernel: Int8Kernel) -> bool:
    """Whether a kernel gives the exact sums, for one row and for many; says why not in the log."""
    rows, columns = _PROBE
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, _PROBE, generator=generator).to(torch.int8)
    values[: rows // 4] = 127  # the largest sums, where 16 bits overflow
    top = kernel.levels
    x = torch.randint(-top, top + 1, (40, columns), generator=generator).float()
    x[0], x[1] = top, -top
    expected = (x.double() @ values.double().t()).float()
    try:
        sums, ends = kernel.pack(values)
        x = torch.cat((x, ends.expand(len(x), -1)), 1)
        is_equal = all(torch.equal(sums(x[:n]), expected[:n]) for n in (1, 2, 5, 8, len(x)))
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        logger.info("int8 kernel %s is left out: %s", kernel.name, str(error).splitlines()[0])
        return False
    if not is_equal:
        logger.info("int8 kernel %s is left out: its sums are not exact here", kernel.name)
    return is_equal


def choose_int8_kernel(cache_folder: Path | None, threads: int) -> Int8Kernel:
    """Return the fastest exact kernel, by a measurement that the host's nodes share.

    Which one it is changes no result, so a measurement that was disturbed costs speed alone.
    """
    kernels = {kernel.name: kernel for kernel in exact_kernels()}
    if len(kernels) == 1:
        return exact_kernels()[0]
    measure = partial(time_kernels, tuple(kernels.values()))
    if cache_folder is None:
        times = measure()
    else:
        key = short_hash("int8", describe_hardware(), torch.__version__, threads, sorted(kernels))
        times = MeasurementCache(cache_folder, KernelTimes).get_or_measure(key, measure)
    known = {name: seconds for name, seconds in times.seconds.items() if name in kernels}
    return kernels[min(known, key=known.__getitem__)] if known else exact_kernels()[0]


def time_kernels(kernels: Sequence[Int8Kernel]) -> KernelTimes:
    """Time each kernel: one row, eight rows, and a sixteenth of a chunk of 128."""
    rows, columns = 4 * _PROBE[0], 2 * _PROBE[1]
    values = torch.ones((rows, columns), dtype=torch.int8)
    seconds = {}
    for kernel in kernels:
        sums, ends = kernel.pack(values)
        row = torch.cat((torch.ones(columns), ends))
        per_rows = {n: _median_seconds(sums, row.repeat(n, 1)) for n in _TIMED_ROWS}
        seconds[kernel.name] = per_rows[1] + per_rows[8] + per_rows[_CHUNK_ROWS] / 16
    logger.info(
        "int8 kernels: %s",
        ", ".join(f"{name} {1e6 * value:.0f} us" for name, value in seconds.items()),
    )
    return KernelTimes(seconds=seconds)


def _median_seconds(sums: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    def once() -> float:
        start = time.perf_counter()
        sums(x)
        return time.perf_counter() - start

    once()  # warms up
    return statistics.median(once() for _ in range(_TIMED_REPETITIONS))

"""Integer kernels of this build of torch: which are exact here, and which is fastest.

Weights and activations are whole numbers, so a kernel that adds their products without loss
gives the same bits for any number of rows, any order of adding and any other exact kernel.
Only kernels that show that on this device are used.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import torch

from broker.architecture import is_integer
from broker.control import Control
from nodes.hardware import describe_hardware
from nodes.profiles import MeasurementCache, short_hash

logger = logging.getLogger(__name__)

# `quantized::linear_prepack` takes no other kind of tensor, and the versions of torch that we
# allow all have it.
warnings.filterwarnings(
    "ignore",
    message=r"torch\.quantize_per_tensor, .* quantized tensor creation functions .*deprecated",
    category=UserWarning,
)

Product = Callable[[torch.Tensor], torch.Tensor]
"""Codes uint8 (n, columns), contiguous, to their sums with packed weights, times the steps of
the weights' rows: float32 (n, rows)."""

_CHUNK_ROWS: Final = 128
_PROBE: Final = (1536, 512)  # rows and columns: small, but more than one tile of any kernel
_TIMED_BYTES: Final = 48 << 20  # more than the caches of small computers hold
_TIMED_ROUNDS: Final = 8
_TIMED_ROWS: Final = (1, 8, _CHUNK_ROWS)  # a token of an answer, alone and among eight; a prompt
_prepack_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Int8Kernel:
    """A way to multiply whole numbers by int8 weights.

    Attributes:
        bits: Codes are whole numbers from 0 to ``2**bits - 1``.
        pack: Makes weights, int8 (rows, columns), with a step for each row, ready.
    """

    name: str
    bits: int
    pack: Callable[[torch.Tensor, torch.Tensor], Product]


class KernelTimes(Control, frozen=True, kw_only=True):
    """Seconds of a product by each kernel, for 1, 8 and 128 rows; also the cache file."""

    seconds: dict[str, list[float]]

    def fastest(self, names: Iterable[str]) -> str | None:
        """Return the kernel that is least behind the best ones, taken over all numbers of rows.

        Not the smallest sum: one row takes as long as reading the weights does, by any kernel,
        and what the measurement is off by there would outweigh a prompt in half the time.
        """
        known = {name: self.seconds[name] for name in names if name in self.seconds}
        best = [min(times) for times in zip(*known.values(), strict=True)]
        behind = {
            name: sum(time / least for time, least in zip(times, best, strict=True))
            for name, times in known.items()
        }
        return min(behind, key=behind.__getitem__, default=None)


def _pack_plain(values: torch.Tensor, steps: torch.Tensor) -> Product:
    transposed = values.t()
    # The kernel takes signed codes only; what they lack is the same for every row.
    missing = values.sum(1, dtype=torch.int32).mul_(_SIGN)

    def product(codes: torch.Tensor) -> torch.Tensor:
        sums = torch._int_mm((codes ^ _SIGN).view(torch.int8), transposed)
        return sums.add_(missing).float().mul_(steps)

    return product


def _pack_onednn(values: torch.Tensor, steps: torch.Tensor) -> Product:
    # The hint is a chunk's: packed for one row, longer ones are slower and one row no faster.
    packed = torch.ops.onednn.qlinear_prepack(values, [_CHUNK_ROWS, values.shape[1]])
    multiply = torch.ops.onednn.qlinear_pointwise
    zero = torch.zeros(1, dtype=torch.long)

    def product(codes: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = multiply(
            codes, 1.0, 0, packed, steps, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result

    return product


def _pack_fbgemm(values: torch.Tensor, steps: torch.Tensor) -> Product:
    """Pack for the kernel of `quantized::linear`, whose activations have a scale: here 1."""
    with _prepack_lock:  # the engine is a setting of the process
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            quantised = torch._make_per_channel_quantized_tensor(
                values, steps.double(), torch.zeros(len(values), dtype=torch.long), 0
            )
            packed = torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def product(codes: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = multiply(codes.float(), 1.0, 0, packed)
        return result

    return product


def _pack_exact(values: torch.Tensor, steps: torch.Tensor) -> Product:
    return lambda codes: (codes.double() @ values.t().double()).float().mul_(steps)


_SIGN: Final = 128
FULL_BITS: Final = 8
# Processors without VNNI add pairs of products in 16 bits; these stay below.
_REDUCED_BITS: Final = 7


def candidates(bits: int) -> list[Int8Kernel]:
    """Return the packed kernels that this build of torch may have.

    Those that keep a second copy of the weights are not among them: `linear_dynamic` with
    the engines onednn and qnnpack.
    """
    return [
        Int8Kernel(f"onednn-{bits}", bits, _pack_onednn),
        Int8Kernel(f"fbgemm-{bits}", bits, _pack_fbgemm),
    ]


PLAIN: Final = Int8Kernel("int_mm", FULL_BITS, _pack_plain)
"""Takes weights as they are; on some processors a plain loop. Used where no other is exact."""


EXACT: Final = Int8Kernel("float64", FULL_BITS, _pack_exact)
"""Exact by construction, and many times slower: what is left when nothing else is exact."""


@cache
def exact_kernels() -> tuple[Int8Kernel, ...]:
    """Return the kernels that are exact on this device, all with the same bits; never none."""
    for group in (candidates(FULL_BITS), candidates(_REDUCED_BITS), [PLAIN]):
        if found := tuple(filter(is_exact, group)):
            return found
    logger.warning("no int8 kernel of torch is exact here; int8 will be slow on this device")
    return (EXACT,)


def describe_arithmetic(weights: str) -> str:
    """Return what decides the bits of results in a weight format on this device, in words.

    Sums of whole numbers are equal wherever their codes are equally wide; what lies between
    the products (norms, attention, activations) is rounded as processor and torch do it.
    """
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    width = f", codes of {exact_kernels()[0].bits} bits" if is_integer(weights) else ""
    return f"{processor}, torch {torch.__version__}{width}"


def is_exact(kernel: Int8Kernel) -> bool:
    """Whether a kernel gives the exact sums, for one row and for many; says why not in the log."""
    rows, columns = _PROBE
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, _PROBE, generator=generator).to(torch.int8)
    values[: rows // 4] = 127  # the largest sums, where 16 bits overflow
    steps = torch.rand(rows, generator=generator)
    top = 2**kernel.bits - 1
    codes = torch.randint(0, top + 1, (40, columns), generator=generator).to(torch.uint8)
    codes[0], codes[1] = top, 0
    expected = EXACT.pack(values, steps)(codes)
    try:
        product = kernel.pack(values, steps)
        is_equal = all(
            torch.equal(product(codes[:n]), expected[:n]) for n in (1, 2, 5, 8, len(codes))
        )
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
        key = short_hash(
            "code rows", describe_hardware(), torch.__version__, threads, sorted(kernels)
        )
        times = MeasurementCache(cache_folder, KernelTimes).get_or_measure(key, measure)
    name = times.fastest(kernels)
    return kernels[name] if name is not None else exact_kernels()[0]


def time_kernels(kernels: Sequence[Int8Kernel], total_bytes: int = _TIMED_BYTES) -> KernelTimes:
    """Time each kernel on matrices that come from memory, not from a cache."""
    rows, columns = 4 * _PROBE[0], 2 * _PROBE[1]
    values = torch.ones((rows, columns), dtype=torch.int8)
    copies = range(-(-total_bytes // values.nbytes))
    packed = {
        kernel.name: [kernel.pack(values.clone(), torch.ones(rows)) for _ in copies]
        for kernel in kernels
    }
    seconds: dict[str, list[float]] = {name: [] for name in packed}
    for num_rows in _TIMED_ROWS:
        codes = torch.ones((num_rows, columns), dtype=torch.uint8)
        # In turn, and the best of each: what disturbs the machine only ever adds.
        rounds = [
            {name: _seconds(products, codes) for name, products in packed.items()}
            for _ in range(_TIMED_ROUNDS)
        ]
        for name, times in seconds.items():
            times.append(min(one[name] for one in rounds))
    logger.info(
        "int8 kernels, microseconds for %s rows: %s",
        ", ".join(map(str, _TIMED_ROWS)),
        "; ".join(f"{name} {_microseconds(times)}" for name, times in seconds.items()),
    )
    return KernelTimes(seconds=seconds)


def _microseconds(times: Sequence[float]) -> str:
    return ", ".join(f"{1e6 * time:.0f}" for time in times)


def _seconds(products: Sequence[Product], codes: torch.Tensor) -> float:
    """Return the seconds of one product, from a round through all of them."""
    start = time.perf_counter()
    for product in products:
        product(codes)
    return (time.perf_counter() - start) / len(products)

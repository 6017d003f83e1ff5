"""Whole-number weights: what they compute, in any company, and what a broken kernel leads to."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from broker.architecture import UnsupportedModelError, parse_config, stage_bytes
from nodes import float_kernels, kernels, packed
from nodes.activations import Norm, encode
from nodes.float_kernels import can_pack
from nodes.kernels import (
    EXACT,
    PLAIN,
    Int8Kernel,
    KernelTimes,
    Product,
    candidates,
    choose_int8_kernel,
    describe_arithmetic,
    exact_kernels,
    is_exact,
)
from nodes.packed import (
    FloatLinear,
    Int4Linear,
    Int8Linear,
    PackedFloatLinear,
    StackedLinear,
    check_int4,
)
from nodes.packing import Packing
from nodes.quantisation import SLICE_ROWS, quantise_int4, quantise_int8
from nodes.weights import LayerWeights
from tests.support.allocations import peak_bytes
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.stages import MemoryTensors, fill_weights

ROWS, COLUMNS = 70, 256

NORM = Norm(torch.linspace(0.1, 2, COLUMNS), 1e-6)

Quantise = Callable[[Iterable[torch.Tensor], int], tuple[torch.Tensor, torch.Tensor]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def int8(matrix: torch.Tensor, kernel: Int8Kernel = EXACT) -> Int8Linear:
    return Int8Linear(kernel, *quantise_int8([matrix], len(matrix)))


def int4(matrix: torch.Tensor) -> Int4Linear:
    return Int4Linear(*quantise_int4([matrix], len(matrix)), len(matrix))


@pytest.fixture
def no_memory_of_kernels() -> Iterator[None]:
    """Nothing tried before counts, and nothing tried here counts afterwards."""
    for tried in (exact_kernels, check_int4):
        tried.cache_clear()
    yield
    for tried in (exact_kernels, check_int4):
        tried.cache_clear()


# --- what is computed -----------------------------------------------------------------------


@pytest.mark.parametrize(("make", "error"), [(int8, 0.01), (int4, 0.12)])
def test_a_product_is_near_that_of_the_unrounded_matrix(
    make: Callable[[torch.Tensor], Int8Linear | Int4Linear], error: float
) -> None:
    matrix, x = random(ROWS, COLUMNS), random(5, COLUMNS, seed=1)
    expected = x @ matrix.t()
    assert (make(matrix)(x) - expected).norm() < error * expected.norm()


def test_every_exact_kernel_gives_the_same_bits() -> None:
    matrix, x = random(ROWS, COLUMNS), random(9, COLUMNS, seed=1)
    expected = int8(matrix, EXACT)(x)
    for kernel in (*exact_kernels(), PLAIN):
        if kernel.bits == EXACT.bits:
            assert torch.equal(int8(matrix, kernel)(x), expected), kernel.name


def test_seven_bits_are_exact_too_where_eight_would_overflow() -> None:
    matrix, x = random(ROWS, COLUMNS), random(9, COLUMNS, seed=1)
    expected = int8(matrix, replace(EXACT, bits=7))(x)
    exact = list(filter(is_exact, candidates(7)))
    assert exact
    for kernel in exact:
        assert torch.equal(int8(matrix, kernel)(x), expected), kernel.name


@pytest.mark.parametrize("norm", [None, NORM], ids=["plain", "normalised"])
@pytest.mark.parametrize("make", [int8, int4])
def test_a_row_is_the_same_alone_and_among_very_different_ones(
    make: Callable[[torch.Tensor], Int8Linear | Int4Linear], norm: Norm | None
) -> None:
    linear = make(random(ROWS, COLUMNS))
    x = random(16, COLUMNS, seed=1) * torch.logspace(-4, 4, 16)[:, None]
    x[3] = 0
    together = linear(x, norm)
    for row in range(16):
        assert torch.equal(linear(x[row : row + 1], norm)[0], together[row])
    assert together[3].abs().max() == 0


@pytest.mark.parametrize("columns", [COLUMNS, 250])
@pytest.mark.parametrize("bits", [7, 8])
def test_codes_are_the_row_to_half_a_step(bits: int, columns: int) -> None:
    x = random(6, columns) * torch.logspace(-3, 3, 6)[:, None] + 1
    codes = encode(x, bits)
    assert all(map(torch.equal, encode(x[:1], bits), (part[:1] for part in codes)))
    error = (codes.step * codes.whole + codes.offset - x).abs()
    assert int(codes.whole.max()) == 2**bits - 1
    assert (error <= 0.501 * codes.step + 1e-6 * x.abs()).all()


@pytest.mark.parametrize("make", [int8, int4])
def test_normalising_on_the_way_is_normalising_before(
    make: Callable[[torch.Tensor], Int8Linear | Int4Linear],
) -> None:
    linear, x = make(random(ROWS, COLUMNS)), 30 * random(5, COLUMNS, seed=1)
    expected = linear(NORM(x))
    assert (linear(x, NORM) - expected).norm() < 2e-3 * expected.norm()


def test_a_row_that_is_no_number_stays_alone_with_it() -> None:
    for kernel, norm in itertools.product(exact_kernels(), (None, NORM)):
        linear = int8(random(ROWS, COLUMNS), kernel)
        x = random(4, COLUMNS, seed=1)
        expected = linear(x, norm)
        x[1, 3], x[2, 7] = torch.nan, torch.inf
        result = linear(x, norm)
        assert torch.equal(result[[0, 3]], expected[[0, 3]]), kernel.name
        assert not result[1:3].isfinite().any()


def test_a_bias_is_added_unrounded() -> None:
    matrix, bias, x = random(ROWS, COLUMNS), random(ROWS, seed=2), random(3, COLUMNS, seed=1)
    for make, plain in (
        (Int8Linear(EXACT, *quantise_int8([matrix], ROWS), bias), int8(matrix)),
        (Int4Linear(*quantise_int4([matrix], ROWS), ROWS, bias), int4(matrix)),
    ):
        torch.testing.assert_close(make(x), plain(x) + bias, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("bias", [None, random(ROWS, seed=2)], ids=["plain", "biased"])
def test_a_residual_is_added_and_kept_and_rows_stay_apart(bias: torch.Tensor | None) -> None:
    matrix, residual, x = random(ROWS, COLUMNS), random(9, ROWS, seed=3), random(9, COLUMNS, seed=1)
    given = residual.clone()
    eight, four = quantise_int8([matrix], ROWS), quantise_int4([matrix], ROWS)
    for linear in (
        FloatLinear(matrix, bias),
        Int8Linear(EXACT, *eight, bias),
        StackedLinear([Int8Linear(EXACT, *eight, bias)]),
        Int4Linear(*four, ROWS, bias),
    ):
        together = linear(x, NORM, residual)
        expected = linear(x, NORM) + residual
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-5)
        assert torch.equal(residual, given)
        alone = linear(x[4:5], NORM, residual[4:5])[0]
        assert torch.equal(alone, together[4]) or isinstance(linear, FloatLinear)


def test_parts_below_each_other_are_one_matrix() -> None:
    matrix, bias, x = random(ROWS, COLUMNS), random(ROWS, seed=2), random(9, COLUMNS, seed=1)
    values, steps = quantise_int8([matrix], ROWS)
    cuts = (slice(0, 30), slice(30, ROWS))
    stacked = StackedLinear([Int8Linear(EXACT, values[c], steps[c], bias[c]) for c in cuts])
    expected = Int8Linear(EXACT, values, steps, bias)(x)
    torch.testing.assert_close(stacked(x), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(stacked(x[2:3])[0], stacked(x)[2])


@pytest.mark.parametrize("quantise", [quantise_int8, quantise_int4])
def test_tensors_below_each_other_are_one_matrix(quantise: Quantise) -> None:
    matrix = random(ROWS, COLUMNS)
    whole, parts = quantise([matrix], ROWS), quantise([matrix[:20], matrix[20:]], ROWS)
    assert all(map(torch.equal, whole, parts))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.skipif(not can_pack(torch.float32), reason="this torch packs no float matrices")
def test_a_packed_float_matrix_is_the_matrix(dtype: torch.dtype, error: float) -> None:
    matrix, bias, x = (
        random(*shape).to(dtype) for shape in ((ROWS, COLUMNS), (ROWS,), (9, COLUMNS))
    )
    linear = PackedFloatLinear(matrix, bias)
    expected = FloatLinear(matrix.double(), bias.double())(x.double())
    for n in (1, 9):
        assert (linear(x[:n]) - expected[:n]).norm() < error * expected.norm()
    assert linear.num_bytes == matrix.nbytes + bias.nbytes


def test_a_build_of_torch_that_packs_no_floats_holds_them_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raising(matrix: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no such operator")

    can_pack.cache_clear()
    monkeypatch.setattr(float_kernels, "pack", raising)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with caplog.at_level("INFO"):
        linear = Packing("float32", torch.device("cpu"), None).linear([random(8, 4)], (8, 4))
    can_pack.cache_clear()
    assert isinstance(linear, FloatLinear)
    assert "left out: no such operator" in caplog.text


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "llama3", "qwen3_moe"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_take_the_bytes_that_the_planner_counts(family: str, weights: str) -> None:
    raw = {**FAMILIES[family], "hidden_size": 128, "intermediate_size": 256, "head_dim": 16}
    raw["moe_intermediate_size"] = 128
    config = parse_config(raw)
    source = MemoryTensors(random_tensors(raw))
    held = fill_weights(LayerWeights(config, source, weights)).num_bytes
    counted = stage_bytes(config, weights, range(config.num_layers), embedding=True, head=True)
    # Four-bit rows are held in whole sixteens; o_proj has columns for eight bits only.
    assert held == pytest.approx(counted, rel=0 if weights == "int8" else 0.02)


def test_int8_is_a_quarter_of_float32_and_int4_about_half_of_that() -> None:
    config = parse_config({**FAMILIES["llama"], "hidden_size": 1024, "intermediate_size": 2816})
    full, eight, four = (
        stage_bytes(config, weights, range(5), embedding=False, head=False)
        for weights in ("float32", "int8", "int4")
    )
    assert 0.25 < eight / full < 0.26
    assert 0.13 < four / full < 0.16


@pytest.mark.parametrize("quantise", [quantise_int8, quantise_int4])
def test_rounding_takes_one_tensor_and_some_rows_beside_the_result(quantise: Quantise) -> None:
    rows, columns, num_tensors = 1024, 512, 3

    def tensors() -> Iterator[torch.Tensor]:
        for _ in range(num_tensors):
            yield torch.ones((rows, columns), dtype=torch.bfloat16)

    result: list[torch.Tensor] = []
    peak = peak_bytes(lambda: result.extend(quantise(tensors(), num_tensors * rows)))
    held = sum(tensor.nbytes for tensor in result)
    slices = 8 * SLICE_ROWS * columns * 4
    assert held < peak <= held + rows * columns * 2 + slices


# --- kernels --------------------------------------------------------------------------------


def broken(values: torch.Tensor, steps: torch.Tensor) -> Product:
    product = EXACT.pack(values, steps)
    return lambda codes: product(codes).clamp(max=32767)


def missing(values: torch.Tensor, steps: torch.Tensor) -> Product:
    raise RuntimeError("no such operator\nand a long trace")


@pytest.mark.usefixtures("no_memory_of_kernels")
@pytest.mark.parametrize(
    ("pack", "reason"), [(broken, "its sums are not exact"), (missing, "no such operator")]
)
def test_a_kernel_that_is_absent_or_wrong_is_left_out_with_a_log_line(
    pack: Callable[[torch.Tensor, torch.Tensor], Product],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = Int8Kernel("bad", 8, pack)
    good = Int8Kernel("good", 8, EXACT.pack)
    monkeypatch.setattr(kernels, "candidates", lambda bits: [bad, good])
    with caplog.at_level("INFO"):
        assert exact_kernels() == (good,)
    assert f"int8 kernel bad is left out: {reason}" in caplog.text
    assert "trace" not in caplog.text


@pytest.mark.usefixtures("no_memory_of_kernels")
def test_without_any_exact_kernel_int8_is_slow_and_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "candidates", lambda bits: [Int8Kernel("bad", bits, broken)])
    monkeypatch.setattr(kernels, "PLAIN", Int8Kernel("bad too", 8, missing))
    assert exact_kernels() == (EXACT,)
    assert "int8 will be slow on this device" in caplog.text


def test_the_fastest_kernel_is_chosen_once_for_all_nodes_of_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (Int8Kernel("slow", 8, EXACT.pack), Int8Kernel("fast", 8, EXACT.pack))
    measured = []

    def times(of: tuple[Int8Kernel, ...]) -> KernelTimes:
        measured.append(of)
        return KernelTimes(seconds={"slow": [2.0, 2.0], "fast": [1.0, 1.0]})

    monkeypatch.setattr(kernels, "exact_kernels", lambda: two)
    monkeypatch.setattr(kernels, "time_kernels", times)
    assert [choose_int8_kernel(tmp_path, 1).name for _ in range(2)] == ["fast", "fast"]
    assert len(measured) == 1


def test_every_kernel_is_timed() -> None:
    times = kernels.time_kernels(exact_kernels(), total_bytes=1)
    assert set(times.seconds) == {kernel.name for kernel in exact_kernels()}
    assert all(min(seconds) > 0 for seconds in times.seconds.values())


def test_a_prompt_in_half_the_time_outweighs_a_row_that_was_a_little_slower() -> None:
    times = KernelTimes(seconds={"even": [5.0e-4, 6e-4, 2e-3], "rows": [4.0e-4, 7e-4, 5e-3]})
    assert times.fastest(["even", "rows"]) == "even"
    assert times.fastest(["rows"]) == "rows"
    assert times.fastest(["unknown"]) is None


def test_a_device_says_how_wide_its_codes_are_where_it_uses_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for bits in (8, 7):
        monkeypatch.setattr(kernels, "exact_kernels", lambda bits=bits: tuple(candidates(bits)))
        found.append([describe_arithmetic(weights) for weights in ("int8", "int4", "float32")])
    assert found[0][0].endswith(f"torch {torch.__version__}, codes of 8 bits")
    assert [a == b for a, b in zip(*found, strict=True)] == [False, False, True]


@pytest.mark.usefixtures("no_memory_of_kernels")
def test_without_its_kernel_int4_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(*arguments: object) -> None:
        raise NotImplementedError("no kernel for this processor")

    monkeypatch.setattr(packed, "Int4Linear", raising)
    with pytest.raises(UnsupportedModelError, match=r"no kernel.*use int8 weights"):
        LayerWeights(parse_config(FAMILIES["llama"]), MemoryTensors({}), "int4")


@pytest.mark.usefixtures("no_memory_of_kernels")
def test_an_int4_kernel_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Int4Linear):
        def __call__(
            self,
            x: torch.Tensor,
            norm: Norm | None = None,
            residual: torch.Tensor | None = None,
        ) -> torch.Tensor:
            return super().__call__(x, norm, residual) * x.abs().max()

    monkeypatch.setattr(packed, "Int4Linear", Wrong)
    with pytest.raises(UnsupportedModelError, match=r"is wrong here; use int8"):
        check_int4()

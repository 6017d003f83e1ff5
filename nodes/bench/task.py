"""What one process of the benchmark is asked, and what it answers: JSON lines. No torch."""

from __future__ import annotations

from msgspec import field

from broker.control import Control


class BenchTask(Control, frozen=True, kw_only=True):
    """Times of one weight format of one checkpoint.

    Attributes:
        folder: The checkpoint.
        prompt_tokens: Length of the prompt that is taken in.
        batches: Rows of the decode steps.
        context_tokens: Positions that every row of a decode step has.
        seconds: After this a measurement ends, with three rounds at least.
        with_transformers: Whether transformers is measured beside ours.
        trained_folder: A checkpoint with trained weights, for the error of the format.
        trained_texts: Token ids to follow there.
    """

    shape: str
    folder: str
    weights: str
    threads: int
    prompt_tokens: int = 512
    batches: list[int] = field(default_factory=lambda: [1, 8, 32])
    context_tokens: int = 128
    seconds: float = 5.0
    with_transformers: bool = True
    trained_folder: str = ""
    trained_texts: list[list[int]] = field(default_factory=list)


class BenchRow(Control, frozen=True, kw_only=True):
    """One line of the table.

    Attributes:
        phase: ``prefill`` or ``decode``.
        batch: Rows of a decode step; 1 for a prompt.
        tokens: Length of the prompt, or positions that each row of a step has.
        ratio_to_transformers_int8: Median over rounds of its time over ours; None without it.
        ratio_to_transformers_float32: The same for its float32.
        share_of_bandwidth_limit: Bytes of weights per second, over what memory gives; median
            over rounds that read memory as well.
    """

    shape: str
    weights: str
    phase: str
    batch: int
    tokens: int
    threads: int
    tokens_per_second: float
    ratio_to_transformers_int8: float | None
    ratio_to_transformers_float32: float | None
    share_of_bandwidth_limit: float


class BenchFloor(Control, frozen=True, kw_only=True):
    """The kernels alone of what a `BenchRow` measures.

    Attributes:
        seconds: Median of the sum of their times.
        share: Median over rounds of their time over that of the whole.
    """

    shape: str
    weights: str
    phase: str
    batch: int
    seconds: float
    share: float


class BenchMemory(Control, frozen=True, kw_only=True):
    """What loading took.

    Attributes:
        weight_bytes: Of the weights in memory.
        peak_bytes: Largest resident memory of the process, torch included, transformers not.
        device: ``cpu`` or ``cuda``, where the weights are.
    """

    shape: str
    weights: str
    load_seconds: float
    weight_bytes: int
    peak_bytes: int
    bandwidth_bytes_per_second: float
    device: str = "cpu"


class BenchError(Control, frozen=True, kw_only=True):
    """What a format changes in a trained model, against float32 at the same positions.

    Attributes:
        logit_error: Root mean square of the difference over that of the logits.
        top1_agreement: Share of positions whose most likely token is the same.
    """

    weights: str
    num_positions: int
    logit_error: float
    top1_agreement: float


class Said(Control, frozen=True, kw_only=True):
    """One line that the process prints: what it does now, a remark of the engine, or a result."""

    doing: str = ""
    note: str = ""
    row: BenchRow | None = None
    floor: BenchFloor | None = None
    memory: BenchMemory | None = None
    error: BenchError | None = None

from collections.abc import Sequence
from typing import Final

import pytest
import torch

from broker.architecture import block_bytes, parse_config, stage_bytes, stage_tensor_names
from broker.plan import LayerRange
from broker.work import RequestKey, TensorMeta
from nodes.executor import StageExecutor
from nodes.kv_cache import KvFullError, UnknownRequestError
from nodes.pages import Pages
from nodes.weights import LayerWeights
from tests.support.checkpoints import FAMILIES, random_tensors
from tests.support.stages import (
    CHUNK_TOKENS,
    MemoryTensors,
    build_stages,
    decode,
    fill_weights,
    generate,
    load_weights,
    open_request,
    prefill,
)

KEY: Final = RequestKey("r", 0)
OTHER: Final = RequestKey("other", 0)
PROMPT: Final = tuple(3 + (7 * i) % 250 for i in range(45))
ANSWER: Final = (17, 90, 230, 41, 5, 66, 123)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3"])
def weights(request: pytest.FixtureRequest) -> LayerWeights:
    return load_weights(FAMILIES[request.param])


@pytest.fixture(scope="module")
def llama() -> LayerWeights:
    return load_weights(FAMILIES["llama"])


@pytest.fixture
def stage(llama: LayerWeights) -> StageExecutor:
    return build_stages(llama)[0]


def kv_of(stage: StageExecutor, key: RequestKey) -> torch.Tensor:
    return stage.kv[key].data[:, :, : stage.length(key)]


def decode_answer(
    stages: Sequence[StageExecutor], key: RequestKey, answer: Sequence[int]
) -> torch.Tensor:
    return torch.cat([decode(stages, [key], [token]) for token in answer])


# --- equal arithmetic ---------------------------------------------------------------------


def test_a_split_model_computes_the_bits_of_the_whole_model(weights: LayerWeights) -> None:
    results = []
    for cuts in ((), (1,), (2, 4)):
        stages = build_stages(weights, cuts)
        open_request(stages, KEY, 64)
        first = prefill(stages, KEY, PROMPT)
        results.append(torch.cat([first[None], decode_answer(stages, KEY, ANSWER)]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_replayed_positions_get_the_results_of_decode(weights: LayerWeights) -> None:
    (stage,) = build_stages(weights)
    for key in (KEY, OTHER):
        stage.open(key, 64)
        prefill([stage], key, PROMPT)
    stepwise = decode_answer([stage], KEY, ANSWER)
    replayed = stage.logits(stage.replay(OTHER, stage.embed(ANSWER), len(PROMPT)))
    # Linears of several rows at once differ from those of one in the last bits.
    torch.testing.assert_close(replayed, stepwise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kv_of(stage, OTHER), kv_of(stage, KEY), atol=1e-5, rtol=1e-4)
    assert stage.length(OTHER) == stage.length(KEY) == len(PROMPT) + len(ANSWER)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3"])
def exact_weights(request: pytest.FixtureRequest) -> LayerWeights:
    """Weights whose linears are exact: one 1 or -1 per row, so the order of adding is nothing.

    What still differs to the bit then comes from attention, norms or rotation.
    """
    config = FAMILIES[request.param]
    tensors = random_tensors(config)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            rows, columns = tensor.shape
            signs = tensor[:, 0].sign()
            tensor.zero_()[torch.arange(rows), torch.arange(rows) * 7 % columns] = signs
    return fill_weights(LayerWeights(parse_config(config), MemoryTensors(tensors)))


def test_attention_is_the_same_bits_decoded_replayed_alone_or_in_a_batch(
    exact_weights: LayerWeights,
) -> None:
    (stage,) = build_stages(exact_weights)
    alone, batched, replayed = (RequestKey(name, 0) for name in ("alone", "batched", "replayed"))
    for key in (alone, batched, replayed):
        stage.open(key, 64)
        prefill([stage], key, PROMPT)
    stage.open(OTHER, 64)
    prefill([stage], OTHER, PROMPT[:5])
    hidden = stage.embed(ANSWER)

    one_by_one = torch.cat([stage.decode([alone], row[None]) for row in hidden])
    beside_another = torch.cat(
        [stage.decode([OTHER, batched], torch.stack([row * 2, row]))[1:] for row in hidden]
    )
    at_once = stage.replay(replayed, hidden, len(PROMPT))

    assert torch.equal(beside_another, one_by_one)
    assert torch.equal(at_once, one_by_one)
    assert torch.equal(kv_of(stage, replayed), kv_of(stage, alone))


def test_positions_of_a_request_that_run_together_get_the_bits_of_one_after_the_other(
    exact_weights: LayerWeights,
) -> None:
    (stage,) = build_stages(exact_weights)
    together = RequestKey("together", 0)
    for key in (KEY, together, OTHER):
        stage.open(key, 64)
        prefill([stage], key, PROMPT)
    hidden = stage.embed(ANSWER)
    one_by_one = torch.cat([stage.decode([KEY], row[None]) for row in hidden])

    keys = [*[together] * len(ANSWER), OTHER]
    at_once = stage.decode(keys, torch.cat([hidden, hidden[:1]]))

    assert torch.equal(at_once[:-1], one_by_one)
    assert torch.equal(at_once[-1], one_by_one[0])
    assert torch.equal(kv_of(stage, together), kv_of(stage, KEY))


def test_what_is_cut_off_changes_no_bit_of_what_comes_after() -> None:
    # 2 KiB per position, so a page holds two; of five layers the last three have a window.
    config = {**FAMILIES["qwen2"], "head_dim": 256, "sliding_window": 33}
    (stage,) = build_stages(load_weights(config, weights="int8"))
    for key in (KEY, OTHER):
        stage.open(key, len(PROMPT), 400)
        prefill([stage], key, PROMPT)
    answer = ANSWER * 10
    expected = decode_answer([stage], OTHER, answer)

    found = []
    for start in range(0, len(answer), 2):
        # Two tokens that stay, and 18 that do not: more than half a block beyond them.
        tokens = [*answer[start : start + 2], *[9] * 18]
        found.append(decode([stage], [KEY] * len(tokens), tokens)[:2])
        stage.set_length(KEY, len(PROMPT) + start + 2)

    assert torch.equal(torch.cat(found), expected)
    assert stage.kv[KEY].data[2:, :, :64].eq(0).all()


def test_growing_the_reservation_changes_no_bit(weights: LayerWeights) -> None:
    (stage,) = build_stages(weights)
    stage.open(KEY, len(PROMPT))
    stage.open(OTHER, 400)
    for key in (KEY, OTHER):
        prefill([stage], key, PROMPT)
    grown = decode_answer([stage], KEY, ANSWER * 5)
    roomy = decode_answer([stage], OTHER, ANSWER * 5)
    assert torch.equal(grown, roomy)


def test_giving_back_what_left_the_windows_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 KiB per position, so a page holds two; of five layers the last three have a window.
    config = {**FAMILIES["qwen2"], "head_dim": 256, "sliding_window": 33}
    (stage,) = build_stages(load_weights(config))

    def run(key: RequestKey) -> torch.Tensor:
        stage.open(key, len(PROMPT), 400)
        return torch.cat(
            [prefill([stage], key, PROMPT)[None], decode_answer([stage], key, ANSWER * 5)]
        )

    given_back = run(KEY)
    assert stage.kv[KEY].data[2:, :, :32].eq(0).all()
    assert stage.kv[KEY].data[:2, :, :32].ne(0).all()
    monkeypatch.setattr(Pages, "forget", lambda *_: None)
    assert torch.equal(run(OTHER), given_back)
    assert stage.kv[OTHER].data[2:, :, :32].ne(0).all()


def test_bfloat16_stages_agree_with_the_whole_and_are_close_to_float32() -> None:
    config = FAMILIES["qwen2"]
    exact = build_stages(load_weights(config))
    half = load_weights(config, weights="bfloat16")
    open_request(exact, KEY, 64)
    expected = prefill(exact, KEY, PROMPT)
    answers = [
        generate(build_stages(half, cuts, kv_format="bfloat16"), PROMPT, 20)
        for cuts in ((), (1, 3))
    ]
    assert answers[0] == answers[1]
    stages = build_stages(half, (2,))
    open_request(stages, KEY, 64)
    actual = prefill(stages, KEY, PROMPT)
    assert actual.dtype == torch.float32
    assert torch.cosine_similarity(actual, expected, 0) > 0.995


# --- reservations and lengths -------------------------------------------------------------


def test_lengths_follow_what_was_computed(stage: StageExecutor) -> None:
    stage.open(KEY, 64)
    assert (stage.has(KEY), stage.length(KEY), stage.used_tokens) == (True, 0, 64)
    prefill([stage], KEY, PROMPT)
    assert stage.length(KEY) == 45
    decode([stage], [KEY], [9])
    assert stage.length(KEY) == 46
    stage.release(KEY)
    assert (stage.has(KEY), stage.used_tokens) == (False, 0)


def test_decode_reserves_a_block_when_its_slab_is_full(stage: StageExecutor) -> None:
    stage.open(KEY, 32)
    prefill([stage], KEY, PROMPT[:32])
    decode([stage], [KEY], [9])
    assert stage.used_tokens == 64


def test_a_full_cache_refuses_a_row_and_leaves_all_rows_as_they_were(llama: LayerWeights) -> None:
    (stage,) = build_stages(llama, kv_tokens=64)
    for key in (KEY, OTHER):
        stage.open(key, 32)
    prefill([stage], KEY, PROMPT[:32])
    prefill([stage], OTHER, PROMPT[:8])
    with pytest.raises(KvFullError, match="0 of 64 are free"):
        stage.decode([OTHER, KEY], stage.embed([9, 9]))
    assert (stage.length(KEY), stage.length(OTHER)) == (32, 8)
    stage.decode([OTHER], stage.embed([9]))


def test_a_forward_pass_that_raises_leaves_every_length(
    stage: StageExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (KEY, OTHER):
        stage.open(key, 64)
        prefill([stage], key, PROMPT)
    before = decode([stage], [KEY], [9])
    stage.set_length(KEY, len(PROMPT))

    def explode(*args: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_attend_rows", explode)
        with pytest.raises(RuntimeError, match="out of memory"):
            stage.decode([KEY, OTHER], stage.embed([200, 201]))
    assert stage.length(KEY) == stage.length(OTHER) == len(PROMPT)
    assert torch.equal(decode([stage], [KEY], [9]), before)


@pytest.mark.parametrize(
    ("rows", "start", "complaint"),
    [
        (CHUNK_TOKENS + 1, 0, "grid"),
        (4, 8, "grid"),
        (0, 0, "grid"),
        (4, CHUNK_TOKENS, "the length is 0"),
    ],
)
def test_a_chunk_off_the_grid_or_out_of_turn_is_refused(
    stage: StageExecutor, rows: int, start: int, complaint: str
) -> None:
    stage.open(KEY, 64)
    with pytest.raises(ValueError, match=complaint):
        stage.prefill(KEY, stage.embed([5] * rows), start)
    assert stage.length(KEY) == 0


def test_wrong_rows_are_refused(stage: StageExecutor) -> None:
    stage.open(KEY, 64)
    with pytest.raises(ValueError, match="1 rows for 2 keys"):
        stage.decode([KEY, KEY], stage.embed([5]))
    with pytest.raises(ValueError, match="expected"):
        stage.prefill(KEY, torch.zeros(4, 47), 0)
    with pytest.raises(UnknownRequestError, match="not open"):
        stage.decode([OTHER], stage.embed([5]))
    with pytest.raises(ValueError, match="open already"):
        stage.open(KEY, 64)


@pytest.mark.parametrize("token_id", [-1, 263, 10**9])
def test_a_token_outside_the_vocabulary_is_refused(stage: StageExecutor, token_id: int) -> None:
    with pytest.raises(ValueError, match=r"outside the vocabulary of 263"):
        stage.embed([5, token_id])


def test_a_stage_in_the_middle_has_no_ends(llama: LayerWeights) -> None:
    middle = build_stages(llama, (1, 4))[1]
    with pytest.raises(ValueError, match="no embedding"):
        middle.embed([5])
    with pytest.raises(ValueError, match="no head"):
        middle.logits(torch.zeros(1, 48))


def test_a_range_beyond_the_model_is_refused(llama: LayerWeights) -> None:
    with pytest.raises(ValueError, match="with 5"):
        StageExecutor(
            llama.config,
            LayerRange(4, 6),
            llama,
            embedding=False,
            head=True,
            kv_tokens=64,
            chunk_tokens=32,
        )


# --- KV transfer --------------------------------------------------------------------------


def test_read_kv_is_a_copy_in_the_form_of_the_bus(llama: LayerWeights) -> None:
    stage = build_stages(llama, (2,))[1]
    stage.open(KEY, 64)
    hidden = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    stage.prefill(KEY, hidden, 0)
    meta, data = stage.read_kv(KEY, LayerRange(3, 5), 4, 14)
    assert meta == TensorMeta("float32", (2, 2, 10, 2, 8))
    expected = stage.kv[KEY].data[1:3, :, 4:14].clone()
    stage.kv[KEY].data.zero_()
    assert bytes(data) == expected.numpy().tobytes()


@pytest.mark.parametrize(
    ("layers", "start", "end", "complaint"),
    [
        (LayerRange(1, 3), 0, 4, "that has"),
        (LayerRange(2, 3), 0, 33, "asked"),
        (LayerRange(2, 3), -1, 4, "asked"),
    ],
)
def test_kv_that_a_stage_does_not_have_is_not_read(
    llama: LayerWeights, layers: LayerRange, start: int, end: int, complaint: str
) -> None:
    stage = build_stages(llama, (2,))[1]
    stage.open(KEY, 64)
    stage.prefill(KEY, torch.zeros(32, 48), 0)
    with pytest.raises(ValueError, match=complaint):
        stage.read_kv(KEY, layers, start, end)


def test_kv_that_has_left_a_window_is_not_read() -> None:
    (stage,) = build_stages(load_weights(FAMILIES["qwen2"]))
    stage.open(KEY, 64)
    prefill([stage], KEY, PROMPT)
    first = len(PROMPT) + 1 - 40
    assert stage.first_positions(LayerRange(1, 3), len(PROMPT)) == [0, first]
    stage.read_kv(KEY, LayerRange(1, 2), 0, 45)
    stage.read_kv(KEY, LayerRange(1, 3), first, 45)
    with pytest.raises(ValueError, match=r"of \[6, 45\) asked"):
        stage.read_kv(KEY, LayerRange(1, 3), first - 1, 45)


@pytest.mark.parametrize(
    ("layers", "start", "meta"),
    [
        (LayerRange(1, 3), 32, TensorMeta("float32", (2, 2, 4, 2, 8))),
        (LayerRange(2, 4), 32, TensorMeta("float32", (1, 2, 4, 2, 8))),
        (LayerRange(2, 4), 32, TensorMeta("bfloat16", (2, 2, 4, 2, 8))),
        (LayerRange(2, 4), 32, TensorMeta("float32", (2, 2, 4, 2, 6))),
        (LayerRange(2, 4), 32, TensorMeta("float32", (2, 2, 4, 16))),
        (LayerRange(2, 4), 62, TensorMeta("float32", (2, 2, 4, 2, 8))),
        (LayerRange(2, 4), 31, TensorMeta("float32", (2, 2, 4, 2, 8))),
        (LayerRange(2, 4), 32, TensorMeta("float32", (2, 2, 0, 2, 8))),
    ],
    ids=["layers", "fewer", "dtype", "head_dim", "rank", "beyond", "complete", "empty"],
)
def test_kv_of_another_shape_is_not_written(
    llama: LayerWeights, layers: LayerRange, start: int, meta: TensorMeta
) -> None:
    stage = build_stages(llama, (2,))[1]
    stage.open(KEY, 64)
    stage.prefill(KEY, torch.zeros(32, 48), 0)
    stage.kv[KEY].data[:, :, 32:] = 0
    with pytest.raises(ValueError, match=r"layers|KV of|positions"):
        stage.write_kv(KEY, layers, start, b"\x01" * meta.num_bytes, meta)
    assert not stage.kv[KEY].data[:, :, 32:].any()


def test_a_length_beyond_the_reservation_is_refused(stage: StageExecutor) -> None:
    stage.open(KEY, 10)
    with pytest.raises(ValueError, match="length 33"):
        stage.set_length(KEY, 33)


# --- weights ------------------------------------------------------------------------------


def test_weights_report_the_names_and_bytes_of_what_they_hold() -> None:
    weights = load_weights(FAMILIES["qwen2"])
    config = parse_config(FAMILIES["qwen2"])
    whole = stage_tensor_names(config, LayerRange(0, 5), embedding=True, head=True)
    assert sorted(weights.tensor_names) == sorted(whole)
    assert weights.num_bytes == stage_bytes(config, "float32", range(5), embedding=True, head=True)
    assert weights.holds(LayerRange(0, 5), embedding=True, head=True)
    weights.drop(4)
    assert weights.layers == [0, 1, 2, 3]
    assert not weights.holds(LayerRange(3, 5), embedding=False, head=False)
    weights.drop_embedding()
    weights.drop_head()
    assert weights.num_bytes == 4 * block_bytes(config, "float32", 0)


def test_an_executor_outlives_the_weights_that_were_dropped() -> None:
    weights = load_weights(FAMILIES["llama"])
    stages = build_stages(weights, (2,))
    expected = generate(stages, PROMPT, 5)
    for layer in range(5):
        weights.drop(layer)
    assert generate(stages, PROMPT, 5) == expected
    with pytest.raises(KeyError):
        build_stages(weights, (2,))

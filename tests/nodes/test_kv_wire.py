"""How KV travels: as it is held, or in whole numbers."""

import pytest
import torch

from broker.architecture import kv_bytes_per_token, kv_sent_bytes_per_token, parse_config
from broker.plan import LayerRange
from broker.work import RequestKey, TensorMeta
from nodes.kv_wire import ExactWire, Int8Wire, kv_wire
from nodes.tensors import meta_of, to_bytes
from tests.support.checkpoints import FAMILIES
from tests.support.stages import build_stages, load_weights, open_request, prefill

SHAPE = (2, 2, 5, 3, 16)
KEY = RequestKey("request", 0)
PROMPT = tuple(range(3, 43))


def some_kv(seed: int = 0) -> torch.Tensor:
    """KV whose rows differ in size by orders of magnitude, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(SHAPE, generator=generator)
    kv *= 10.0 ** torch.randint(-4, 4, (*SHAPE[:-1], 1), generator=generator)
    kv[0, 0, 0, 0] = 0.0
    return kv


def test_exact_kv_arrives_bit_for_bit() -> None:
    kv = some_kv().bfloat16()
    wire = ExactWire(torch.bfloat16)
    sent = wire.packed(kv)
    assert torch.equal(wire.unpacked(to_bytes(sent), meta_of(sent), SHAPE), kv)


def test_kv_in_whole_numbers_is_off_by_at_most_half_a_step_of_its_own_row() -> None:
    kv, wire = some_kv(), Int8Wire()
    sent = wire.packed(kv)
    arrived = wire.unpacked(to_bytes(sent), meta_of(sent), SHAPE)
    steps = kv.abs().amax(-1, keepdim=True) / 127
    assert bool(((arrived - kv).abs() <= 0.501 * steps).all())
    assert not torch.equal(arrived, kv)


def test_a_row_in_whole_numbers_depends_on_no_other() -> None:
    kv, wire = some_kv(), Int8Wire()
    assert torch.equal(wire.packed(kv)[1:, :, 2:4], wire.packed(kv[1:, :, 2:4]))


def test_packed_again_what_arrived_is_the_same() -> None:
    # A stage that hands on what it was sent changes nothing more.
    wire = Int8Wire()
    sent = wire.packed(some_kv())
    arrived = wire.unpacked(to_bytes(sent), meta_of(sent), SHAPE)
    numbers = wire.packed(arrived)[..., :16]
    assert torch.equal(numbers, sent[..., :16])


@pytest.mark.parametrize("wire", [ExactWire(torch.float32), Int8Wire()])
def test_kv_of_another_form_is_refused(wire: ExactWire | Int8Wire) -> None:
    with pytest.raises(ValueError, match="expected"):
        wire.unpacked(bytes(32), TensorMeta("bfloat16", (1, 1, 1, 1, 16)), (1, 1, 1, 1, 16))


def test_an_unknown_way_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="exact, int8"):
        kv_wire("int3", torch.float32)


@pytest.mark.parametrize("kv_format", ["float32", "bfloat16"])
@pytest.mark.parametrize("transfer", ["exact", "int8"])
def test_the_bytes_of_a_transfer_are_those_that_the_planner_counts(
    kv_format: str, transfer: str
) -> None:
    weights = load_weights(FAMILIES["llama"])
    (stage,) = build_stages(weights, kv_format=kv_format, kv_transfer=transfer)
    open_request([stage], KEY, len(PROMPT))
    prefill([stage], KEY, PROMPT)
    layers = LayerRange(0, weights.config.num_layers)
    _, data = stage.read_kv(KEY, layers, 0, len(PROMPT))
    counted = kv_sent_bytes_per_token(weights.config, kv_format, transfer, len(layers))
    assert len(data) == len(PROMPT) * counted
    assert stage.kv_entry_bytes * len(layers) == counted


def test_whole_numbers_are_fewer_bytes_than_either_format() -> None:
    config = parse_config(FAMILIES["llama"])
    sent = kv_sent_bytes_per_token(config, "float32", "int8", 1)
    assert sent < kv_bytes_per_token(config, "bfloat16", 1)


def test_a_decode_stage_takes_in_kv_in_whole_numbers_and_refuses_any_other() -> None:
    weights = load_weights(FAMILIES["llama"])
    (sender,) = build_stages(weights, kv_transfer="int8")
    (receiver,) = build_stages(weights, kv_transfer="int8")
    (exact,) = build_stages(weights)
    layers = LayerRange(0, weights.config.num_layers)
    for stage in (sender, receiver, exact):
        open_request([stage], KEY, len(PROMPT) + 1)
    prefill([sender], KEY, PROMPT)
    meta, data = sender.read_kv(KEY, layers, 0, len(PROMPT))
    receiver.write_kv(KEY, layers, 0, data, meta)
    receiver.set_length(KEY, len(PROMPT))
    wanted = sender.logits(sender.decode([KEY], sender.embed([5])))
    found = receiver.logits(receiver.decode([KEY], receiver.embed([5])))
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.05
    with pytest.raises(ValueError, match="expected"):
        exact.write_kv(KEY, layers, 0, data, meta)

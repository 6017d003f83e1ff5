import gc
import weakref

import pytest
import torch

from broker.work import TensorMeta
from nodes.tensors import DTYPES, from_bytes, meta_of, to_bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (0, 48), (1,), (2, 2, 7, 2, 3)])
def test_a_tensor_survives_the_bus(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).to(DTYPES[dtype])
    payload = bytes(to_bytes(tensor))
    meta = meta_of(tensor)
    assert meta == TensorMeta(dtype, shape)
    assert len(payload) == meta.num_bytes
    assert torch.equal(from_bytes(payload, meta), tensor)


def test_a_tensor_that_is_not_contiguous_is_sent_in_order() -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    assert from_bytes(to_bytes(tensor), meta_of(tensor)).tolist() == tensor.tolist()


def test_nothing_is_copied_either_way() -> None:
    tensor = torch.zeros(4)
    view = to_bytes(tensor)
    received = from_bytes(view, meta_of(tensor))
    tensor[2] = 7
    assert received.tolist() == [0, 0, 7, 0]


def test_read_only_memory_lives_as_long_as_its_tensor() -> None:
    class Payload(bytearray):
        pass

    payload = Payload(torch.ones(8).numpy().tobytes())
    alive = weakref.ref(payload)
    tensor = from_bytes(memoryview(payload).toreadonly(), TensorMeta("float32", (8,)))
    del payload
    gc.collect()
    assert alive() is not None
    assert tensor.sum() == 8
    del tensor
    gc.collect()
    assert alive() is None


def test_bytes_that_do_not_fill_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        from_bytes(b"\0" * 12, TensorMeta("float32", (4,)))


def test_a_dtype_that_does_not_travel_is_named() -> None:
    with pytest.raises(ValueError, match="int64"):
        meta_of(torch.arange(3))

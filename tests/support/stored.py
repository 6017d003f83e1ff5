"""Tensors as a source gives them, as floats."""

import torch

from nodes.stored import QuantisedTensor, Stored


def floats_of(tensor: Stored) -> torch.Tensor:
    """Return all of a tensor at once."""
    return torch.cat([*tensor.parts()]) if isinstance(tensor, QuantisedTensor) else tensor

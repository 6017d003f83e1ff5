"""The parts of a model made from a checkpoint's tensors, in one weight format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch

from broker.architecture import ModelConfig, TensorSpec, block_tensors
from broker.model_config import MXFP4_BLOCK
from nodes.activations import Norm
from nodes.decoder import BlockWeights
from nodes.feed_forward import FeedForward, Mixture, Mlp
from nodes.mxfp4 import mxfp4_floats
from nodes.packed import Linear
from nodes.packing import Packing
from nodes.stored import QuantisedTensor, Stored


class WrongShapeError(Exception):
    """A tensor of the checkpoint does not have the shape that config.json implies."""


class Tensors(Protocol):
    """Where weights come from: `nodes.checkpoint.TensorSource`, or made up when measuring."""

    def load_tensor(self, name: str) -> Stored:
        """Return the tensor of that name in the checkpoint: floats, or what stands for them."""


class BlockReader:
    """Reads blocks tensor by tensor: beside what is made, at most one of them is in memory."""

    def __init__(self, config: ModelConfig, source: Tensors, packing: Packing) -> None:
        self._config, self._source, self._packing = config, source, packing

    def read(self, specs: Iterable[TensorSpec]) -> Iterator[torch.Tensor]:
        """Read tensors one after the other, each when the one before is no longer needed.

        A quantised one comes in several parts, which lie below each other.

        Raises:
            WrongShapeError: As it says; errors of the source likewise.
        """
        for spec in specs:
            tensor = self._source.load_tensor(spec.name)
            _check_shape(spec, tensor)
            if isinstance(tensor, QuantisedTensor):
                yield from tensor.parts()
            else:
                yield tensor
            del tensor  # not kept while the next one is read

    def norm(self, spec: TensorSpec) -> Norm:
        """Return a norm; raises as `read` does."""
        gains = (tensor.float() + self._config.norm_offset for tensor in self.read([spec]))
        return Norm(self._packing.merged(gains, spec.shape), self._config.rms_norm_eps)

    def block(self, layer: int) -> BlockWeights:
        """Return a block; raises as `read` does."""
        config, specs = self._config, block_tensors(self._config, layer)

        def norm(place: str) -> Norm | None:
            spec = specs.get(f"{place}.weight")
            return None if spec is None else self.norm(spec)

        qkv = ("qkv_proj",) if config.is_fused else ("q_proj", "k_proj", "v_proj")
        sinks = specs.get("sinks")
        return BlockWeights(
            before_attention=norm("before_attention"),
            qkv=self._linear(specs, *qkv),
            q_norm=norm("q_norm"),
            k_norm=norm("k_norm"),
            sinks=None if sinks is None else self._vector(sinks).view(config.num_kv_heads, -1),
            output=self._linear(specs, "o_proj"),
            after_attention=norm("after_attention"),
            before_feed_forward=norm("before_feed_forward"),
            feed_forward=self._feed_forward(specs, layer),
            after_feed_forward=norm("after_feed_forward"),
        )

    def _feed_forward(self, specs: Mapping[str, TensorSpec], layer: int) -> FeedForward:
        experts = self._config.layers[layer].experts
        if experts is None:
            return self._mlp(specs)
        spec, bias = specs["router.weight"], specs.get("router.bias")
        router = self._packing.merged(self.read([spec]), spec.shape)
        if experts.is_packed:
            parts = self._packed_mlps(specs)
        else:
            parts = [self._mlp(specs, f"{number}.") for number in range(experts.count)]
        return Mixture(experts, router, None if bias is None else self._vector(bias), parts)

    def _mlp(self, specs: Mapping[str, TensorSpec], prefix: str = "") -> Mlp:
        names = ("gate_up_proj",) if self._config.is_fused else ("gate_proj", "up_proj")
        gate_up = self._linear(specs, *(f"{prefix}{name}" for name in names))
        return Mlp(gate_up, self._linear(specs, f"{prefix}down_proj"), self._config.activation)

    def _packed_mlps(self, specs: Mapping[str, TensorSpec]) -> list[Mlp]:
        """Return the experts of tensors that hold all of them, gate and up in turns."""

        def linears(name: str, stride: int) -> list[Linear]:
            (bias,) = self.read([specs[f"{name}.bias"]])
            matrices = self._packed_matrices(specs[f"{name}.weight"])
            starts = range(stride)
            return [
                self._packing.linear(
                    (matrix[start::stride].contiguous() for start in starts),
                    (matrix.shape[0], matrix.shape[1]),
                    self._packing.merged((vector[start::stride] for start in starts), vector.shape),
                )
                for matrix, vector in zip(matrices, bias, strict=True)
            ]

        pairs = zip(linears("gate_up", 2), linears("down", 1), strict=True)
        return [Mlp(gate_up, down, self._config.activation) for gate_up, down in pairs]

    def _packed_matrices(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """Yield each expert's matrix, (rows, columns), of a tensor that is transposed."""
        if len(spec.parts) == 1:
            (weight,) = self.read([spec])
            yield from (matrix.t() for matrix in weight)
            return
        count, columns, rows = spec.shape
        stored = count, rows, columns // MXFP4_BLOCK
        blocks, scales = spec.stored_names
        (numbers,) = self.read([TensorSpec(blocks, (*stored, MXFP4_BLOCK // 2))])
        (exponents,) = self.read([TensorSpec(scales, stored)])
        for pair in zip(numbers, exponents, strict=True):
            yield mxfp4_floats(*pair)

    def _linear(self, specs: Mapping[str, TensorSpec], *names: str) -> Linear:
        biases = [specs[f"{name}.bias"] for name in names if f"{name}.bias" in specs]
        matrices = [specs[f"{name}.weight"] for name in names]
        shape = sum(spec.shape[0] for spec in matrices), matrices[0].shape[1]
        bias = self._vector(*biases) if biases else None
        return self._packing.linear(self.read(matrices), shape, bias)

    def _vector(self, *specs: TensorSpec) -> torch.Tensor:
        return self._packing.merged(self.read(specs), (sum(s.shape[0] for s in specs),))


def _check_shape(spec: TensorSpec, tensor: Stored) -> None:
    if tuple(tensor.shape) != spec.shape:
        raise WrongShapeError(
            f"tensor {spec.name} has shape {tuple(tensor.shape)}, config.json implies "
            f"{spec.shape}; the checkpoint's files do not belong together, fetch it again"
        )

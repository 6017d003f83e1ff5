"""Blocks, embedding and head of models that transformers computes, in our stages.

A block's own code runs but for its attention, which is ours: keys and values lie in our cache,
so positions, replays and transfers between replicas are as with all models. Matrices are held
in the fog's weight format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from broker.architecture import (
    ModelConfig,
    TensorSpec,
    UnsupportedModelError,
    block_tensors,
    embedding_tensors,
    head_tensors,
)
from nodes.decoder import Attend, Rotary
from nodes.other.attention import Expected, attending
from nodes.other.skeleton import Skeleton
from nodes.packed import Linear
from nodes.packing import Packing

Read = Callable[[Iterable[TensorSpec]], Iterator[torch.Tensor]]
"""Reads tensors, in parts that lie below each other."""


class OtherBlock:
    """One block; as `nodes.decoder.Block`."""

    def __init__(self, model: Skeleton, layer: nn.Module, expected: Expected) -> None:
        self._model, self._layer, self.expected = model, layer, expected

    def run(
        self, hidden: torch.Tensor, rotary: Rotary | None, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return the block's output (n, hidden) of its input at ``positions``."""
        rows = hidden[None]
        with attending(attend, self.expected):
            output = self._layer(rows, **self._model.arguments(rows, positions))
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result[0]

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return _num_bytes(self._layer)


class OtherEmbedding:
    """What stands before the blocks."""

    def __init__(self, base: nn.Module) -> None:
        self._base = base

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (n, hidden) of token ids."""
        hidden: torch.Tensor = self._base(input_ids=ids[None], use_cache=False).last_hidden_state
        return hidden[0]

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return _num_bytes(self._base)


class OtherHead:
    """What stands after the blocks."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (n, vocab) of hidden states."""
        logits: torch.Tensor = self._model(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0]

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return _num_bytes(self._model)


class OtherReader:
    """Makes the parts of a model from its tensors, one tensor after the other.

    Args:
        read: Reads tensors.
        packing: Makes matrices of the fog's weight format.

    Raises:
        UnsupportedModelError: transformers is not installed, does not know the model, or its
            blocks are not of the shape that this engine runs.
    """

    def __init__(self, config: ModelConfig, read: Read, packing: Packing) -> None:
        self._config, self._read, self._packing = config, read, packing
        self._skeleton = Skeleton(config)
        self._checked: set[str] = set()

    def block(self, layer: int) -> OtherBlock:
        """Return a block; raises as the class does, and as ``read``."""
        described = self._config.layers[layer]
        assert described.other is not None, "config.other says so"
        module = self._skeleton.layer(described.other.number)
        self._fill(module, block_tensors(self._config, layer))
        kv_shape = self._config.num_kv_heads, self._config.head_dim
        block = OtherBlock(self._skeleton, module, Expected(described.window, kv_shape))
        if described.kind not in self._checked:
            self._skeleton.check(block, module, described.other.number, self._packing.dtype)
            self._checked.add(described.kind)
        return block

    def embedding(self) -> OtherEmbedding:
        """Return what stands before the blocks."""
        base = self._skeleton.base_without_blocks()
        specs = embedding_tensors(self._config)
        self._fill(base, _below(specs, self._skeleton.base_prefix))
        return OtherEmbedding(base)

    def head(self) -> OtherHead:
        """Return what stands after the blocks."""
        model = self._skeleton.model_of_head()
        base_prefix = self._skeleton.base_prefix
        base = getattr(model, base_prefix.rstrip("."))
        specs = head_tensors(self._config)
        matrix = next(spec for spec in specs.values() if len(spec.shape) == 2)
        outside = {n: s for n, s in specs.items() if not n.startswith(base_prefix)}
        self._fill(base, _below({n: s for n, s in specs.items() if s is not matrix}, base_prefix))
        bias = next((s for s in outside.values() if len(s.shape) == 1), None)
        linear = self._packing.head(self._read([matrix]), matrix.shape)
        set_head: Callable[[nn.Module], None] = getattr(model, "set_output_embeddings")  # noqa: B009
        set_head(_Packed(linear, self._vector(bias)))
        return OtherHead(model)

    def _fill(self, module: nn.Module, specs: Mapping[str, TensorSpec]) -> None:
        """Give a module its tensors; linears become ours."""
        left = dict(specs)
        for name, child in list(module.named_modules()):
            if type(child) is nn.Linear and (spec := left.pop(f"{name}.weight", None)):
                bias = self._vector(left.pop(f"{name}.bias", None))
                rows, columns = spec.shape
                linear = self._packing.linear(self._read([spec]), (rows, columns), bias)
                parent, _, own = name.rpartition(".")
                setattr(module.get_submodule(parent), own, _Packed(linear))
        state = {name: self._packing.merged(self._read([s]), s.shape) for name, s in left.items()}
        found = module.load_state_dict(state, strict=False, assign=True)
        if found.missing_keys or found.unexpected_keys:
            raise UnsupportedModelError(
                f"{self._skeleton.name}: its checkpoint has {_some(found.unexpected_keys)} where "
                f"transformers expects {_some(found.missing_keys)}, and this engine converts none; "
                "add the family (docs/adding-a-model-family.md)"
            )

    def _vector(self, spec: TensorSpec | None) -> torch.Tensor | None:
        return None if spec is None else self._packing.merged(self._read([spec]), spec.shape)


class _Packed(nn.Module):
    """One of our matrices in the place of a linear."""

    def __init__(self, linear: Linear, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.linear, self._bias = linear, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.linear(x.reshape(-1, x.shape[-1]))
        if self._bias is not None:
            result = result + self._bias
        return result.view(*x.shape[:-1], -1)


def _below(specs: Mapping[str, TensorSpec], prefix: str) -> dict[str, TensorSpec]:
    return {n.removeprefix(prefix): spec for n, spec in specs.items() if n.startswith(prefix)}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'no tensors'}{more}"


def _num_bytes(module: nn.Module) -> int:
    packed = [child.linear.num_bytes for child in module.modules() if isinstance(child, _Packed)]
    return sum(packed) + sum(parameter.nbytes for parameter in module.parameters())

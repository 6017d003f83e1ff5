"""A model of transformers without weights, from which parts are taken and filled.

Only models fit whose blocks take hidden states and rotated positions, one block after the
other. What else a model does between its blocks shows when one is compared with the model.
"""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any, Protocol

import torch
from torch import nn

from broker.architecture import ModelConfig, UnsupportedModelError
from nodes.decoder import Attend, Rotary
from nodes.other.attention import NAME, Expected, attend_plainly, attending, register


class Runnable(Protocol):
    """A block that is to be compared."""

    @property
    def expected(self) -> Expected:
        """What its attention is planned to be."""

    def run(
        self, hidden: torch.Tensor, rotary: Rotary | None, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return its output (n, hidden) of its input at ``positions``."""


class Skeleton:
    """A model of transformers without weights, from which parts are taken."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.other is not None, "the caller looked"
        self._other = config.other
        self._raw: dict[str, Any] = json.loads(config.other.config)
        self.name = ", ".join(self._raw.get("architectures") or ["model"])
        base, _, self._layers = config.other.prefix.rstrip(".").rpartition(".")
        self.base_prefix = f"{base}."
        self._base_name = base
        self._whole = self._build()
        base_model = getattr(self._whole, base, None)
        if base_model is None or not hasattr(base_model, "rotary_emb"):
            raise self._unlike("has no rotary positions")
        # Its tables are computed, so it is made anew where there is memory.
        kind = type(base_model.rotary_emb)
        if "layer_type" in inspect.signature(kind.forward).parameters:
            raise self._unlike("rotates by type of layer")
        self._rotary = kind(config=self._whole.config)
        self._norm = [name for name, _ in base_model.named_children() if "norm" in name][-1]

    def layer(self, number: int) -> nn.Module:
        """Return a block without weights."""
        layers = getattr(getattr(self._whole, self._base_name), self._layers)
        # A copy of nothing: a block may be dropped and come again.
        layer: nn.Module = copy.deepcopy(layers[number])
        parameters = inspect.signature(layer.forward).parameters
        known = {"hidden_states", "attention_mask", "position_ids", "position_embeddings"}
        needed = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        ]
        if "position_embeddings" not in parameters or set(needed) - known:
            raise self._unlike(f"has blocks that take {', '.join(needed)}")
        return layer

    def arguments(self, rows: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
        """Return what a block takes beside its rows (1, n, hidden)."""
        position_ids = positions[None]
        return {
            "attention_mask": None,
            "position_ids": position_ids,
            "position_embeddings": self._rotary(rows, position_ids),
        }

    def base_without_blocks(self) -> nn.Module:
        """Return what stands before the blocks, as a model without any."""
        base: nn.Module = self._bare_base(self._build(number=0))
        setattr(base, self._norm, nn.Identity())
        return base

    def model_of_head(self) -> nn.Module:
        """Return what stands after the blocks, as a model without any that takes hidden states."""
        model: nn.Module = self._build(number=0)
        base = self._bare_base(model)
        # What a model does with embeddings on the way in is not to be done on the way out.
        setattr(model, self._base_name, _Last(getattr(base, self._norm), self._norm))
        return model

    @torch.no_grad()
    def check(self, block: Runnable, layer: nn.Module, number: int, dtype: torch.dtype) -> None:
        """Compare a block with what the model itself computes with it.

        Raises:
            UnsupportedModelError: They differ: the model does more between its blocks.
        """
        base = self._bare_base(self._build(number))
        setattr(base, self._norm, nn.Identity())
        rows = torch.linspace(-1, 1, 3 * base.config.hidden_size, dtype=dtype).view(3, -1)
        entered = base(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]
        setattr(base, self._layers, nn.ModuleList([layer]))
        positions = torch.arange(3)
        ours = block.run(entered, None, positions, attend_plainly)
        with attending(attend_plainly, block.expected):
            theirs = base(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            raise self._unlike("does more between its blocks than this engine knows")

    def _bare_base(self, model: Any) -> Any:
        base = getattr(model, self._base_name)
        setattr(base, self._layers, nn.ModuleList())
        base.rotary_emb = self._rotary
        return base

    def _build(self, number: int | None = None) -> Any:
        """Return the model without memory: with all its blocks, or with block ``number`` alone."""
        try:
            from transformers import CONFIG_MAPPING, AutoModelForCausalLM
        except ImportError as error:
            raise UnsupportedModelError(
                f"architecture {self.name} is run by transformers, which is not installed on this "
                "device: pip install 'e2llm[transformers]'"
            ) from error
        register()
        raw = dict(self._raw)
        if number is not None:
            raw["num_hidden_layers"] = 1
            if raw.get("layer_types"):
                raw["layer_types"] = raw["layer_types"][number : number + 1]
        try:
            config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UnsupportedModelError(
                f"architecture {self.name} cannot be built by the transformers installed here "
                f"({error}); install a newer one, or choose another checkpoint"
            ) from error
        return model.eval()

    def _unlike(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"architecture {self.name} {why}, so it cannot be run by ranges of layers; choose "
            "another checkpoint, or add its family (docs/adding-a-model-family.md)"
        )


class _Last(nn.Module):
    """In place of a base model: the norm after the blocks alone."""

    def __init__(self, norm: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, norm)
        self._norm = [norm]  # in a list: named once

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self._norm[0](inputs_embeds))

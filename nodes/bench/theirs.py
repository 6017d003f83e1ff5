"""`transformers` as the benchmark drives it: what a user would otherwise run on this machine."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch

from nodes.bench.ours import Step, token_ids


class TransformersEngine:
    """A whole model in float32, or with torch's dynamic int8 in every linear.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """

    def __init__(self, folder: Path, device: torch.device, *, is_int8: bool) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.to(device)
        self._device = device
        # It was called `past_key_values` until 5.39.
        accepted = inspect.signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in accepted else "past_key_values"
        if is_int8:
            self._quantise()

    def _quantise(self) -> None:
        """Quantise as torch's tutorials do, with a scale per row of weights."""
        # Both names announce that they will go; the other way that torch names is a package
        # of its own, and slower on CPUs.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

            spec = {torch.nn.Linear: per_channel_dynamic_qconfig}
            self._model = quantize_dynamic(self._model, spec, inplace=True)  # type: ignore[no-untyped-call]

    def prefill(self, num_tokens: int) -> Step:
        """Return a call that takes a whole prompt in and gives the last position's logits."""
        ids = self._tensor([token_ids(num_tokens, self._model.config.vocab_size)])

        def run() -> object:
            return self._model(input_ids=ids, use_cache=True, logits_to_keep=1).logits

        return run

    def decode(self, batch: int, context: int) -> Step:
        """Return a call that makes one step of ``batch`` rows with ``context`` positions each."""
        vocabulary = self._model.config.vocab_size
        prompt = self._tensor([token_ids(context, vocabulary)])
        past = self._model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
        past.batch_repeat_interleave(batch)  # to take equal prompts in would take minutes
        ids = self._tensor(token_ids(batch, vocabulary))[:, None]

        def run() -> object:
            logits = self._model(input_ids=ids, use_cache=True, **{self._cache: past}).logits
            past.crop(-1)
            return logits

        return run

    def _tensor(self, ids: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(ids, device=self._device)

"""Greedy tokens as `transformers` generates them in float32: what all our paths must equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Reference:
    """Tokens of an answer, and the gap between the two largest logits at each."""

    tokens: list[int]
    gaps: list[float]


class Oracle:
    """A checkpoint loaded by transformers. Importing that takes seconds, so not at the top."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    def generate(self, prompt_ids: Sequence[int], num_tokens: int) -> Reference:
        """Return exactly ``num_tokens`` greedy tokens: EOS does not end the answer."""
        ids = torch.tensor([list(prompt_ids)])
        result = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        largest = torch.cat(result.logits).topk(2).values
        return Reference(
            tokens=result.sequences[0, len(prompt_ids) :].tolist(),
            gaps=(largest[:, 0] - largest[:, 1]).tolist(),
        )

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return float32 logits (n, vocab) of all positions of one pass."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model(torch.tensor([list(token_ids)])).logits[0]
        return logits.float()

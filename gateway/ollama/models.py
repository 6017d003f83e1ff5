"""The served model as Ollama's clients read it: tags, details, what it is made of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gateway.model import ServedModel


def tag_body(model: ServedModel) -> dict[str, Any]:
    """Return an entry of ``GET /api/tags`` and ``GET /api/ps``; sizes are of the checkpoint."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
        "size": sum(info.num_bytes for info in model.manifest.tensors.values()),
        "digest": model.manifest.revision,
        "details": _details(model),
    }


def show_body(model: ServedModel) -> dict[str, Any]:
    """Return the answer of ``POST /api/show``."""
    family = _details(model)["family"]
    return {
        "modelfile": "",
        "parameters": "",
        "template": model.template.source if model.template is not None else "",
        "details": _details(model),
        "model_info": {
            "general.architecture": family,
            f"{family}.context_length": model.context_tokens,
            f"{family}.block_count": model.config.num_layers,
            f"{family}.embedding_length": model.config.hidden_size,
        },
        "capabilities": ["completion", *(["tools"] if model.tool_format is not None else [])],
        "modified_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
    }


def _details(model: ServedModel) -> dict[str, Any]:
    family = str(model.manifest.config.get("model_type", ""))
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": model.manifest.weights,
    }

"""Tensors of a model folder on this machine, for programs that are no node of a fog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nodes.landing import read_into
from nodes.stored import STORED_DTYPES


class FolderTensors:
    """Tensors of a checkpoint's folder, unchecked: for programs without a manifest."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            self._places |= {name: (path, 8 + size, entry) for name, entry in header.items()}

    def load_tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored; read, not mapped, as nodes do."""
        path, data_start, entry = self._places[name]
        start, end = entry["data_offsets"]
        data = bytearray(end - start)
        with path.open("rb", buffering=0) as file:
            file.seek(data_start + start)
            read_into(file.readinto, data)
        return torch.frombuffer(data, dtype=STORED_DTYPES[entry["dtype"]]).view(entry["shape"])

"""What a GGUF file says before its tensors: metadata, and where each tensor lies.

A model may come in several files, which llama-gguf-split names ``...-00001-of-00003.gguf``: the
first has the metadata, each has tensors.

Read by the package of the format's makers, which comes with the extra ``gguf``
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). No tensor is loaded but small
ones that are part of the description, such as factors of a rotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.model import ModelRefusedError

SUFFIX: Final = ".gguf"
_PART: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MISSING: Final = (
    "GGUF files need the package gguf on the gateway and on every node: pip install 'e2llm[gguf]'"
)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor.

    Attributes:
        file: Name of the file that it is in.
        kind: How its elements are stored, for example ``Q4_K``.
        shape: Row-major, which is the reverse of how the file has it.
        offset: First byte, counted from the start of the file.
    """

    name: str
    file: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class Metadata:
    """Keys and values of a file; those of its architecture by their names after the prefix.

    Args:
        path: For messages.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self._values = path, values

    @property
    def architecture(self) -> str:
        """Its name in llama.cpp; raises as `need`: not every part of a model says it."""
        name: str = self.need("general.architecture", str)
        return name

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value as it stands."""
        return self._values.get(key, default)

    def need(self, key: str, kind: type[Any]) -> Any:
        """Return a value of a type; `ModelRefusedError` where it is absent or another's."""
        value = self._values.get(key)
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            found = "is missing" if value is None else f"is wrong ({error})"
            raise ModelRefusedError(
                f"{self.path}: the key {key} {found}; convert the model again with a newer "
                "llama.cpp"
            ) from error

    def of_model(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture, for example ``attention.head_count``."""
        return self.get(f"{self.architecture}.{key}", default)

    def need_of_model(self, key: str, kind: type[Any]) -> Any:
        """Return a value of the architecture; raises as `need`."""
        return self.need(f"{self.architecture}.{key}", kind)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A model as found.

    Attributes:
        path: Of its only file, or of the first one.
        files: Names of all its files.
        factors: Elements of tensors that hold factors of a rotation, by name.
    """

    path: Path
    files: tuple[str, ...]
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]
    factors: Mapping[str, tuple[float, ...]]


def gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a model is in: the path itself, or the only one in its folder.

    Of a model in several files the first; None where there is none, or weights in safetensors
    beside it.

    Raises:
        ModelRefusedError: The folder has several models.
    """
    if path.suffix == SUFFIX and path.is_file():
        return path
    if any(path.glob("*.safetensors")):
        return None
    files = sorted({parts_of(file)[0] for file in path.glob(f"*{SUFFIX}")})
    if len(files) > 1:
        raise ModelRefusedError(
            f"{path} has several GGUF files ({', '.join(file.name for file in files[:3])}, ...); "
            "name one of them as the model"
        )
    return files[0] if files else None


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files that a model is in, by the name of any of them, first part first."""
    found = _PART.fullmatch(path.name)
    if found is None or not int(found[3]):
        return (path,)
    numbers = range(1, int(found[3]) + 1)
    return tuple(path.with_name(f"{found[1]}-{n:05}-of-{found[3]}{SUFFIX}") for n in numbers)


def file_model_name(path: Path) -> str:
    """Return what a model in a file is called: as the file, without the number of a part."""
    found = _PART.fullmatch(path.name)
    return path.stem if found is None else found[1]


def read_gguf(path: Path) -> GgufFile:
    """Read the heads of a model's files, which takes seconds for a large vocabulary.

    Args:
        path: Of its only file, or of any of them.

    Raises:
        ModelRefusedError: The package is not installed, or a file is missing, damaged or cut off.
    """
    paths = parts_of(path)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ModelRefusedError(
            f"{path} is one of {len(paths)} parts of a model, and {', '.join(missing[:3])} is not "
            "beside it; download all parts into one folder"
        )
    heads = [_read_head(part) for part in paths]
    first = heads[0]
    counts = {head.metadata.get("split.count", 1) for head in heads}
    tensors = {name: tensor for head in heads for name, tensor in head.tensors.items()}
    if counts != {len(paths)}:
        raise ModelRefusedError(
            f"{path} says that it is one of {max(counts)} parts of a model, its name that it is "
            f"one of {len(paths)}; name them ...-00001-of-{max(counts):05}{SUFFIX} and so on, or "
            "put them together with llama-gguf-split --merge"
        )
    num_tensors = first.metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != num_tensors:
        raise ModelRefusedError(
            f"{path}: the parts have {len(tensors)} of {num_tensors} tensors, so they are not "
            "those of one model; download all of them again"
        )
    factors = {name: values for head in heads for name, values in head.factors.items()}
    files = tuple(part.name for part in paths)
    return GgufFile(first.path, files, first.metadata, tensors, factors)


def _read_head(path: Path) -> GgufFile:
    try:
        import numpy as np
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelRefusedError(f"{path}: {_MISSING}") from error

    class PlainReader(GGUFReader):
        """Makes an array of every element: in views of a memory map that is slow and large."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    try:
        reader = PlainReader(path)
        values = {name: _plain(field.contents()) for name, field in reader.fields.items()}
        tensors = {
            tensor.name: GgufTensor(
                name=tensor.name,
                file=path.name,
                kind=tensor.tensor_type.name,
                shape=tuple(reversed(tensor.shape.tolist())),
                offset=int(tensor.data_offset),
                num_bytes=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
        factors = {
            tensor.name: tuple(map(_shortest, tensor.data.tolist()))
            for tensor in reader.tensors
            if tensor.name.startswith("rope_") and tensor.tensor_type.name == "F32"
        }
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        # The reader meets the end of a file that was cut off as an array of a wrong shape.
        raise ModelRefusedError(
            f"{path} is no GGUF file, is damaged or cut off ({error}); download it again"
        ) from error
    return GgufFile(path, (path.name,), Metadata(path, values), tensors, factors)


def _plain(value: Any) -> Any:
    return _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float:
    """Return the shortest decimal number that is the same in 32 bits: 1e-05, not 9.99...e-06.

    Numbers are stored in 32 bits, and computed with as they were meant.
    """
    import numpy as np

    return float(str(np.float32(value)))

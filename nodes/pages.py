"""Memory of its own from the system, which hands out a page when it is first written.

Unlike memory of the C library it goes back at once: whole when nothing refers to it any more,
or a range of it earlier. Knows nothing of tensors' meaning.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

import torch

_ADVICE_SMALL: Final = getattr(mmap, "MADV_NOHUGEPAGE", None)
_ADVICE_FORGET: Final = getattr(mmap, "MADV_DONTNEED", None)


class Pages:
    """A range of addresses; only what is written takes memory.

    Args:
        num_bytes: Size of the range, at least 1.

    Raises:
        OSError: The system refuses a range of this size.
    """

    def __init__(self, num_bytes: int) -> None:
        try:
            self._map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OverflowError, ValueError) as error:
            raise OSError(f"a range of {num_bytes} bytes") from error
        if _ADVICE_SMALL is not None:
            # Where all memory comes in huge pages, the first byte would take 2 MiB.
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(_ADVICE_SMALL)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor over the whole range, zero where nothing was written."""
        return torch.frombuffer(self._map, dtype=dtype).view(shape)

    def forget(self, start: int, end: int) -> None:
        """Give the pages that lie whole in bytes ``[start, end)`` back; they read as zeros.

        Where the system cannot do that they stay until the whole range goes.
        """
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if _ADVICE_FORGET is not None and start < end:
            self._map.madvise(_ADVICE_FORGET, start, end - start)

"""How a prompt begins: a chain of digests, one for each whole chunk of the grid. Pure.

A digest depends on all token ids up to the end of its chunk and on everything that decides
what their KV is (model, formats, grid). So two prompts whose n-th digests are equal have the
same KV in their first n chunks, and n digests say so without a token id.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from broker.plan import Plan

DIGEST_BYTES: Final = 16
"""Of SHA-256. Finding a second prompt with a given digest takes 2^128 tries."""


class Prefix(Struct, frozen=True, array_like=True):
    """The whole chunks that a prompt begins with.

    Attributes:
        chunk_tokens: Positions of a chunk.
        digests: `DIGEST_BYTES` for each chunk, each of everything up to its end.
    """

    chunk_tokens: int
    digests: bytes

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError("a chunk has at least one position")
        if len(self.digests) % DIGEST_BYTES:
            raise ValueError(f"digests of {DIGEST_BYTES} bytes each")

    @property
    def num_tokens(self) -> int:
        """Positions of all chunks."""
        return len(self.digests) // DIGEST_BYTES * self.chunk_tokens

    def within(self, num_tokens: int) -> Prefix:
        """Return the chunks that end by position ``num_tokens``."""
        num_chunks = max(num_tokens, 0) // self.chunk_tokens
        return Prefix(self.chunk_tokens, self.digests[: num_chunks * DIGEST_BYTES])

    def ends(self) -> list[tuple[int, bytes]]:
        """Return the end of each chunk and its digest, the longest beginning first."""
        return [
            (end, self._digest(end // self.chunk_tokens - 1))
            for end in range(self.num_tokens, 0, -self.chunk_tokens)
        ]

    def shared_tokens(self, other: Prefix) -> int:
        """Return how many leading positions are the same in both."""
        if other.chunk_tokens != self.chunk_tokens:
            return 0
        most = min(len(self.digests), len(other.digests)) // DIGEST_BYTES
        # Once different, always different: it is a chain.
        num_chunks = bisect_left(
            range(most), True, key=lambda chunk: self._digest(chunk) != other._digest(chunk)
        )
        return num_chunks * self.chunk_tokens

    def _digest(self, chunk: int) -> bytes:
        return self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]


def kv_identity(plan: Plan) -> str:
    """Return what decides the KV of given token ids, apart from the ids."""
    parts = (plan.revision, plan.weights, plan.kv_format, plan.kv_transfer, plan.chunk_tokens)
    return "|".join(map(str, parts))


def prefix_of(identity: str, token_ids: Sequence[int], chunk_tokens: int) -> Prefix:
    """Return the whole chunks of a prompt; ``identity`` is that of its KV (`kv_identity`)."""
    digest = identity.encode()
    digests = []
    for end in range(chunk_tokens, len(token_ids) + 1, chunk_tokens):
        ids = ",".join(map(str, token_ids[end - chunk_tokens : end]))
        digest = hashlib.sha256(digest + b"|" + ids.encode()).digest()[:DIGEST_BYTES]
        digests.append(digest)
    return Prefix(chunk_tokens, b"".join(digests))

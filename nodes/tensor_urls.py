"""The address of one tensor's bytes at a node that hands them on, and its signature. Pure.

``{base}/tensors/{checksum}?signature=...``: HMAC-SHA256 over the checksum, with the key of the
model's manifest, which comes over the bus to those whom the broker knows. The key itself never
travels over HTTP, and goes with the next manifests: a clock that is wrong harms nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qs, urlsplit

CHECKSUM: Final = re.compile(r"[0-9a-f]{64}")
_PATH: Final = "/tensors/"


def tensor_url(base: str, key: str, checksum: str) -> str:
    """Return the signed URL of a tensor at the node that announced ``base``."""
    return f"{base.rstrip('/')}{_PATH}{checksum}?signature={_sign(key, checksum)}"


def asked_tensor(target: str, keys: Iterable[str]) -> str | None:
    """Return the checksum that a request's target names; None: it is not signed by a key."""
    parts = urlsplit(target)
    checksum = parts.path.removeprefix(_PATH)
    if not parts.path.startswith(_PATH) or not CHECKSUM.fullmatch(checksum):
        return None
    signatures = parse_qs(parts.query).get("signature", [])
    if len(signatures) != 1:
        return None
    # Compared as bytes: `compare_digest` takes only ASCII text.
    given = signatures[0].encode("utf-8", "replace")
    known = any(hmac.compare_digest(_sign(key, checksum).encode(), given) for key in keys)
    return checksum if known else None


def _sign(key: str, checksum: str) -> str:
    return hmac.new(key.encode(), checksum.encode(), hashlib.sha256).hexdigest()

"""The weights server's URLs: who may read which file until when.

A node gets signed URLs in the manifest, over the bus, where it is known. The signature is
HMAC-SHA256 over revision, file and time of expiry, with a key that never leaves the host.
With them comes a key derived from it, with which nodes sign what they ask of each other.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

import msgspec

from broker.control import ModelManifest

_KEY_BYTES: Final = 32


class WrongSignatureError(Exception):
    """The URL is forged, changed or expired."""


def load_key(state: Path) -> bytes:
    """Return the key in the state folder; made at the first start, readable by its owner."""
    path = state / "weights.key"
    if not path.is_file():
        state.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        temporary.replace(path)
    return path.read_bytes()


class UrlSigner:
    """Makes and checks the URLs of ``GET /weights/{revision}/{file}``."""

    def __init__(self, key: bytes, public_url: str) -> None:
        self._key = key
        self._public_url = public_url.rstrip("/")

    def url(self, revision: str, file: str, expires: int) -> str:
        """Return a URL that is good until ``expires``, UTC seconds."""
        query = urlencode({"expires": expires, "signature": self._sign(revision, file, expires)})
        return f"{self._public_url}/weights/{revision}/{quote(file)}?{query}"

    def check(self, revision: str, file: str, query: Mapping[str, str], now_seconds: float) -> None:
        """Return if the query of a URL is good now.

        Raises:
            WrongSignatureError: It is not.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            raise WrongSignatureError("the URL has no valid time of expiry")
        # Compared as bytes: `compare_digest` takes only ASCII text.
        expected = self._sign(revision, file, int(expires)).encode()
        if not hmac.compare_digest(expected, signature.encode("utf-8", "replace")):
            raise WrongSignatureError("the URL's signature is wrong")
        if int(expires) <= now_seconds:
            raise WrongSignatureError("the URL has expired; read the model's manifest again")

    def tensor_key(self, revision: str, expires: int) -> str:
        """Return a secret by which nodes know each other, as long as these URLs are good."""
        text = f"between nodes\n{revision}\n{expires}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _sign(self, revision: str, file: str, expires: int) -> str:
        text = f"{revision}\n{file}\n{expires}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def with_urls(manifest: ModelManifest, signer: UrlSigner, expires: int) -> ModelManifest:
    """Return the manifest with a signed URL for each file that it names, and a fresh key."""
    urls = {file: [signer.url(manifest.revision, file, expires)] for file in manifest.files}
    return msgspec.structs.replace(
        manifest,
        urls=urls,
        expires_at=float(expires),
        tensor_key=signer.tensor_key(manifest.revision, expires),
    )

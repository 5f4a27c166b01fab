"""SGLang's page keys as block hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_DIGEST = re.compile(r"[0-9a-f]{64}")


def block_hash(key: str) -> bytes:
    """The 32 bytes that a key stands for: a SHA-256 in hexadecimal is taken as it is, any other text by its digest."""
    if _DIGEST.fullmatch(key):
        return bytes.fromhex(key)
    return hashlib.blake2b(key.encode(), digest_size=32, person=b"kvstored key").digest()


def block_hashes(keys: Iterable[str]) -> list[bytes]:
    """`block_hash` of each key."""
    return [block_hash(key) for key in keys]

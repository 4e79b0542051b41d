"""The checksum of a state (SPEC 6): a sum of record hashes, independent of order and chunking.

It catches bugs and decay, not attackers: those meet the signature of HEAD and the SHA-256 names.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from puller.wire.codec import MAX_KEY
from puller.wire.nodes import Large, Value

MODULUS = 1 << 128
_PREFIX = [n.to_bytes(4, "little") for n in range(MAX_KEY + 1)]


def record_hash(key: bytes, value: bytes) -> int:
    """xxh3_128 of the key's length (u32, little-endian), the key and the value, as an integer."""
    return xxhash.xxh3_128_intdigest(_PREFIX[len(key)] + key + value)


def record_hashes(keys: Sequence[bytes], values: Sequence[Value]) -> list[int | None]:
    """The hash of each record; None for a deleted one."""
    digest = xxhash.xxh3_128_intdigest
    try:
        parts = zip(map(_PREFIX.__getitem__, map(len, keys)), keys, values, strict=True)
        return list(map(digest, map(b"".join, parts)))  # type: ignore[arg-type]
    except TypeError:  # not all values are bytes
        return list(map(_hash_of, keys, values))


def _hash_of(key: bytes, value: Value) -> int | None:
    if isinstance(value, Large):
        return int.from_bytes(value.record_hash, "big")
    return None if value is None else record_hash(key, value)


def run_sum(keys: Sequence[bytes], values: Sequence[Value]) -> int:
    """The sum, modulo 2^128, of the hashes of a run's records; a deleted one adds nothing."""
    return sum_hashes(record_hashes(keys, values))


def sum_hashes(hashes: Sequence[int | None]) -> int:
    """The sum of hashes modulo 2^128; None counts as nothing."""
    return sum(hashes if None not in hashes else filter(None, hashes)) % MODULUS  # type: ignore[arg-type]


class RecordHasher:
    """The hash of one record whose value comes in parts."""

    def __init__(self, key: bytes) -> None:
        self._state = xxhash.xxh3_128(_PREFIX[len(key)] + key)

    def update(self, part: bytes) -> None:
        self._state.update(part)

    def digest(self) -> bytes:
        """16 bytes, big-endian."""
        return self._state.digest()


def check_large(value: Large, hasher: RecordHasher, size: int) -> bool:
    """Whether what was read of a large value is what the value declares (SPEC 5.3)."""
    return size == value.size and hasher.digest() == value.record_hash

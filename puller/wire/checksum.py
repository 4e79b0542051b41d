"""The checksum of a state (SPEC 6): a sum of record hashes, independent of order and chunking.

It catches bugs and decay, not attackers: those meet the signature of HEAD and the SHA-256 names.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from puller.wire.codec import MAX_KEY
from puller.wire.nodes import Large, Value

MODULUS = 1 << 128
Hash = bytes
"""A record hash: 16 bytes, big-endian."""

_PREFIX = [n.to_bytes(4, "little") for n in range(MAX_KEY + 1)]
_GAP = bytes(4)
_SLOT = 8 * (16 + len(_GAP))
"""Bits for a hash in a sum of up to 2^32 of them."""


def record_hash(key: bytes, value: bytes) -> Hash:
    """xxh3_128 of the key's length (u32, little-endian), the key and the value."""
    return xxhash.xxh3_128_digest(_PREFIX[len(key)] + key + value)


def plain_hashes(keys: Sequence[bytes], values: Sequence[Value]) -> list[Hash | None] | None:
    """The hash of each record; None where not all values are bytes."""
    parts = zip(map(_PREFIX.__getitem__, map(len, keys)), keys, values, strict=True)
    try:
        return list(map(xxhash.xxh3_128_digest, map(b"".join, parts)))  # type: ignore[arg-type]
    except TypeError:
        return None


def record_hashes(keys: Sequence[bytes], values: Sequence[Value]) -> list[Hash | None]:
    """The hash of each record; None for a deleted one."""
    hashes = plain_hashes(keys, values)
    return list(map(_hash_of, keys, values)) if hashes is None else hashes


def _hash_of(key: bytes, value: Value) -> Hash | None:
    if isinstance(value, Large):
        return value.record_hash
    return None if value is None else record_hash(key, value)


def run_sum(keys: Sequence[bytes], values: Sequence[Value]) -> int:
    """The sum, modulo 2^128, of the hashes of a run's records; a deleted one adds nothing."""
    return sum_hashes(record_hashes(keys, values))


def run_totals(keys: Sequence[bytes], values: Sequence[Value]) -> tuple[int, int]:
    """The sum of a run's hashes, and the total size in bytes of its large values."""
    hashes = plain_hashes(keys, values)
    if hashes is not None:
        return sum_hashes(hashes), 0
    return run_sum(keys, values), sum(value.size for value in values if isinstance(value, Large))


def sum_hashes(hashes: Sequence[Hash | None]) -> int:
    """The sum of hashes modulo 2^128; None counts as nothing."""
    try:
        joined = _GAP.join(hashes)  # type: ignore[arg-type]
    except TypeError:
        joined = _GAP.join(filter(None, hashes))
    return _sum_slots(int.from_bytes(joined, "big"), len(hashes)) % MODULUS


def _sum_slots(slots: int, count: int) -> int:
    """The sum of numbers that stand side by side in one, by adding its halves: no step is taken for each of them."""
    while count > 1:
        count -= count // 2
        bits = count * _SLOT
        slots = (slots >> bits) + (slots & ((1 << bits) - 1))
    return slots


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

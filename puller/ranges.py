"""Checksums of ranges of keys: where what is held differs from what was pulled, without another copy of it. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from puller.wire.checksum import MODULUS, Hash, sum_hashes
from puller.wire.codec import decoder, encode

MOST = 4096
"""Ranges that are kept; where there would be twice as many, neighbours are joined."""

Bounds = tuple[bytes, bytes | None]
"""The keys from the first one on, below the second one (None: to the end)."""

_decode = decoder(list[tuple[bytes, bytes]])


class Ranges:
    """Sums of record hashes, modulo 2^128, by ranges [bound, next bound); the first bound is the lowest key there is."""

    def __init__(self) -> None:
        self._bounds: list[bytes] = []
        self._sums: list[int] = []
        self._joined = 1
        self._last = 0

    @property
    def checksum(self) -> int:
        """The sum over all ranges."""
        return sum(self._sums) % MODULUS

    def extend(self, keys: Sequence[bytes], hashes: Sequence[Hash | None]) -> None:
        """Take a run of records above all that were taken before; mostly it becomes a range of its own."""
        if not keys:
            return
        if not self._bounds or self._last >= self._joined:
            self._bounds.append(keys[0] if self._bounds else b"")
            self._sums.append(0)
            self._last = 0
        self._sums[-1] += sum_hashes(hashes)
        self._last += 1
        if len(self._bounds) >= 2 * MOST:
            self._bounds = self._bounds[::2]
            self._sums = [a + b for a, b in zip(self._sums[::2], [*self._sums[1::2], 0], strict=False)]
            self._joined, self._last = 2 * self._joined, self._joined + self._last

    def change(self, keys: Sequence[bytes], hashes: Sequence[Hash | None], before: Sequence[Hash | None] = ()) -> None:
        """Put the hashes of a run, in key order, in the place of those `before`; None stands for no record."""
        if keys and not self._bounds:
            self._bounds, self._sums = [b""], [0]
        start = 0
        while start < len(keys):
            n = bisect_right(self._bounds, keys[start]) - 1
            upper = self._upper(n)
            end = len(keys) if upper is None else bisect_left(keys, upper, start)
            self._sums[n] += sum_hashes(hashes[start:end]) - sum_hashes(before[start:end])
            start = end

    def empty(self) -> Ranges:
        """The same ranges with nothing in them."""
        other = Ranges()
        other._bounds, other._sums = list(self._bounds), [0] * len(self._sums)
        return other

    def differing(self, other: Ranges) -> list[Bounds]:
        """Where two of the same bounds differ, neighbouring ranges as one."""
        found: list[Bounds] = []
        for n, (a, b) in enumerate(zip(self._sums, other._sums, strict=True)):
            if (a - b) % MODULUS:
                first = found.pop()[0] if found and found[-1][1] == self._bounds[n] else self._bounds[n]
                found.append((first, self._upper(n)))
        return found

    def _upper(self, n: int) -> bytes | None:
        return self._bounds[n + 1] if n + 1 < len(self._bounds) else None

    def dump(self) -> bytes:
        """The ranges as bytes, for a target's bookkeeping."""
        sums = [(number % MODULUS).to_bytes(16, "big") for number in self._sums]
        return encode(list(zip(self._bounds, sums, strict=True)))

    @classmethod
    def load(cls, data: bytes) -> Ranges:
        """What `dump` gave. Raises Invalid."""
        found = cls()
        for bound, number in _decode(data) if data else ():
            found._bounds.append(bound)
            found._sums.append(int.from_bytes(number, "big"))
        return found


def overlaps(suspects: Iterable[Bounds], lower: bytes, upper: bytes | None) -> bool:
    """Whether one of the ranges has keys in common with [lower, upper)."""
    return any((upper is None or first < upper) and (end is None or lower < end) for first, end in suspects)

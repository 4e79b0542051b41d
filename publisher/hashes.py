"""What a batch must know of the records it touches: from the local cache or through the tree, whichever costs less."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

from publisher import cache
from publisher.cache import Cache, Mark, Place, Unusable, hash_sum, marks
from publisher.published import Published
from publisher.snapshots import node_bytes
from publisher.sources.statcache import cache_folder
from publisher.tables import Records
from puller.errors import Conflict, NotFound
from puller.lookup import Finder
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import archive_path, parse_head
from puller.wire.nodes import Diff

READY, SMALL = 0.25, 4 << 20
"""The tree is read until lookups came to this share of what it takes to bring the cache up to date, and so many bytes."""
WIDEST = 64 << 20
"""Bytes of a diff over which the cache is built anew: what follows a diff is held in memory."""
HELD = 1 << 16
"""Changes that are held in memory before they are written into the cache: each may touch a page of its own."""
GIVEN_UP = 4 * HELD
"""Changes in memory at which a cache that takes none is given up."""


class Hashes:
    """The marks of records of the newest version.

    The cache lags behind: what changed since is held in memory. A change since is right on any version between, so
    the cache may be moved on by another process meanwhile, but not beyond the version that is asked for.
    """

    def __init__(self, folder: str | None, finder: Finder, *, eager: bool = False) -> None:
        """`folder` is where this dataset's cache is kept; None: there is to be none.

        `eager`: many lookups will follow, in processes of their own, so the cache is worth making at once.
        """
        self._folder = folder
        self._eager = eager
        self._finder = finder
        self._spent = 0
        self._cache: Cache | None = None
        self._looked = False
        self._base: Place | None = None
        self._at: Place | None = None
        self._since: dict[bytes, Mark | None] = {}

    def old(self, was: Published, keys: Sequence[bytes]) -> dict[bytes, Mark]:
        """The marks of those of some keys, in key order, that there are. Raises Conflict if HEAD was replaced."""
        if self._folder is not None:
            try:
                if self._is_ready(was, self._folder, keys):
                    return self._look(was, keys)
            except Unusable:
                self.forget()
                self._folder = None
        found = self._finder.find(was, keys)
        return {key: one for key, one in zip(found, marks(list(found), list(found.values())), strict=True) if one}

    def committed(self, before: Published, after: Published, changes: Mapping[bytes, Mark | None]) -> None:
        """Take up what led from one version to the next."""
        if self._cache is None or self._at != place_of(before):
            return
        self._since.update(changes)
        self._at = place_of(after)
        if len(self._since) > HELD:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory into the cache, unless another process moved it on."""
        if self._cache is None or self._base is None or self._at is None or not self._since:
            return
        try:
            if self._cache.advance(self._base, self._at, self._since):
                self._since = {}
                self._base = self._at
            elif len(self._since) > GIVEN_UP:
                self.forget()
        except Unusable:
            self.forget()

    def forget(self, *, for_good: bool = False) -> None:
        """Do without the cache from now on; `for_good` deletes it, too."""
        if self._cache is not None:
            if for_good:
                self._cache.delete()
            else:
                self._cache.close()
        self._cache = self._base = self._at = None
        self._since = {}

    def close(self) -> None:
        """Keep what is known, and let go of the cache."""
        self.flush()
        self.forget()

    def _look(self, was: Published, keys: Sequence[bytes]) -> dict[bytes, Mark]:
        assert self._cache is not None
        since = self._since
        place, found = self._cache.look([key for key in keys if key not in since])
        if place != self._base and not self._belongs(was, place):
            self._abandon(was)
            return self.old(was, keys)
        self._base = place
        for key in keys:
            if (one := since.get(key)) is not None:
                found[key] = one
        return found

    def _is_ready(self, was: Published, folder: str, keys: Sequence[bytes]) -> bool:
        """Bring the cache up to date, unless the tree is cheaper still; say whether it is."""
        if self._at != place_of(was):
            self._open(was, folder)
        if self._at == place_of(was):
            return True
        way = None if self._at is None else was.way(self._at.version, was.head.version)
        whole = node_bytes(was.reader, CHUNKS, was.head.snapshot, was.sizes) + sum(_sizes(was, was.chain))
        steps = [whole] if way is None else _sizes(was, way)
        self._spent += self._finder.cost(was, keys)
        if not self._eager and self._spent <= READY * min(whole, sum(steps)) + SMALL:
            return False
        if way is None or sum(steps) > whole or max(steps) > WIDEST:
            self.forget()
            self._cache = cache.build(folder, place_of(was), was.head.checksum, was.records())
            self._base = place_of(was)
        else:
            self._follow(was, way)
        self._at = place_of(was)
        self._spent = 0
        return True

    def _follow(self, was: Published, way: Sequence[Diff]) -> None:
        for diff in way:
            for keys, values in was.reader.diff(diff):
                self._since.update(zip(keys, marks(keys, values), strict=True))
            if len(self._since) > HELD and diff is not way[-1]:
                self._write_through(was, diff.b)

    def _write_through(self, was: Published, version: int) -> None:
        """Write changes up to a version on the way into the cache, as far as its HEAD says which one it is."""
        place = _archived(was, version)
        if place is not None:
            self._at = place
            self.flush()

    def _open(self, was: Published, folder: str) -> None:
        """Find a cache of this history, and forget one of another."""
        if self._at is not None and not self._belongs(was, self._at):
            self._abandon(was)
        if self._cache is not None or self._looked:
            return
        self._looked = True
        found = cache.find(folder)
        if found is None:
            return
        self._cache = found
        self._base = self._at = found.opened
        if not self._belongs(was, self._at):
            self._abandon(was)

    def _belongs(self, was: Published, place: Place) -> bool:
        """Whether a version is HEAD's, or one before it in the same history."""
        if place.version == was.head.version:
            return place == place_of(was)
        return (place.epoch, place.version) < (was.head.epoch, was.head.version) and _archived(
            was, place.version
        ) == place

    def _abandon(self, was: Published) -> None:
        """Forget a cache that is of no version up to HEAD. Raises Conflict if there is a newer HEAD by now."""
        if was.store.read_head()[1] != was.token:
            raise Conflict(f"somebody else published to {was.store.where} in the meantime")
        self.forget(for_good=True)


def place_of(was: Published) -> Place:
    """The version that is published."""
    return Place(was.head.epoch, was.head.version, was.head.publish_id)


def _sizes(was: Published, diffs: Iterable[Diff]) -> list[int]:
    return [node_bytes(was.reader, DIFFS, diff.tree, was.sizes) for diff in diffs]


def _archived(was: Published, version: int) -> Place | None:
    """An earlier version of HEAD's epoch, or None where its HEAD is not kept any more."""
    try:
        head = parse_head(was.store.get(archive_path(was.head.epoch, version)))
    except NotFound:
        return None
    return Place(head.epoch, head.version, head.publish_id)


class Changes:
    """The records of a batch that differ from what is published, and what they do to checksum and number of records."""

    def __init__(self, records: Records, hashes: Hashes, was: Published) -> None:
        keys = sorted(records)
        new = dict(zip(keys, marks(keys, [records[key] for key in keys]), strict=True))
        old = hashes.old(was, keys)
        self.records = records
        self.keys = [key for key in keys if new[key] != old.get(key)]
        self.marks: dict[bytes, Mark | None] = {key: new[key] for key in self.keys}
        gone = [old[key] for key in self.keys if key in old]
        put = [one for one in self.marks.values() if one is not None]
        self.sum = hash_sum(put) - hash_sum(gone)
        self.grown = len(put) - len(gone)
        self.added = sum(1 for key in self.keys if key not in old)
        self.deleted = len(self.keys) - len(put)


def cache_of(where: str, name: str) -> str | None:
    """The folder in which the record hashes of a dataset are cached; None where there is no place for caches."""
    folder = cache_folder()
    if folder is None:
        return None
    where = where if "://" in where else os.path.realpath(where)
    return os.path.join(folder, f"{name}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:16]}")

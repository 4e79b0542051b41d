"""Reading back what batches published, with the reading half alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from puller.errors import Invalid
from puller.fetch import FolderFetcher
from puller.plan import route
from puller.runs import live, merge
from puller.secret import unlock
from puller.tree import Reader
from puller.wire.checksum import run_sum
from puller.wire.head import Head, archive_path, parse_head
from puller.wire.nodes import Diff


def read_head(dest: str) -> Head:
    return unlock(parse_head(FolderFetcher(dest).fetch_head(None).data), None)[0]


def state_of(dest: str, head: Head | None = None) -> dict[bytes, bytes]:
    """The whole state of a version, its checksum and number of records checked."""
    head = head or read_head(dest)
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(FolderFetcher(dest), pool, cipher=unlock(head, None)[1])
        way = route(head.snapshot_version, head.version, diffs_of(reader, head))
        if way is None:
            raise Invalid("no diffs lead from the snapshot to HEAD")
        found = {}
        for keys, values in live(merge([reader.snapshot(head.snapshot), *map(reader.diff, way)])):
            found.update(zip(keys, map(reader.whole, keys, values), strict=True))
    assert (run_sum(list(found), list(found.values())), len(found)) == (head.checksum, head.records)
    return found


def diffs_of(reader: Reader, head: Head) -> list[Diff]:
    listed = [] if head.log is None else reader.search(reader.log(head.log), 0, head.version, [])
    return [*head.diffs, *listed]


def archived(dest: str, version: int) -> Head:
    return unlock(parse_head(FolderFetcher(dest).fetch(archive_path(1, version), 4096)), None)[0]

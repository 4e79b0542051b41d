"""What sources that read one table from one file share: the file, what it looked like, and sorting where that is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat as stats
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

from publisher.sources.base import Report, Unsorted, lazily
from publisher.sources.sorting import Duplicate, Rows, Sorter
from publisher.sources.statcache import StatCache, look, racy_since
from puller.errors import SourceError, UsageError
from puller.wire.keys import encode_key
from puller.wire.nodes import Run, is_ascending
from puller.wire.rows import Schema


class RowsFile:
    """A file of rows; `path` may be "-" for standard input.

    `schema` is what was published before: its key is used where none is given. Rows that are not in key order are
    sorted within `memory` bytes, and in temporary files beyond.
    """

    kind = "table"

    def __init__(
        self, path: str, key: Sequence[str], table: str, schema: Schema, *, memory: int, cache: StatCache | None
    ) -> None:
        self.where = path
        self._table = table
        self.report = Report()
        self._old = next((t for t in schema if t.name == table), None)
        self._key = list(key)
        if not self._key and self._old is not None:
            self._key = [self._old.columns[n].name for n in self._old.key]
        if not self._key:
            raise UsageError(f"{path}: say which field is the key of a row, with --key FIELD (repeatable)")
        self._memory = memory
        self._cache = cache
        self._looks: dict[bytes, bytes] = {}
        self.unsettled = False
        """Whether the file may change again and look the same."""
        self._sorted = True
        self._spool: IO[bytes] | None = None

    def size(self) -> int:
        """Bytes of all that is read. Raises OSError."""
        return os.path.getsize(self.where)

    def recall(self, state: bytes) -> list[bytes] | None:
        known = None if self._cache is None else self._cache.load(state)
        looks = self.looks()
        return [] if looks and known == looks else None

    def remember(self, state: bytes) -> None:
        if self._cache is not None and self._looks:
            self._cache.save(state, dict.fromkeys(self._looks, b"") if self.unsettled else self._looks)

    def looks(self) -> dict[bytes, bytes]:
        """What the file looks like now, before it is read, under the table and key that it is read with."""
        self._look()
        return self._looks

    def _look(self) -> None:
        limit = racy_since(time.time_ns())
        with contextlib.suppress(OSError):
            status = os.stat(self.where)
            if stats.S_ISREG(status.st_mode):
                self._looks = {encode_key(self._table, self._read_as()): look(status)}
                self.unsettled = max(status.st_ctime_ns, status.st_mtime_ns) >= limit

    def _read_as(self) -> list[str]:
        """What decides how the file is read."""
        return self._key

    def runs(self) -> Iterator[Run]:
        """In one pass if the rows are in key order; raises Unsorted at the first that is not, and then sorts.

        Where that shows before any run was given, they are sorted at once.
        """
        given = False
        while True:
            self.report = Report()
            self._again()
            if not self._looks:
                self._look()
            try:
                for keys, values in self._ordered() if self._sorted else self._sort():
                    given = True
                    yield keys, lazily(values)
            except Unsorted:
                if given:
                    raise
            else:
                return

    def lead(self) -> Run:
        """The schema, once all rows were read."""
        raise NotImplementedError

    def _again(self) -> None:
        """Forget what was learned of the rows."""
        raise NotImplementedError

    def _records(self) -> Iterator[Rows]:
        """All records in the order they come in."""
        raise NotImplementedError

    def _duplicate(self, key: bytes) -> SourceError:
        """The error for two rows with the same key, which names both."""
        raise NotImplementedError

    def _ordered(self) -> Iterator[Rows]:
        last = b""
        for keys, values in self._records():
            if keys and (keys[0] <= last or not is_ascending(keys)):
                self._sorted = False
                raise Unsorted
            if keys:
                last = keys[-1]
                yield keys, values

    def _sort(self) -> Iterator[Rows]:
        with Sorter(self._memory) as sorter:
            try:
                for keys, values in self._records():
                    sorter.add(keys, values)
                yield from sorter.runs()
            except Duplicate as error:
                raise self._duplicate(error.key) from error

    def _open(self) -> IO[bytes]:
        try:
            if self.where != "-":
                return open(self.where, "rb", buffering=0)
            if self._spool is None:
                self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - kept to be read again
                shutil.copyfileobj(sys.stdin.buffer, self._spool)
                self._spool.flush()
            copy = os.fdopen(os.dup(self._spool.fileno()), "rb")
            copy.seek(0)
            return copy
        except OSError as error:
            raise SourceError(f"{self.where} cannot be read: {error.strerror}; nothing was published") from error

"""A folder of files as source (kind `table`): one table a file, named as the file is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from publisher.sources.base import Report
from publisher.sources.rowsfile import RowsFile
from publisher.sources.statcache import StatCache
from puller.errors import SourceError, UsageError
from puller.wire import rows as wire
from puller.wire.keys import encode_element
from puller.wire.nodes import Run
from puller.wire.rows import SCHEMA_KEY, Schema

OURS = ".headwater"
"""What the names of bookkeeping end in, which lies beside copies."""


class SeveralSource:
    """Reads the tables of a folder, or those that are `wanted`, one after the other.

    A word of `key` that begins with a table's name and a point belongs to that table, any other one to every table that has
    none of its own. `make` gives the source of one file, from its path, key and table.
    """

    kind = "table"

    def __init__(
        self,
        folder: str,
        endings: Sequence[str],
        wanted: Sequence[str],
        key: Sequence[str],
        schema: Schema,
        make: Callable[[str, tuple[str, ...], str], RowsFile],
        *,
        strict: bool = False,
        cache: StatCache | None = None,
    ) -> None:
        self.where = folder
        self._old = schema
        self._cache = cache
        self._looks: dict[bytes, bytes] = {}
        paths, self._skipped = _find(folder, endings)
        if self._skipped and strict:
            name, why = self._skipped[0]
            raise SourceError(f"{os.path.join(folder, name)} cannot be published: {why}; nothing was published")
        if missing := [name for name in wanted if name not in paths]:
            raise SourceError(f"{folder} has no file for table {missing[0]!r}; nothing was published")
        names = sorted(wanted or paths, key=encode_element)
        known = {table.name for table in schema}
        keys = _keys_by_table(key, names)
        for name in names:
            if not keys[name] and name not in known:
                raise UsageError(
                    f"{paths[name]}: say which field is the key of a row, with --key FIELD for all tables or --key {name}.FIELD "
                    "for this one (repeatable)"
                )
        self._sources = [make(paths[name], keys[name], name) for name in names]
        self.report = Report(skipped=self._skipped)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(os.path.getsize(source.where) for source in self._sources)

    def recall(self, state: bytes) -> list[bytes] | None:
        known = None if self._cache is None else self._cache.load(state)
        self._looks = {}
        for source in self._sources:
            self._looks |= source.looks()
        return [] if self._looks and known == self._looks else None

    def remember(self, state: bytes) -> None:
        if self._cache is not None and self._looks:
            unsettled = any(source.unsettled for source in self._sources)
            self._cache.save(state, dict.fromkeys(self._looks, b"") if unsettled else self._looks)

    def runs(self) -> Iterator[Run]:
        """Raises Unsorted as its files do."""
        self.report = Report(skipped=self._skipped)
        for source in self._sources:
            yield from source.runs()
            self.report.bytes_read += source.report.bytes_read

    def lead(self) -> Run:
        places = {table.name: n for n, table in enumerate(self._old)}
        values = [value for source in self._sources for value in source.lead()[1]]
        tables = [table for value in values if isinstance(value, bytes) for table in wire.decode_schema(value)]
        tables.sort(key=lambda table: places.get(table.name, len(places)))
        return [SCHEMA_KEY], [wire.encode_schema(tables)]


def _find(folder: str, endings: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The files of a folder by their table, and what is left out, with the reason."""
    paths: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    with _errors(folder), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            table, ending = os.path.splitext(entry.name)
            if entry.name.startswith(".") or entry.name.endswith(OURS):
                continue
            if ending.lower() not in endings or not entry.is_file():
                skipped.append((entry.name, f"it is no file *{endings[0]}"))
            elif table in paths:
                raise SourceError(f"{folder} has two files for table {table!r}; nothing was published")
            else:
                paths[table] = entry.path
    if not paths:
        raise SourceError(f"{folder} holds no *{endings[0]} file; nothing was published")
    return paths, skipped


@contextlib.contextmanager
def _errors(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror}; nothing was published") from error


def _keys_by_table(key: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The key of each table; () for one that none was given for."""
    own: dict[str, list[str]] = {name: [] for name in names}
    common = []
    for word in key:
        fitting = [name for name in names if word.startswith(f"{name}.")]
        if fitting:
            name = max(fitting, key=len)
            own[name].append(word[len(name) + 1 :])
        else:
            common.append(word)
    return {name: tuple(fields or common) for name, fields in own.items()}

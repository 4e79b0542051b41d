"""Sources: what is published. `open_source` finds the one that fits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from publisher.sources.base import Source
from publisher.sources.statcache import StatCache, identity
from puller.errors import SourceError, UsageError
from puller.passwords import masked
from puller.postgresql import is_address
from puller.sqlitefile import is_database

if TYPE_CHECKING:
    from publisher.sources.kept import Kept
    from publisher.sources.rowsfile import RowsFile
    from puller.wire.rows import Schema


def form_of(path: str) -> str:
    """Which form of source `path` is. Raises SourceError if there is nothing, UsageError for another kind of file."""
    if path == "-":
        return "jsonl"
    if is_address(path):
        return "postgres"
    if not os.path.exists(path):
        raise SourceError(f"there is no {path}; nothing was published")
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, "HEAD")) and os.path.isdir(os.path.join(path, "chunks")):
            raise UsageError(
                f"{path} is a published dataset, not a source; to publish its files as they are, say --as folder"
            )
        return "folder"
    try:
        if is_database(path):
            return "sqlite"
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; nothing was published") from error
    ending = os.path.splitext(path)[1].lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    raise UsageError(
        f"{path}: cannot tell what this is; name it {', '.join(f'*{one}' for one in _ENDINGS)}, or say with --as what it is"
    )


FORMS = ("folder", "jsonl", "csv", "tsv", "parquet", "sqlite", "postgres")
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
}


def open_source(
    path: str,
    form: str | None,
    *,
    key: tuple[str, ...],
    tables: tuple[str, ...],
    name: str,
    schema: Schema,
    strict: bool,
    detect: bool = False,
    query: str | None = None,
    cached_for: str | None = None,
    kept: Kept | None = None,
) -> Source:
    """The source at `path`. `schema` is what was published before, `name` the dataset's.

    With `cached_for`, the store's address, what did not change since it was published there is not read again. `kept`
    is what a process remembers of a folder, and is told of changes there.
    """
    form = form or form_of(path)
    if detect and form not in ("csv", "tsv"):
        raise UsageError("--detect-types is for CSV; other sources say of which type a value is")
    if form == "postgres":
        return _open_postgres(path, key, tables, name, schema, strict, query)
    if query is not None:
        raise UsageError("--query is for PostgreSQL: postgresql://…")
    cache = None if cached_for is None or path == "-" else StatCache(cached_for, name, path)
    if form == "folder":
        from publisher.sources.folder import FolderSource

        if key or tables:
            raise UsageError("--key and --table belong to tables; a folder has none")
        return FolderSource(path, strict=strict, cache=cache if kept is None else kept.over(cache))
    if form == "sqlite":
        from publisher.sources.apart import apart
        from publisher.sources.sqlite import SQLiteSource

        reader = None if cached_for is None else identity(cached_for, name)
        return apart(SQLiteSource(path, tables, key, schema, strict=strict, cache=cache, reader=reader))
    if form == "parquet":
        from publisher.sources.apart import apart
        from publisher.sources.parquet import ParquetSource

        _check_one(path, tables)
        table = tables[0] if tables else None
        return apart(ParquetSource(path, key, table, schema, name=name, strict=strict, cache=cache))
    make = _Make(form, schema, detect)
    if os.path.isdir(path):
        from publisher.sources.apart import apart
        from publisher.sources.several import SeveralSource

        endings = [ending for ending, one in _ENDINGS.items() if one == form]
        several = SeveralSource(path, endings, tables, key, schema, make, strict=strict, cache=cache)
        return several if form == "jsonl" else apart(several)
    _check_one(path, tables)
    source = make(path, key, tables[0] if tables else schema[0].name if len(schema) == 1 else name, cache)
    if form == "jsonl":
        return source
    from publisher.sources.apart import apart

    return apart(source)


def _check_one(path: str, tables: tuple[str, ...]) -> None:
    if len(tables) > 1:
        raise UsageError(f"{path} holds one table; --table names it, and is given once")


@dataclass(frozen=True)
class _Make:
    """Makes the source of one file of rows."""

    form: str
    schema: Schema
    detect: bool

    def __call__(self, path: str, key: tuple[str, ...], table: str, cache: StatCache | None = None) -> RowsFile:
        if self.form == "jsonl":
            from publisher.sources.jsonl import JsonLinesSource

            return JsonLinesSource(path, key, table, self.schema, cache=cache)
        from publisher.sources.delimited import DelimitedSource

        tabs = self.form == "tsv"
        return DelimitedSource(path, key, table, self.schema, detect=self.detect, tabs=tabs, cache=cache)


def _open_postgres(
    address: str,
    key: tuple[str, ...],
    tables: tuple[str, ...],
    name: str,
    schema: Schema,
    strict: bool,
    query: str | None,
) -> Source:
    from publisher.sources.apart import apart
    from publisher.sources.postgres import PostgresSource

    if not is_address(address):
        raise UsageError(
            f"{masked(address)}: a PostgreSQL database is named by its address: postgresql://user@host/database"
        )
    if query is None:
        source = PostgresSource(address, tables, key, schema, strict=strict)
    elif len(tables) > 1:
        raise UsageError("a query gives one table; --table names it, and is given once")
    else:
        table = tables[0] if tables else schema[0].name if len(schema) == 1 else name
        source = PostgresSource(address, (), key, schema, query=query, name=table)
    return apart(source)

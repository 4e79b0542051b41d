"""A PostgreSQL database as source (kind `table`): its tables, or a query's rows, in one repeatable-read transaction, by COPY."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from publisher.sources import sorting
from publisher.sources.apart import LARGE
from publisher.sources.base import Report, Unsorted, lazily
from publisher.sources.catalogue import in_key_order, in_schema_order
from publisher.sources.pgcatalogue import Relation, Skipped, read_query, read_tables
from publisher.sources.sorting import Duplicate, Rows, Sorter
from puller import postgresql
from puller.errors import Invalid, SourceError, UsageError
from puller.passwords import masked
from puller.wire import rows as wire
from puller.wire.codec import MAX_INLINE, MAX_KEY, encode
from puller.wire.keys import decode_key, encode_keys
from puller.wire.nodes import Run, is_ascending
from puller.wire.rows import SCHEMA_KEY, Schema

if TYPE_CHECKING:
    import psycopg

_KEPT = "nothing was published"
_MEMORY = "64MB"
"""What the server may take to sort a table that no index gives in key order; beyond, it uses its own disk."""

_asked: set[str] = set()
"""The databases whose size was asked for in this process."""
_SHORT = MAX_INLINE // 4
"""Bytes of COPY's text of which no row can be that is over 1 MiB in the dataset."""


class PostgresSource:
    """Reads tables of a database's schema, or what a `query` gives, as they are at one moment.

    `address` is libpq's, as postgresql://user@host/database. `wanted` names tables, all are read without; `key` names
    columns for the key of one table, and always of a query, whose table is called `name`. `schema` is what was published
    before: the order of tables stays.

    The server sorts the rows; where its order turns out to be another than that of keys, they are sorted here, within
    `memory` bytes and in temporary files beyond.
    """

    kind = "table"

    def __init__(
        self,
        address: str,
        wanted: Sequence[str],
        key: Sequence[str],
        schema: Schema,
        *,
        query: str | None = None,
        name: str = "",
        strict: bool = False,
        memory: int = sorting.MEMORY,
    ) -> None:
        if query is not None and not key:
            raise UsageError("--query takes --key COLUMN (repeatable): by what its rows are told apart")
        self.where = masked(address)
        self._address = address
        self._wanted = list(wanted)
        self._key = list(key)
        self._old = schema
        self._query = query
        self._name = name
        self._strict = strict
        self._memory = memory
        self._sorting: set[str] = set()
        self._tables: list[Relation] = []
        self._has_long = False
        self.report = Report()

    def size(self) -> int:
        """About how many bytes will be read, as the server expects.

        The first time, as many as a process of its own is worth, unless psycopg is loaded: to load it takes as long as to
        start a process that does, and a publish is not to wait for both.
        """
        if self._address not in _asked and "psycopg" not in sys.modules:
            _asked.add(self._address)
            return LARGE
        with self._reading() as db:
            queries = [table.select(ordered=False) for table in self._survey(db)]
            plans = [postgresql.one_text(db, f"EXPLAIN (FORMAT JSON) {query}")[0]["Plan"] for query in queries]
        return int(sum(plan["Plan Rows"] * plan["Plan Width"] for plan in plans))

    def recall(self, state: bytes) -> list[bytes] | None:
        """PostgreSQL does not say what changed since: everything is read."""
        return None

    def remember(self, state: bytes) -> None:
        """Nothing is noted: the next publish reads everything."""

    def runs(self) -> Iterator[Run]:
        """In one transaction; raises Unsorted if the server's order of a table turns out not to be that of keys."""
        self.report = Report()
        with self._reading() as db:
            for table in in_key_order(self._survey(db)):
                for keys, values in self._in_order(db, table):
                    yield keys, lazily(values) if self._has_long else values

    def lead(self) -> Run:
        value = wire.encode_schema([table.table for table in self._tables])
        try:
            wire.decode_schema(value)
        except Invalid as error:
            raise SourceError(f"{self.where}: no dataset can hold this schema: {error}; {_KEPT}") from error
        return [SCHEMA_KEY], [value]

    @contextmanager
    def _reading(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in a read-only transaction, which sees one state while others write."""
        with (
            closing(postgresql.connect(self._address)) as db,
            postgresql.errors(self._address, SourceError, _KEPT),
        ):
            db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            db.execute(f"SET LOCAL work_mem = '{_MEMORY}'")
            yield db

    def _survey(self, db: psycopg.Connection[Any]) -> list[Relation]:
        """What there is to read, in schema order."""
        skipped: Skipped = []
        if self._query is not None:
            tables = [read_query(db, self._query, self._key, self._name)]
        else:
            tables, skipped = read_tables(db, self._wanted, self._key)
        if skipped and self._strict:
            raise SourceError(f"{skipped[0][0]} cannot be published: {skipped[0][1]}; {_KEPT}")
        self.report.skipped = skipped
        self._tables = in_schema_order(tables, self._old)
        return self._tables

    def _in_order(self, db: psycopg.Connection[Any], table: Relation) -> Iterator[Rows]:
        if table.name in self._sorting:
            yield from self._sorted(db, table)
            return
        last = b""
        for keys, values in self._records(db, table, ordered=True):
            if keys[0] <= last or not is_ascending(keys):
                self._sorting.add(table.name)
                raise Unsorted
            last = keys[-1]
            yield keys, values

    def _sorted(self, db: psycopg.Connection[Any], table: Relation) -> Iterator[Rows]:
        with Sorter(self._memory) as sorter:
            try:
                for keys, values in self._records(db, table, ordered=False):
                    sorter.add(keys, values)
                yield from sorter.runs()
            except Duplicate as error:
                row = list(decode_key(error.key)[1])
                raise SourceError(f"table {table.name!r} has two rows with the key {row!r:.200}; {_KEPT}") from error

    def _records(self, db: psycopg.Connection[Any], table: Relation, *, ordered: bool) -> Iterator[Rows]:
        """The records of a table, some at a time."""
        head = len(table.key)
        rest, final = itemgetter(slice(head, None)), itemgetter(-1)
        parser = postgresql.TextRows([table.columns[n].type for n in table.placed])
        for block in postgresql.rows_out(db, table.select(ordered=ordered)):
            try:
                rows = parser.rows(block)
                keys = encode_keys(table.name, [list(map(itemgetter(n), rows)) for n in range(head)])
            except Invalid as error:
                raise SourceError(f"table {table.name!r}: {error}; {_KEPT}") from error
            encoder = wire.encode_row if None in map(final, rows) else encode
            values = list(map(encoder, map(rest, rows)))
            if max(map(len, keys)) > MAX_KEY:
                raise SourceError(f"table {table.name!r} has a key of more than {MAX_KEY:,} bytes; {_KEPT}")
            if len(block) > wire.MAX_ROW and max(map(len, values)) > wire.MAX_ROW:
                raise SourceError(f"table {table.name!r} has a row of over 256 MiB; {_KEPT}")
            self._has_long = self._has_long or len(block) > _SHORT
            self.report.bytes_read += len(block)
            yield keys, values

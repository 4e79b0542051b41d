"""What lies in a database that a SQLite target keeps: bookkeeping, and records by key, in ranges and in order.

Bookkeeping is the table `_headwater`: the state, the schema, and the exact bytes of the few rows whose values
SQLite cannot hold as they are.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from puller.errors import Invalid, LocalEdits
from puller.parts import Parts, tables_in
from puller.targets.sqliteforms import BOOKKEEPING, Form
from puller.targets.tables import unreadable
from puller.wire import rows as wire
from puller.wire.codec import MAX_KEY
from puller.wire.keys import decode_keys, encode_element
from puller.wire.nodes import Run
from puller.wire.rows import SCHEMA_KEY, Schema, Table

RECORDS = "records"
"""The table of a dataset of kind `bytes`."""
_BATCH = 2000


def is_ours(db: sqlite3.Connection) -> bool:
    """Whether a target keeps a dataset in the database."""
    return BOOKKEEPING in tables_there(db)


def tables_there(db: sqlite3.Connection) -> list[str]:
    """The names of all tables and views."""
    rows = db.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return [name for (name,) in rows]


def store(db: sqlite3.Connection, name: str, key: bytes, value: bytes) -> None:
    """Put a value into the bookkeeping."""
    db.execute(f"REPLACE INTO {BOOKKEEPING} VALUES (?, ?, ?)", (name, key, value))


def schema_value(db: sqlite3.Connection) -> bytes | None:
    """The value of the schema record, if there is one."""
    row = db.execute(f"SELECT value FROM {BOOKKEEPING} WHERE name = 'schema'").fetchone()
    return None if row is None else row[0]


def tables_held(db: sqlite3.Connection, parts: Parts) -> Schema:
    """The tables of the schema that are made where some parts are held."""
    value = schema_value(db)
    return [] if value is None else tables_in(wire.decode_schema(value), parts)


@lru_cache(maxsize=8)
def forms_held(schema: bytes, parts: Parts) -> dict[bytes, Form]:
    """The tables of a schema that are held, by the first element of their keys, in key order."""
    forms = {encode_element(table.name): Form(table) for table in tables_in(wire.decode_schema(schema), parts)}
    return dict(sorted(forms.items()))


def records_held(db: sqlite3.Connection, kind: str, tables: Callable[[], Iterable[Table]]) -> Iterator[Run]:
    """All records that are held, in key order; the schema may be changed once it was taken, before any row is read.

    `tables` gives those that are there then.
    """
    if kind == "bytes":
        yield from _bytes_records(db)
        return
    value = schema_value(db)
    if value is not None:
        yield [SCHEMA_KEY], [value]
    for table in sorted(tables(), key=wire.table_bounds):
        yield from table_records(db, Form(table))


def _bytes_records(db: sqlite3.Connection) -> Iterator[Run]:
    """The records of a dataset of kind `bytes`, in key order."""
    for keys, values in batches(db.execute(f"SELECT key, value FROM {RECORDS} ORDER BY key")):
        _, checked = checked_bytes(keys, values)
        yield keys, list(checked)


def table_records(db: sqlite3.Connection, form: Form) -> Iterator[Run]:
    """The exact records of a table, in the order of its primary key."""
    cursor = db.execute(f"{form.select()} ORDER BY {form.order}")
    while rows := cursor.fetchmany(_BATCH):
        keys, values = records_of(db, form, rows)
        yield keys, list(values)


def bytes_range(db: sqlite3.Connection, lower: bytes, upper: bytes | None) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The records of a dataset of kind `bytes` in [lower, upper), in key order."""
    end, values = ("", (lower,)) if upper is None else ("AND key < ?", (lower, upper))
    cursor = db.execute(f"SELECT key, value FROM {RECORDS} WHERE key >= ? {end} ORDER BY key", values)
    for rows in _growing(cursor):
        yield [key for key, _ in rows], [value for _, value in rows]


def table_range(
    db: sqlite3.Connection, form: Form, lower: bytes, upper: bytes | None
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The records of a table in [lower, upper). SQLite finds about the first, and the keys decide."""
    where, values = form.from_(lower)
    cursor = db.execute(f"{form.select()} {where} ORDER BY {form.order}", values)
    for rows in _growing(cursor):
        keys, found = records_of(db, form, rows)
        start = bisect_left(keys, lower)
        stop = len(keys) if upper is None else bisect_left(keys, upper)
        if start < stop:
            yield keys[start:stop], found[start:stop]
        if stop < len(keys):
            return


def _growing(cursor: sqlite3.Cursor) -> Iterator[list[Any]]:
    """Rows in batches, small at first: many ranges are short."""
    size = 16
    while rows := cursor.fetchmany(size):
        yield rows
        size = min(2 * size, _BATCH)


def value_of(db: sqlite3.Connection, form: Form, key: bytes) -> bytes | None:
    """The value of a row that is in its table."""
    try:
        head = decode_keys(form.table.name, [key])[0]
    except Invalid:
        return None
    if len(head) != len(form.key):
        return None
    row = db.execute(f"{form.select()} WHERE {form.where()}", head).fetchone()
    keys, values = ([], []) if row is None else records_of(db, form, [row])
    return values[0] if keys == [key] else None  # SQLite finds 1 where '1' or true was asked for


def records_of(db: sqlite3.Connection, form: Form, rows: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """The exact records of rows read from SQLite; a row that was edited there is encoded as it is now."""
    try:
        keys, values = wire.records_of(form.table, list(map(form.unbind, rows)))
    except (Invalid, TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
        raise unreadable(form.table.name, error) from error
    if _has_exact(db):
        for n, (key, row) in enumerate(zip(keys, rows, strict=True)):
            exact = exact_bytes(db, key)
            if exact is not None:
                as_held = form.held(form.bind(wire.full_rows(form.table, [key], [exact]))[0])
                if list(map(_typed, as_held)) == list(map(_typed, row)):
                    values[n] = exact
    return keys, values


def checked_bytes(keys: list[bytes], values: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """Records as they are, if they are bytes still. Raises LocalEdits."""
    if {bytes}.issuperset(map(type, keys + values)) and max(map(len, keys)) <= MAX_KEY:
        return keys, values
    raise LocalEdits(
        f"table {RECORDS!r} holds a key or a value that no dataset can hold; nothing was written. Mend it, or pull with "
        "--overwrite",
        [RECORDS],
    )


def _typed(cell: Any) -> tuple[type, Any]:
    return type(cell), cell


def _has_exact(db: sqlite3.Connection) -> bool:
    return db.execute(f"SELECT 1 FROM {BOOKKEEPING} WHERE name = 'row' LIMIT 1").fetchone() is not None


def exact_bytes(db: sqlite3.Connection, key: bytes) -> bytes | None:
    """The exact bytes of a row that SQLite cannot hold as it is, or that does not fit its table yet."""
    row = db.execute(f"SELECT value FROM {BOOKKEEPING} WHERE name = 'row' AND key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def indexes_there(db: sqlite3.Connection, form: Form) -> list[str]:
    """The indexes of the dataset that are there."""
    ours = form.indexes()
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (form.table.name,))
    return [name for (name,) in rows if name in ours]


def make_indexes(db: sqlite3.Connection, form: Form) -> None:
    """Make the dataset's indexes."""
    for statement in form.indexes().values():
        db.execute(statement)


def batches(rows: Iterator[Any]) -> Iterator[Run]:
    """Rows of keys and values as runs."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= _BATCH:
            yield [k for k, _ in batch], [v for _, v in batch]
            batch = []
    if batch:
        yield [k for k, _ in batch], [v for _, v in batch]

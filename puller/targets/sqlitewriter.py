"""One step of a SQLite target, in one transaction: its tables made, changed and filled as the stream says."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from puller.errors import Invalid, NotOurs, SchemaChanged, TargetError
from puller.parts import Parts, tables_in
from puller.sqlitefile import quote
from puller.targets.base import Changes, Opening, State, count, whole
from puller.targets.sqliteforms import BOOKKEEPING, Form
from puller.targets.sqlitetables import (
    RECORDS,
    batches,
    checked_bytes,
    exact_bytes,
    indexes_there,
    make_indexes,
    records_held,
    records_of,
    schema_value,
    store,
    table_records,
    tables_held,
    tables_there,
)
from puller.wire import rows as wire
from puller.wire.checksum import Hash, record_hashes
from puller.wire.codec import MAX_INLINE
from puller.wire.keys import decode_keys, encode_element
from puller.wire.nodes import Value
from puller.wire.rows import SCHEMA_KEY, Schema, Table

_CELLS = 300
"""Cells that one INSERT takes at most where its rows are small; each statement costs as much as some rows do."""
_SMALL = 64 << 10
"""Bytes of a row up to which it is small: SQLite copies all that it is given for a statement."""


class Writer:
    """Writes into an open transaction; keeps what `puller.targets.base.Writer` promises."""

    def __init__(self, where: str, db: sqlite3.Connection, opening: Opening, parts: Parts, *, ours: bool) -> None:
        """`where` is the file for messages, `parts` are those held so far; `ours`: whether a dataset is."""
        self._where = where
        self._db = db
        self._opening = opening
        self._changes = Changes()
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {BOOKKEEPING} "
            "(name TEXT, key BLOB, value BLOB, PRIMARY KEY (name, key)) WITHOUT ROWID"
        )
        self._schema: Schema = tables_held(db, parts) if ours and opening.kind == "table" else []
        self._forms: dict[str, Form] = {table.name: Form(table) for table in self._schema}
        self._comparing = False
        self._leaving: set[str] = set()
        """Tables that are no more to be held: their rows go, then they."""
        if opening.replace:
            self._drop_all(ours)
        elif parts != opening.parts and opening.kind == "table":
            self._take_up_tables()

    def _take_up_tables(self) -> None:
        """Make the tables that are to be held from now on, beside those that are still to be emptied."""
        wanted = {table.name: table for table in tables_held(self._db, self._opening.parts)}
        self._leaving = self._forms.keys() - wanted.keys()
        for name in wanted.keys() - self._forms.keys():
            self._forms[name] = Form(wanted[name])
            self._create(self._forms[name])
        self._schema = [form.table for form in self._forms.values()]

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        count(self._changes, keys, values, opening=self._opening)
        given = len(keys)
        before: list[Hash | None] = []
        if self._opening.kind == "table" and keys and keys[0] == SCHEMA_KEY:
            if not self._opening.replace:
                before += record_hashes(keys[:1], [schema_value(self._db)])
            self._change_schema(whole(self._opening, keys[:1], values[:1])[0])
            keys, values = keys[1:], values[1:]
        if not self._opening.replace:
            before += record_hashes(keys, list(map(self._old, keys)))
        self._apply(keys, values)
        return before or [None] * given

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        self._comparing = True
        for keys, values in records_held(self._db, self._opening.kind, lambda: self._schema):
            yield keys, record_hashes(keys, values)  # type: ignore[misc]

    def _apply(self, keys: list[bytes], values: list[Value]) -> None:
        plain = whole(self._opening, keys, values)
        if self._opening.kind == "bytes":
            self._put_bytes(keys, plain)
            return
        for table, part, rest in wire.by_table(self._schema, keys, plain):
            self._put_rows(self._forms[table.name], part, rest)

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        found = map(self._old, keys)
        return [value if value is not None and len(value) <= MAX_INLINE else None for value in found]

    def overwrites(self) -> list[str]:
        return []

    def commit(self, state: State) -> Changes:
        for form in self._forms.values() if self._opening.replace else ():
            make_indexes(self._db, form)
        self._check_waiting()
        for name in self._leaving:
            self._drop_empty(self._forms[name])
        store(self._db, "state", b"", msgspec.msgpack.encode(state))
        self._db.execute("COMMIT")
        return self._changes

    def _check_waiting(self) -> None:
        """Refuse a state with rows that do not fit its schema: those that still wait as exact bytes for their change."""
        for (key,) in self._db.execute(f"SELECT key FROM {BOOKKEEPING} WHERE name = 'row'").fetchall():
            for table, keys, _ in wire.by_table(self._schema, [key], [None]):
                form = self._forms[table.name]
                head = decode_keys(table.name, keys)[0]
                if self._db.execute(f"SELECT 1 FROM {form.name} WHERE {form.where()}", head).fetchone() is None:
                    raise Invalid(f"table {table.name!r} has a row that does not fit its schema; nothing was written")

    def _drop_all(self, ours: bool) -> None:
        if self._opening.kind == "bytes":
            if not ours and RECORDS in tables_there(self._db):
                raise NotOurs(f"{self._where} has a table {RECORDS} of its own; nothing was written")
            self._db.execute(f"DROP TABLE IF EXISTS {RECORDS}")
            self._db.execute(f"CREATE TABLE {RECORDS} (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        for form in self._forms.values():
            self._db.execute(f"DROP TABLE IF EXISTS {form.name}")
        self._schema, self._forms = [], {}
        self._db.execute(f"DELETE FROM {BOOKKEEPING} WHERE name != 'state'")

    def _old(self, key: bytes) -> bytes | None:
        db = self._db
        if self._opening.kind == "bytes":
            row = db.execute(f"SELECT value FROM {RECORDS} WHERE key = ?", (key,)).fetchone()
            return None if row is None else checked_bytes([key], [row[0]])[1][0]
        if key == SCHEMA_KEY:
            return schema_value(db)
        prefix = wire.table_prefix(key)
        form = next((form for name, form in self._forms.items() if encode_element(name) == prefix), None)
        if form is None:  # a table that comes with this step
            return None
        row = db.execute(f"{form.select()} WHERE {form.where()}", decode_keys(form.table.name, [key])[0]).fetchone()
        return exact_bytes(db, key) if row is None else records_of(db, form, [row])[1][0]

    def _put_bytes(self, keys: list[bytes], values: list[Any]) -> None:
        pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
        self._db.executemany(f"REPLACE INTO {RECORDS} VALUES (?, ?)", pairs)
        gone = [(key,) for key, value in zip(keys, values, strict=True) if value is None]
        self._db.executemany(f"DELETE FROM {RECORDS} WHERE key = ?", gone)

    def _put_rows(self, form: Form, keys: list[bytes], values: list[Any]) -> None:
        db = self._db
        if not self._opening.replace:
            gone = [key for key, value in zip(keys, values, strict=True) if value is None]
            heads = decode_keys(form.table.name, gone)
            db.executemany(f"DELETE FROM {form.name} WHERE {form.where()}", heads)
            db.executemany(f"DELETE FROM {BOOKKEEPING} WHERE name = 'row' AND key = ?", [(key,) for key in keys])
            if gone:
                kept = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
                keys, values = [key for key, _ in kept], [value for _, value in kept]
        if keys:
            self._insert(form, keys, values)

    def _insert(self, form: Form, keys: list[bytes], values: list[bytes]) -> None:
        columns = wire.full_columns(form.table, keys, values)
        heads = [columns[n] for n in form.table.key]
        if any(None in head for head in heads):
            if form.is_rowid:
                raise TargetError(
                    f"table {form.table.name!r} has a row without a value in its key, which SQLite cannot hold; "
                    "pull into JSON Lines"
                )
            if not self._opening.replace:
                nulls = [head for head in zip(*heads, strict=True) if None in head]
                self._db.executemany(f"DELETE FROM {form.name} WHERE {form.where()}", nulls)
        bound = form.bind(list(zip(*columns, strict=True)))
        self._insert_rows(form, bound, small=max(map(len, values)) <= _SMALL)
        if form.may_differ(values):
            _, again = wire.records_of(form.table, [form.unbind(form.held(row)) for row in bound])
            exact = [("row", k, v) for k, v, found in zip(keys, values, again, strict=True) if v != found]
            self._db.executemany(f"REPLACE INTO {BOOKKEEPING} VALUES (?, ?, ?)", exact)

    def _insert_rows(self, form: Form, rows: list[tuple[Any, ...]], *, small: bool) -> None:
        """Insert rows, several a statement where they are small."""
        replace = not self._opening.replace
        some = max(1, _CELLS // len(form.columns)) if small else 1
        many = len(rows) // some * some
        cells = list(chain.from_iterable(rows[:many]))
        width = some * len(form.columns)
        statements = [cells[n : n + width] for n in range(0, len(cells), width)]
        self._db.executemany(form.insert(some, replace=replace), statements)
        self._db.executemany(form.insert(1, replace=replace), rows[many:])

    def _change_schema(self, value: bytes | None) -> None:
        """Take up a schema. Raises SchemaChanged where rows under the old one could not be found any more."""
        if value is None:
            raise Invalid("the dataset deletes its schema")
        whole_schema = wire.decode_schema(value)
        kept = {table.name for table in tables_in(whole_schema, self._opening.parts)} | self._leaving
        schema = [table for table in whole_schema if table.name in kept]
        old = {table.name: table for table in self._schema}
        new = {table.name: table for table in schema}
        gone: list[str] = []
        for name, table in old.items():
            if name not in new or _key(table) != _key(new[name]):
                self._drop_empty(self._forms[name])
                gone.append(name)
        old = {name: table for name, table in old.items() if name not in gone}
        forms = {table.name: Form(table) for table in schema}
        if len({name.lower() for name in forms}) != len(forms):
            raise TargetError("SQLite cannot tell apart two tables of the dataset whose names differ by case only")
        for name, form in forms.items():
            if name not in old:
                self._create(form)
            elif old[name] != form.table:
                if self._comparing and old[name].columns != form.table.columns[: len(old[name].columns)]:
                    raise SchemaChanged(f"columns of table {name!r} of {self._where} get another type")
                self._rebuild(self._forms[name], form)
        self._schema, self._forms = schema, forms
        self._leaving &= forms.keys()
        store(self._db, "schema", b"", value)

    def _drop_empty(self, form: Form) -> None:
        """Drop a table that goes or gets another primary key. Raises SchemaChanged if there is something in it."""
        columns = [name for (name,) in self._db.execute("SELECT name FROM pragma_table_info(?)", (form.table.name,))]
        if columns != form.names or self._db.execute(f"SELECT 1 FROM {form.name}").fetchone() is not None:
            raise SchemaChanged(f"table {form.table.name!r} of {self._where} goes, or gets another primary key")
        self._db.execute(f"DROP TABLE {form.name}")

    def _create(self, form: Form) -> None:
        taken = [name for name in tables_there(self._db) if name.lower() == form.table.name.lower()]
        if taken:
            raise NotOurs(
                f"{self._where} has a table {taken[0]} that headwater did not make; nothing was written. "
                "Rename it, or use a new file"
            )
        self._db.execute(form.create())
        if not self._opening.replace:
            make_indexes(self._db, form)

    def _move_out(self, form: Form) -> None:
        """Keep the rows of a table that is to go as exact bytes until the stream deletes them."""
        for keys, values in table_records(self._db, form):
            self._db.executemany(f"REPLACE INTO {BOOKKEEPING} VALUES ('row', ?, ?)", zip(keys, values, strict=True))
        self._db.execute(f"DROP TABLE {form.name}")

    def _rebuild(self, old: Form, new: Form) -> None:
        """Bring a table into its new form; every row keeps its exact bytes (SPEC 9.4)."""
        same = old.table.columns == new.table.columns[: len(old.table.columns)] and old.table.key == new.table.key
        for name in indexes_there(self._db, old):
            self._db.execute(f"DROP INDEX {quote(name)}")
        if same:
            for statement in new.add_columns(len(old.table.columns)):
                self._db.execute(statement)
        else:
            self._move_out(old)
            self._db.execute(new.create())
            prefix, end = wire.table_bounds(new.table)
            moved = self._db.execute(
                f"SELECT key, value FROM {BOOKKEEPING} WHERE name = 'row' AND key >= ? AND key < ?", (prefix, end)
            ).fetchall()
            self._db.execute(f"DELETE FROM {BOOKKEEPING} WHERE name = 'row' AND key >= ? AND key < ?", (prefix, end))
            for keys, values in batches(iter(moved)):
                self._insert_loosely(new, keys, values)  # type: ignore[arg-type]
        make_indexes(self._db, new)

    def _insert_loosely(self, form: Form, keys: list[bytes], values: list[bytes]) -> None:
        """Insert rows of the old schema; those that do not fit wait as exact bytes for the stream to replace them."""
        try:
            self._insert(form, keys, values)
        except Invalid:
            for key, value in zip(keys, values, strict=True):
                try:
                    self._insert(form, [key], [value])
                except Invalid:
                    self._db.execute(f"REPLACE INTO {BOOKKEEPING} VALUES ('row', ?, ?)", (key, value))


def _key(table: Table) -> list[wire.Column]:
    return [table.columns[n] for n in table.key]

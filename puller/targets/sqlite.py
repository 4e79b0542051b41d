"""A SQLite database as target (kinds `table` and `bytes`): real columns, and one transaction a step.

Bookkeeping is the table `_headwater`: the state, the schema, and the exact bytes of the few rows whose values
SQLite cannot hold as they are (NaN, -0.0, booleans and JSON in a column of type any).
"""

from __future__ import annotations

import os
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec

from puller.errors import Invalid, LocalEdits, NotOurs, SchemaChanged, TargetError
from puller.parts import WHOLE, Parts, tables_in
from puller.sqlitefile import quote
from puller.targets.base import Changes, Check, Opening, State, check_held, count, whole
from puller.targets.reading import Connections
from puller.wire import rows as wire
from puller.wire.checksum import MODULUS, Hash, record_hashes, run_sum
from puller.wire.codec import MAX_INLINE, MAX_KEY
from puller.wire.keys import decode_key, decode_keys, encode_element
from puller.wire.nodes import Run, Value
from puller.wire.rows import SCHEMA_KEY, Json, Schema, Table

BOOKKEEPING = "_headwater"
RECORDS = "records"
MAGIC = b"SQLite format 3\0"
_BATCH = 2000
_CELLS = 300
"""Cells that one INSERT takes at most where its rows are small; each statement costs as much as some rows do."""
_SMALL = 64 << 10
"""Bytes of a row up to which it is small: SQLite copies all that it is given for a statement."""
_TYPES = {
    "int64": "INTEGER",
    "float64": "REAL",
    "text": "TEXT",
    "blob": "BLOB",
    "bool": "BOOLEAN",
    "json": "TEXT",
    "any": "",
}

_CLASSES = {"int64": int, "float64": float, "text": str, "blob": bytes, "bool": bool}


class SQLiteTarget:
    """Keeps tables of a SQLite database equal to a dataset; other tables are left alone."""

    kinds: tuple[str, ...] = ("table", "bytes")
    gives_values = True

    def __init__(self, path: str) -> None:
        self.where = path
        self.partial = f"{path}.headwater-partial"
        self._db: sqlite3.Connection | None = None
        self._connections = Connections(path, _is_ours)

    def state(self) -> State | None:
        if not os.path.exists(self.where) or os.path.getsize(self.where) == 0:
            return None
        with self.errors():
            return self._stored(self._open())

    def is_there(self) -> bool:
        with self.errors():
            return self.state() is None or not self.missing()

    def missing(self) -> list[str]:
        """The tables of the dataset that are not in the database any more, and what a step needs of those that are."""
        db = self._open()
        there = set(_tables(db))
        missing = []
        for name, columns, key in self._made():
            if name not in there:
                missing.append(name)
                continue
            found = db.execute("SELECT lower(name), pk FROM pragma_table_info(?)", (name,)).fetchall()
            names = {column for column, _ in found}
            missing += [f"{name}.{column}" for column in columns if column.lower() not in names]
            if [column for column, place in sorted(found, key=itemgetter(1)) if place] != [one.lower() for one in key]:
                missing.append(f"{name}'s primary key")
        return missing

    def _made(self) -> list[tuple[str, list[str], list[str]]]:
        """The tables of the dataset as they were made: name, columns, primary key."""
        db = self._open()
        state = self._stored(db)
        if state is None:
            return []
        if state.kind == "bytes":
            return [(RECORDS, ["key", "value"], ["key"])]
        forms = map(Form, _tables_held(db, state.parts))
        return [(f.table.name, f.names, [f.names[n] for n in f.table.key]) for f in forms]

    def remember(self, state: State, was: State) -> None:
        with self.errors():
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            held = self._stored(db)
            if held is not None and held.mark == was.mark:
                _store(db, "state", b"", msgspec.msgpack.encode(state))
            db.execute("COMMIT")

    def close(self) -> None:
        self._connections.close()
        self._connections = Connections(self.where, _is_ours)
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def reading(self) -> Iterator[_Reading]:
        """A read transaction of its own connection: a step that commits meanwhile does not show in it."""
        with ExitStack() as stack:
            db = state = None
            with self.errors():
                if os.path.exists(self.where) and os.path.getsize(self.where):
                    db = stack.enter_context(self._connections.snapshot())
                    state = self._stored(db)
            yield _Reading(self, db, state)

    @contextmanager
    def writer(self, opening: Opening) -> Iterator[_Writer]:
        created = not os.path.lexists(self.where)
        with self.errors():
            db = self._open()
            try:
                db.execute("BEGIN IMMEDIATE")
                state = self._stored(db)
                check_held(state, opening, self.where)
                ours = state is not None
                foreign = [name for name in _tables(db) if name != BOOKKEEPING]
                if not ours and foreign and not opening.adopt:
                    raise NotOurs(
                        f"{self.where} holds tables that headwater did not make ({', '.join(foreign[:5])}); nothing was "
                        "written. Use a new file, or --adopt to add the dataset's tables to it"
                    )
                if ours and opening.replace and not opening.overwrite:
                    self._check_edits()
                yield _Writer(self, db, opening, WHOLE if state is None else state.parts, ours=ours)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if created and self._stored(db) is None:
                    self.close()
                    os.unlink(self.where)

    def records(self) -> Iterator[Run]:
        with self.errors():
            db = self._open()
            state = self._stored(db)
            if state is not None:
                tables = () if state.kind == "bytes" else _tables_held(db, state.parts)
                yield from _records_held(db, state.kind, lambda: tables)

    def check(self) -> Check:
        check = Check(0, 0)
        with self.errors():
            check.missing = self.missing()
        if check.missing:
            return check
        try:
            for keys, values in self.records():
                check.records += len(keys)
                check.checksum = (check.checksum + run_sum(keys, values)) % MODULUS
        except LocalEdits as error:
            check.differing += error.names
        return check

    def _check_edits(self) -> None:
        """Raise LocalEdits if replacing everything would lose something."""
        state, missing = self._stored(self._open()), self.missing()
        assert state is not None
        if missing and missing != [name for name, _, _ in self._made()]:
            raise LocalEdits(
                f"tables or columns of the dataset are gone from {self.where} ({', '.join(missing[:5])}); nothing was "
                "written. To write all of them again: pull with --overwrite",
                missing,
            )
        extra = [] if missing or state.kind == "bytes" else self._extra_columns()
        if extra:
            raise LocalEdits(
                f"{self.where} has columns that headwater did not make ({', '.join(extra[:5])}), and their tables must be "
                "written anew; nothing was written. Move them away, or pull with --overwrite",
                extra,
            )
        if not missing and f"{self.check().checksum:032x}" != state.checksum:
            raise LocalEdits(
                f"rows of {self.where} were changed since they were pulled, and its tables must be written anew; nothing was "
                "written. Move your changes away, or pull with --overwrite"
            )

    def _extra_columns(self) -> list[str]:
        db, extra = self._open(), []
        state = self._stored(db)
        for form in map(Form, () if state is None else _tables_held(db, state.parts)):
            rows = db.execute("SELECT name FROM pragma_table_info(?)", (form.table.name,))
            extra += [f"{form.table.name}.{name}" for (name,) in rows if name not in form.names]
        return extra

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            if os.path.isdir(self.where):
                raise TargetError(f"{self.where} is a folder, not a SQLite database; nothing was written")
            if os.path.exists(self.where) and not self._is_database():
                raise NotOurs(f"{self.where} is a file, but no SQLite database; nothing was written")
            os.makedirs(os.path.dirname(os.path.abspath(self.where)), exist_ok=True)
            self._db = sqlite3.connect(self.where, isolation_level=None, timeout=10.0)
            self._db.execute("PRAGMA cache_size=-65536")
        return self._db

    def _is_database(self) -> bool:
        """Whether the file is a database, or empty. It must not be opened but by SQLite (`puller.sqlitefile`)."""
        db = sqlite3.connect(self.where, timeout=10.0)
        try:
            db.execute("PRAGMA schema_version")
        except sqlite3.DatabaseError as error:
            if "not a database" not in str(error):
                raise
            with open(self.where, "rb") as file:  # no lock on such a file is worth anything
                if file.read(len(MAGIC)) == MAGIC:
                    raise
            return False
        finally:
            db.close()
        return True

    def _stored(self, db: sqlite3.Connection) -> State | None:
        if BOOKKEEPING not in _tables(db):
            return None
        row = db.execute(f"SELECT value FROM {BOOKKEEPING} WHERE name = 'state'").fetchone()
        try:
            return None if row is None else msgspec.msgpack.decode(row[0], type=State)
        except (msgspec.DecodeError, TypeError) as error:
            raise TargetError(
                f"the bookkeeping of {self.where} is damaged ({error}); what was there was kept. Pull into a new file"
            ) from error

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of SQLite and of the system as TargetError."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise TargetError(
                f"{self.where} does not take a row ({error}); nothing was written. A constraint, trigger or table of "
                "yours, or two keys that SQLite holds for equal, stand in the way"
            ) from error
        except sqlite3.DatabaseError as error:
            if "decode to UTF-8" in str(error):
                raise LocalEdits(
                    f"{self.where} was changed since it was pulled: a text in it is no UTF-8; what was "
                    "there was kept. Mend it, or pull with --overwrite",
                    [self.where],
                ) from error
            damaged = "malformed" in str(error) or "not a database" in str(error)
            advice = ". The file is damaged: delete it, and pull again" if damaged else ""
            raise TargetError(f"{self.where} cannot be used: {error}; what was there was kept{advice}") from error
        except (sqlite3.Error, OverflowError) as error:
            raise TargetError(f"{self.where} cannot be used: {error}; what was there was kept") from error
        except OSError as error:
            raise TargetError(f"{self.where} cannot be used: {error.strerror}; what was there was kept") from error


class _Reading:
    """One state, as a read transaction sees it; rows are what the tables hold, edited or not."""

    lasting = True

    def __init__(self, target: SQLiteTarget, db: sqlite3.Connection | None, state: State | None) -> None:
        self.state = state
        self._target = target
        self._db = db

    def get(self, key: bytes) -> bytes | None:
        if self._db is None or self.state is None:
            return None
        with self._target.errors():
            if self.state.kind == "bytes":
                row = self._db.execute(f"SELECT value FROM {RECORDS} WHERE key = ?", (key,)).fetchone()
                return None if row is None else row[0]
            value = _schema_value(self._db)
            if key == SCHEMA_KEY or value is None:
                return value
            form = _forms(value, self.state.parts).get(wire.table_prefix(key))
            return None if form is None else _value(self._db, form, key)

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[tuple[list[bytes], list[bytes]]]:
        if self._db is None or self.state is None:
            return
        with self._target.errors():
            if self.state.kind == "bytes":
                yield from _bytes_range(self._db, lower, upper)
                return
            value = _schema_value(self._db)
            if value is None:
                return
            if lower == SCHEMA_KEY and (upper is None or upper > SCHEMA_KEY):
                yield [SCHEMA_KEY], [value]
            for prefix, form in _forms(value, self.state.parts).items():
                if prefix + b"\xff" > lower and (upper is None or prefix < upper):
                    yield from _table_range(self._db, form, lower, upper)


@lru_cache(maxsize=8)
def _forms(schema: bytes, parts: Parts) -> dict[bytes, Form]:
    """The tables of a schema that are held, by the first element of their keys, in key order."""
    forms = {encode_element(table.name): Form(table) for table in tables_in(wire.decode_schema(schema), parts)}
    return dict(sorted(forms.items()))


def _value(db: sqlite3.Connection, form: Form, key: bytes) -> bytes | None:
    """The value of a row that is in its table."""
    try:
        head = decode_keys(form.table.name, [key])[0]
    except Invalid:
        return None
    if len(head) != len(form.key):
        return None
    row = db.execute(f"{form.select()} WHERE {form.where()}", head).fetchone()
    keys, values = ([], []) if row is None else _records(db, form, [row])
    return values[0] if keys == [key] else None  # SQLite finds 1 where '1' or true was asked for


def _bytes_range(
    db: sqlite3.Connection, lower: bytes, upper: bytes | None
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    end, values = ("", (lower,)) if upper is None else ("AND key < ?", (lower, upper))
    cursor = db.execute(f"SELECT key, value FROM {RECORDS} WHERE key >= ? {end} ORDER BY key", values)
    for rows in _growing(cursor):
        yield [key for key, _ in rows], [value for _, value in rows]


def _table_range(
    db: sqlite3.Connection, form: Form, lower: bytes, upper: bytes | None
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The records of a table in [lower, upper). SQLite finds about the first, and the keys decide."""
    where, values = form.from_(lower)
    cursor = db.execute(f"{form.select()} {where} ORDER BY {', '.join(form.key)}", values)
    for rows in _growing(cursor):
        keys, found = _records(db, form, rows)
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


class Form:
    """How a table of a dataset looks in SQLite, and the statements for it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        if not table.name or "\0" in table.name or table.name.lower().startswith("sqlite_"):
            raise TargetError(f"SQLite has no room for a table of the name {table.name!r}; pull into JSON Lines")
        if table.name.lower() == BOOKKEEPING:
            raise TargetError(f"a table of the name {table.name!r} would meet headwater's bookkeeping")
        for n in table.key:
            if table.columns[n].type == "any":
                raise TargetError(
                    f"column {table.columns[n].name!r} of the primary key holds several types; SQLite could not keep "
                    "1, 1.0 and true apart. Pull into JSON Lines"
                )
        self.names = _column_names(table)
        self.name = quote(table.name)
        self.columns = [quote(name) for name in self.names]
        self.key = [self.columns[n] for n in table.key]
        self.is_rowid = len(table.key) == 1 and table.columns[table.key[0]].type == "int64"
        self.bools = [n for n, column in enumerate(table.columns) if column.type == "bool"]
        self.jsons = [n for n, column in enumerate(table.columns) if column.type == "json"]
        self.anys = [n for n, column in enumerate(table.columns) if column.type == "any"]

    def create(self) -> str:
        """CREATE TABLE, with a rowid alias for a single integer key."""
        kinds = [_TYPES[column.type] for column in self.table.columns]
        parts = [f"{name} {kind}".rstrip() for name, kind in zip(self.columns, kinds, strict=True)]
        return f"CREATE TABLE {self.name} ({', '.join(parts)}, PRIMARY KEY ({', '.join(self.key)}))"

    def insert(self, rows: int, *, replace: bool) -> str:
        """INSERT of some rows; with `replace`, over those with the same keys."""
        columns, marks = ", ".join(self.columns), ", ".join("?" * len(self.columns))
        into = f"INSERT INTO {self.name} ({columns}) VALUES {', '.join([f'({marks})'] * rows)}"
        if not replace:
            return into
        rest = [self.columns[n] for n in self.table.value_columns]
        update = ", ".join(f"{name} = excluded.{name}" for name in rest)
        action = f"DO UPDATE SET {update}" if update else "DO NOTHING"
        return f"{into} ON CONFLICT ({', '.join(self.key)}) {action}"

    def where(self) -> str:
        """The condition that finds one row by its key."""
        return " AND ".join(f"{name} IS ?" for name in self.key)

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether values are of the types of the key's first columns, and not nil: SQLite compares them as keys are."""
        types = [self.table.columns[n].type for n in self.table.key]
        return all(type(value) is _CLASSES[type_] for value, type_ in zip(values, types, strict=False))

    def from_(self, bound: bytes) -> tuple[str, Sequence[Any]]:
        """A condition, with its values, that all rows from a bound in key order on meet; earlier ones may, too."""
        try:
            values = decode_key(bound)[1][: len(self.key)] if bound > encode_element(self.table.name) else ()
        except Invalid:
            values = ()
        while values and not self.fits(values):
            values = values[:-1]
        if not values:
            return "", ()
        marks = ", ".join("?" * len(values))
        return f"WHERE ({', '.join(self.key[: len(values)])}) >= ({marks})", values

    def select(self) -> str:
        """All columns, in the dataset's order."""
        return f"SELECT {', '.join(self.columns)} FROM {self.name}"

    def bind(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Rows as SQLite takes them: JSON as text."""
        if not self.jsons and not self.anys:
            return rows
        return [tuple(str(cell.data, "utf-8") if type(cell) is Json else cell for cell in row) for row in rows]

    def unbind(self, row: Sequence[Any]) -> Sequence[Any]:
        """A row of SQLite as the dataset has it."""
        if not self.bools and not self.jsons:
            return row
        cells = list(row)
        for n in self.bools:
            if cells[n] in (0, 1):
                cells[n] = bool(cells[n])
        for n in self.jsons:
            if isinstance(cells[n], str):
                cells[n] = Json(wire.JSON_EXT, cells[n].encode())
        return cells


class _Writer:
    def __init__(
        self, target: SQLiteTarget, db: sqlite3.Connection, opening: Opening, parts: Parts, *, ours: bool
    ) -> None:
        self._target = target
        self._db = db
        self._opening = opening
        self._changes = Changes()
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {BOOKKEEPING} "
            "(name TEXT, key BLOB, value BLOB, PRIMARY KEY (name, key)) WITHOUT ROWID"
        )
        self._schema: Schema = _tables_held(db, parts) if ours and opening.kind == "table" else []
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
        wanted = {table.name: table for table in _tables_held(self._db, self._opening.parts)}
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
                before += record_hashes(keys[:1], [_schema_value(self._db)])
            self._change_schema(whole(self._opening, keys[:1], values[:1])[0])
            keys, values = keys[1:], values[1:]
        if not self._opening.replace:
            before += record_hashes(keys, list(map(self._old, keys)))
        self._apply(keys, values)
        return before or [None] * given

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        self._comparing = True
        for keys, values in _records_held(self._db, self._opening.kind, lambda: self._schema):
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
            _make_indexes(self._db, form)
        self._check_waiting()
        for name in self._leaving:
            self._drop_empty(self._forms[name])
        _store(self._db, "state", b"", msgspec.msgpack.encode(state))
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
            if not ours and RECORDS in _tables(self._db):
                raise NotOurs(f"{self._target.where} has a table {RECORDS} of its own; nothing was written")
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
            return None if row is None else _checked([key], [row[0]])[1][0]
        if key == SCHEMA_KEY:
            return _schema_value(db)
        for table, keys, _ in wire.by_table(self._schema, [key], [None]):
            form = self._forms[table.name]
            head = decode_keys(table.name, keys)[0]
            row = db.execute(f"{form.select()} WHERE {form.where()}", head).fetchone()
            return _exact(db, key) if row is None else _records(db, form, [row])[1][0]
        return None

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
        if _may_differ(form, values):
            _, again = wire.records_of(form.table, [form.unbind(_held(form, row)) for row in bound])
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
                    raise SchemaChanged(f"columns of table {name!r} of {self._target.where} get another type")
                self._rebuild(self._forms[name], form)
        self._schema, self._forms = schema, forms
        self._leaving &= forms.keys()
        _store(self._db, "schema", b"", value)

    def _drop_empty(self, form: Form) -> None:
        """Drop a table that goes or gets another primary key. Raises SchemaChanged if there is something in it."""
        columns = [name for (name,) in self._db.execute("SELECT name FROM pragma_table_info(?)", (form.table.name,))]
        if columns != form.names or self._db.execute(f"SELECT 1 FROM {form.name}").fetchone() is not None:
            raise SchemaChanged(f"table {form.table.name!r} of {self._target.where} goes, or gets another primary key")
        self._db.execute(f"DROP TABLE {form.name}")

    def _create(self, form: Form) -> None:
        taken = [name for name in _tables(self._db) if name.lower() == form.table.name.lower()]
        if taken:
            raise NotOurs(
                f"{self._target.where} has a table {taken[0]} that headwater did not make; nothing was written. "
                "Rename it, or use a new file"
            )
        self._db.execute(form.create())
        if not self._opening.replace:
            _make_indexes(self._db, form)

    def _move_out(self, form: Form) -> None:
        """Keep the rows of a table that is to go as exact bytes until the stream deletes them."""
        for keys, values in table_records(self._db, form):
            self._db.executemany(f"REPLACE INTO {BOOKKEEPING} VALUES ('row', ?, ?)", zip(keys, values, strict=True))
        self._db.execute(f"DROP TABLE {form.name}")

    def _rebuild(self, old: Form, new: Form) -> None:
        """Bring a table into its new form; every row keeps its exact bytes (SPEC 9.4)."""
        same = old.table.columns == new.table.columns[: len(old.table.columns)] and old.table.key == new.table.key
        for name in _indexes(self._db, old):
            self._db.execute(f"DROP INDEX {quote(name)}")
        if same:
            for n in range(len(old.table.columns), len(new.table.columns)):
                kind = _TYPES[new.table.columns[n].type]
                self._db.execute(f"ALTER TABLE {new.name} ADD COLUMN {new.columns[n]} {kind}".rstrip())
        else:
            self._move_out(old)
            self._db.execute(new.create())
            prefix, end = wire.table_bounds(new.table)
            moved = self._db.execute(
                f"SELECT key, value FROM {BOOKKEEPING} WHERE name = 'row' AND key >= ? AND key < ?", (prefix, end)
            ).fetchall()
            self._db.execute(f"DELETE FROM {BOOKKEEPING} WHERE name = 'row' AND key >= ? AND key < ?", (prefix, end))
            for keys, values in _batches(iter(moved)):
                self._insert_loosely(new, keys, values)  # type: ignore[arg-type]
        _make_indexes(self._db, new)

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


def _records_held(db: sqlite3.Connection, kind: str, tables: Callable[[], Iterable[Table]]) -> Iterator[Run]:
    """All records that are held, in key order; the schema may be changed once it was taken, before any row is read.

    `tables` gives those that are there then.
    """
    if kind == "bytes":
        yield from _bytes_records(db)
        return
    value = _schema_value(db)
    if value is not None:
        yield [SCHEMA_KEY], [value]
    for table in in_key_order(tables()):
        yield from table_records(db, Form(table))


def _bytes_records(db: sqlite3.Connection) -> Iterator[Run]:
    """The records of a dataset of kind `bytes`, in key order."""
    for keys, values in _batches(db.execute(f"SELECT key, value FROM {RECORDS} ORDER BY key")):
        _, checked = _checked(keys, values)
        yield keys, list(checked)


def _checked(keys: list[bytes], values: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """Records as they are, if they are bytes still. Raises LocalEdits."""
    if {bytes}.issuperset(map(type, keys + values)) and max(map(len, keys)) <= MAX_KEY:
        return keys, values
    raise LocalEdits(
        f"table {RECORDS!r} holds a key or a value that no dataset can hold; nothing was written. Mend it, or pull with "
        "--overwrite",
        [RECORDS],
    )


def in_key_order(schema: Iterable[Table]) -> list[Table]:
    """The tables of a schema in the order of their rows' keys."""
    return sorted(schema, key=wire.table_bounds)


def table_records(db: sqlite3.Connection, form: Form) -> Iterator[Run]:
    """The exact records of a table, in the order of its primary key."""
    cursor = db.execute(f"{form.select()} ORDER BY {', '.join(form.key)}")
    while rows := cursor.fetchmany(_BATCH):
        keys, values = _records(db, form, rows)
        yield keys, list(values)


def _records(db: sqlite3.Connection, form: Form, rows: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """The exact records of rows read from SQLite; a row that was edited there is encoded as it is now."""
    try:
        keys, values = wire.records_of(form.table, list(map(form.unbind, rows)))
    except (Invalid, TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
        raise LocalEdits(
            f"table {form.table.name!r} holds a value that no dataset can hold: {error}; nothing was written. Mend it, or "
            "pull with --overwrite",
            [form.table.name],
        ) from error
    if _has_exact(db):
        for n, (key, row) in enumerate(zip(keys, rows, strict=True)):
            exact = _exact(db, key)
            if exact is not None:
                as_held = _held(form, form.bind(wire.full_rows(form.table, [key], [exact]))[0])
                if list(map(_typed, as_held)) == list(map(_typed, row)):
                    values[n] = exact
    return keys, values


def _typed(cell: Any) -> tuple[type, Any]:
    return type(cell), cell


def _has_exact(db: sqlite3.Connection) -> bool:
    return db.execute(f"SELECT 1 FROM {BOOKKEEPING} WHERE name = 'row' LIMIT 1").fetchone() is not None


def _exact(db: sqlite3.Connection, key: bytes) -> bytes | None:
    row = db.execute(f"SELECT value FROM {BOOKKEEPING} WHERE name = 'row' AND key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def _held(form: Form, row: Sequence[Any]) -> list[Any]:
    """What SQLite gives back for a row bound to it: NaN as NULL, booleans as integers, -0.0 in REAL as 0.0."""
    cells = []
    for column, cell in zip(form.table.columns, row, strict=True):
        if isinstance(cell, float):
            cell = None if cell != cell else (cell or 0.0) if column.type == "float64" else cell
        elif isinstance(cell, bool):
            cell = int(cell)
        cells.append(cell)
    return cells


def _may_differ(form: Form, values: list[bytes]) -> bool:
    """Whether a row of the batch may not come back from SQLite as it went in."""
    if form.anys:
        return True
    joined = b"".join(values)
    return any(c.type == "float64" for c in form.table.columns) and (
        b"\xcb\x7f\xf8\0\0\0\0\0\0" in joined or b"\xcb\x80\0\0\0\0\0\0\0" in joined
    )


def _key(table: Table) -> list[wire.Column]:
    return [table.columns[n] for n in table.key]


def _schema_value(db: sqlite3.Connection) -> bytes | None:
    """The value of the schema record, if there is one."""
    row = db.execute(f"SELECT value FROM {BOOKKEEPING} WHERE name = 'schema'").fetchone()
    return None if row is None else row[0]


def _tables_held(db: sqlite3.Connection, parts: Parts) -> Schema:
    """The tables of the schema that are made where some parts are held."""
    value = _schema_value(db)
    return [] if value is None else tables_in(wire.decode_schema(value), parts)


def _store(db: sqlite3.Connection, name: str, key: bytes, value: bytes) -> None:
    db.execute(f"REPLACE INTO {BOOKKEEPING} VALUES (?, ?, ?)", (name, key, value))


def _is_ours(db: sqlite3.Connection) -> bool:
    return BOOKKEEPING in _tables(db)


def _tables(db: sqlite3.Connection) -> list[str]:
    rows = db.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return [name for (name,) in rows]


def _indexes(db: sqlite3.Connection, form: Form) -> list[str]:
    """The indexes of the dataset that are there."""
    names = {_index_name(form.table, n) for n in range(len(form.table.indexes))}
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (form.table.name,))
    return [name for (name,) in rows if name in names]


def _index_name(table: Table, number: int) -> str:
    return f"idx_{table.name}_{number}"


def _make_indexes(db: sqlite3.Connection, form: Form) -> None:
    """Make the dataset's indexes. None is unique here: rows change one after the other, and the source saw to it."""
    for n, index in enumerate(form.table.indexes):
        columns = ", ".join(form.columns[c] for c in index.columns)
        db.execute(f"CREATE INDEX {quote(_index_name(form.table, n))} ON {form.name} ({columns})")


def _column_names(table: Table) -> list[str]:
    """Column names that SQLite can tell apart: of names that differ by case only, later ones get a number."""
    names: list[str] = []
    taken: set[str] = set()
    for column in table.columns:
        if "\0" in column.name:
            raise TargetError(f"SQLite has no room for a column of the name {column.name!r}; pull into JSON Lines")
        name, n = column.name, 1
        while name.lower() in taken:
            n += 1
            name = f"{column.name}_{n}"
        taken.add(name.lower())
        names.append(name)
    return names


def _batches(rows: Iterator[Any]) -> Iterator[Run]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= _BATCH:
            yield [k for k, _ in batch], [v for _, v in batch]
            batch = []
    if batch:
        yield [k for k, _ in batch], [v for _, v in batch]

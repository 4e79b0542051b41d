"""A SQLite database as target (kinds `table` and `bytes`): real columns, and one transaction a step."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import itemgetter

import msgspec

from puller.errors import LocalEdits, NotOurs, TargetError
from puller.parts import WHOLE
from puller.sqlitefile import address, has_log, is_closed_to_us, wants_log
from puller.targets.base import Check, Opening, State, check_all, check_held
from puller.targets.reading import Connections
from puller.targets.sqliteforms import BOOKKEEPING, Form
from puller.targets.sqlitetables import (
    RECORDS,
    bytes_range,
    forms_held,
    is_ours,
    records_held,
    schema_value,
    store,
    table_range,
    tables_held,
    tables_there,
    value_of,
)
from puller.targets.sqlitewriter import Writer
from puller.targets.tables import check_edits, decode_state
from puller.wire import rows as wire
from puller.wire.nodes import Run
from puller.wire.rows import SCHEMA_KEY

MAGIC = b"SQLite format 3\0"


class SQLiteTarget:
    """Keeps tables of a SQLite database equal to a dataset; other tables are left alone."""

    kinds: tuple[str, ...] = ("table", "bytes")
    gives_values = True

    def __init__(self, path: str) -> None:
        self.where = path
        self.partial = f"{path}.headwater-partial"
        self._db: sqlite3.Connection | None = None
        self._frozen: os.stat_result | None = None
        """What the file looked like when it was opened as one that nobody changes."""
        self._connections = Connections(path, is_ours)

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
        there = set(tables_there(db))
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
        forms = map(Form, tables_held(db, state.parts))
        return [(f.table.name, f.names, [f.names[n] for n in f.table.key]) for f in forms]

    def remember(self, state: State, was: State) -> None:
        with self.errors():
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            held = self._stored(db)
            if held is not None and held.mark == was.mark:
                store(db, "state", b"", msgspec.msgpack.encode(state))
            db.execute("COMMIT")

    def close(self) -> None:
        self._connections.close()
        self._connections = Connections(self.where, is_ours)
        if self._db is not None:
            self._db.close()
            self._db = self._frozen = None

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
    def writer(self, opening: Opening) -> Iterator[Writer]:
        created = not os.path.lexists(self.where)
        with self.errors():
            db = self._open()
            try:
                db.execute("BEGIN IMMEDIATE")
                state = self._stored(db)
                check_held(state, opening, self.where)
                foreign = [name for name in tables_there(db) if name != BOOKKEEPING]
                if state is None and foreign and not opening.adopt:
                    raise NotOurs(
                        f"{self.where} holds tables that headwater did not make ({', '.join(foreign[:5])}); nothing was "
                        "written. Use a new file, or --adopt to add the dataset's tables to it"
                    )
                if state is not None and opening.replace and not opening.overwrite:
                    self._check_edits(state)
                yield Writer(self.where, db, opening, WHOLE if state is None else state.parts, ours=state is not None)
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
                tables = () if state.kind == "bytes" else tables_held(db, state.parts)
                yield from records_held(db, state.kind, lambda: tables)

    def check(self) -> Check:
        with self.errors():
            check = check_all(self.records(), self.missing())
            if self._frozen is not None and (has_log(self.where) or _changed(self._frozen, os.stat(self.where))):
                raise TargetError(f"{self.where} was changed while it was read; nothing was changed here. Try again")
            return check

    def _check_edits(self, state: State) -> None:
        """Raise LocalEdits if replacing everything would lose something."""
        made = [name for name, _, _ in self._made()]
        check_edits(self.where, state, self.missing(), made, self._extra_columns, lambda: self.check().checksum)

    def _extra_columns(self) -> list[str]:
        db, extra = self._open(), []
        state = self._stored(db)
        for form in map(Form, () if state is None or state.kind == "bytes" else tables_held(db, state.parts)):
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
            self._db = self._connect()
            self._db.execute("PRAGMA cache_size=-65536")
        return self._db

    def _connect(self) -> sqlite3.Connection:
        """A connection; where a file in WAL mode without a log can only be read as it is, one that reads it so."""
        db = sqlite3.connect(self.where, isolation_level=None, timeout=10.0)
        try:
            db.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            db.close()
            if not (wants_log(error) and is_closed_to_us(self.where)) or has_log(self.where):
                raise
            self._frozen = os.stat(self.where)
            return sqlite3.connect(address(self.where, "mode=ro&immutable=1"), uri=True, isolation_level=None)
        except BaseException:
            db.close()
            raise
        return db

    def _is_database(self) -> bool:
        """Whether the file is a database, or empty. It must not be opened but by SQLite (`puller.sqlitefile`)."""
        db = sqlite3.connect(self.where, timeout=10.0)
        try:
            db.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            if not wants_log(error):
                raise
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
        if not is_ours(db):
            return None
        row = db.execute(f"SELECT value FROM {BOOKKEEPING} WHERE name = 'state'").fetchone()
        return None if row is None else decode_state(row[0], self.where, "a new file")

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
                    "there was kept. Mend it, or run `puller pull --overwrite`",
                    [self.where],
                ) from error
            if wants_log(error) and os.path.exists(self.where) and is_closed_to_us(self.where):
                raise TargetError(
                    f"{self.where} is in WAL mode, and its folder is not writable for you, so SQLite cannot read it; what was "
                    "there was kept. Its owner can set it back (PRAGMA journal_mode=DELETE), or let you write to the folder"
                ) from error
            damaged = "malformed" in str(error) or "not a database" in str(error)
            advice = ". The file is damaged: delete it, and pull again" if damaged else ""
            raise TargetError(f"{self.where} cannot be used: {error}; what was there was kept{advice}") from error
        except (sqlite3.Error, OverflowError) as error:
            raise TargetError(f"{self.where} cannot be used: {error}; what was there was kept") from error
        except OSError as error:
            raise TargetError(f"{self.where} cannot be used: {error.strerror}; what was there was kept") from error


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns)


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
            value = schema_value(self._db)
            if key == SCHEMA_KEY or value is None:
                return value
            form = forms_held(value, self.state.parts).get(wire.table_prefix(key))
            return None if form is None else value_of(self._db, form, key)

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[tuple[list[bytes], list[bytes]]]:
        if self._db is None or self.state is None:
            return
        with self._target.errors():
            if self.state.kind == "bytes":
                yield from bytes_range(self._db, lower, upper)
                return
            value = schema_value(self._db)
            if value is None:
                return
            if lower == SCHEMA_KEY and (upper is None or upper > SCHEMA_KEY):
                yield [SCHEMA_KEY], [value]
            for prefix, form in forms_held(value, self.state.parts).items():
                if prefix + b"\xff" > lower and (upper is None or prefix < upper):
                    yield from table_range(self._db, form, lower, upper)

"""How rows get into the tables of a PostgreSQL target: changes staged in temporary tables, or whole tables by COPY."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING, Any

from puller.errors import NotOurs
from puller.postgresql import BOOKKEEPING, one_text, quote
from puller.targets.pgforms import Form
from puller.targets.pgtables import OID, changed_by_triggers, have_triggers, is_there, lock_out_readers, pages
from puller.wire.checksum import MODULUS, run_sum

if TYPE_CHECKING:
    import psycopg

_GRANTS = f"""
SELECT format('GRANT %%s ON %%s TO %%s%%s', privilege_type, %s::text,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class, aclexplode(relacl) WHERE oid = {OID} AND grantee <> relowner
"""
_AHEAD = 4 << 20
"""Bytes of rows that may wait for the server while the next ones are made."""
_ROWS = 4096
"""Rows that are made into text at a time: they stay in a core's cache."""

_ALL_AT_ONCE = "SET CONSTRAINTS ALL IMMEDIATE"
"""Has triggers that wait for the end of the transaction run now, so that what they do is seen."""

Missing = Callable[[Any, dict[str, Form]], list[str]]


class Stage:
    """The changes of a table, in temporary tables until the step is complete."""

    def __init__(self, db: psycopg.Connection[Any], form: Form, number: int) -> None:
        self.name = form.table.name
        self._db = db
        self._form = form
        self._rows, self._gone = f"pg_temp._headwater_rows_{number}", f"pg_temp._headwater_gone_{number}"
        for name in (self._rows, self._gone):
            db.execute(form.create(name).replace("CREATE TABLE", "CREATE TEMPORARY TABLE", 1) + " ON COMMIT DROP")
        self._counts = [0, 0]
        """Rows of each."""

    def add(self, keys: list[bytes], values: list[bytes | None]) -> None:
        """Take changes; None deletes."""
        if None in values:
            gone = [key for key, value in zip(keys, values, strict=True) if value is None]
            heads = [list(cells) for cells in zip(*self._form.heads(gone), strict=True)]
            self._copy(self._gone, heads, self._form.table.key)
            self._counts[1] += len(gone)
            pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        if keys:
            columns = self._form.full_columns(keys, values)  # type: ignore[arg-type]
            self._copy(self._rows, columns, range(len(columns)))
            self._counts[0] += len(keys)

    def _copy(self, at: str, columns: list[Any], numbers: Sequence[int]) -> None:
        with self._db.cursor().copy(self._form.copy(at, numbers)) as copy:
            copy.write(self._form.write(columns, numbers))

    def apply(self) -> None:
        """Change the table."""
        if self._counts[1]:
            self._db.execute(f"ANALYZE {self._gone}")
            self._db.execute(self._form.remove(self._gone))
        if self._counts[0]:
            self._db.execute(self._form.upsert(self._rows))

    def check(self) -> None:
        """Raise TargetError where the table does not hold what was staged, or still holds what was to go."""
        wrong = [(self._rows, self._form.changed), (self._gone, self._form.left)]
        if any(count and one_text(self._db, query(at)) for (at, query), count in zip(wrong, self._counts, strict=True)):
            raise changed_by_triggers(self._form)


def apply_all(db: psycopg.Connection[Any], stages: Sequence[Stage]) -> None:
    """Change tables. Raises TargetError where their triggers, each of which may write to any of them, changed that."""
    for stage in stages:
        stage.apply()
    if have_triggers(db, [stage.name for stage in stages]):
        db.execute(_ALL_AT_ONCE)
        for stage in stages:
            stage.check()


class _Copy:
    """A COPY under way. A thread of its own hands rows to the server, which takes some in while the next are made."""

    def __init__(self, db: psycopg.Connection[Any], statement: str) -> None:
        self._db = db
        self._context = db.cursor().copy(statement)
        self._copy = self._context.__enter__()
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take rows; raises what the server said of earlier ones."""
        self._waiting.append((len(data), self._thread.submit(self._copy.write, data)))
        self._size += len(data)
        self._wait(_AHEAD)

    def end(self) -> None:
        """Return once the server has taken all rows."""
        self._wait(0)
        self._thread.shutdown()
        self._context.__exit__(None, None, None)

    def abandon(self) -> None:
        """Close the connection, so that the server forgets them, also where it takes nothing more or cannot be reached.

        The socket goes first, which ends a write under way: libpq must not be closed while a thread is in it.
        """
        with suppress(Exception), socket(fileno=os.dup(self._db.pgconn.socket)) as cut:
            cut.shutdown(SHUT_RDWR)
        self._thread.shutdown(cancel_futures=True)
        self._db.close()
        with suppress(Exception):
            self._context.__exit__(GeneratorExit, GeneratorExit(), None)

    def _wait(self, most: int) -> None:
        while self._size > most:
            size, sent = self._waiting.popleft()
            sent.result()
            self._size -= size


class Load:
    """Writes whole tables: where there is one of the same form, in place; else beside it, to take its place at the end."""

    def __init__(self, where: str, missing: Missing, db: psycopg.Connection[Any], made: dict[str, Form]) -> None:
        """`where` is the target's; `missing` says what of some tables is not there."""
        self._where = where
        self._missing = missing
        self._db = db
        self._made = made
        self._places: dict[str, str] = {}
        self._staying: dict[str, int] = {}
        """Tables that are filled anew in place, and checksums of what they are given, where one of them has triggers."""
        self._has_triggers = False
        self._at: Form | None = None
        self._copy: _Copy | None = None

    def prepare(self, form: Form) -> None:
        """Make room for a table."""
        name, old = form.table.name, self._made.get(form.table.name)
        there = is_there(self._db, form.table.name)
        same = old is not None and (old.table.columns, old.table.key) == (form.table.columns, form.table.key)
        if same and not self._missing(self._db, {name: form}):
            self._db.execute(f"DELETE FROM {form.at}")
            self._places[name] = form.at
            self._staying[name] = 0
            self._has_triggers = self._has_triggers or have_triggers(self._db, [name])
            return
        if there and old is None:
            raise NotOurs(f"{self._where} has a table {name} of its own; nothing was written")
        schema = form.at.removesuffix(quote(name))
        self._places[name] = f"{schema}{quote(f'{BOOKKEEPING}_{len(self._places)}')}" if there else form.at
        self._db.execute(form.create(self._places[name]))

    def add(self, form: Form, keys: list[bytes], values: list[bytes]) -> None:
        """Take rows of a table, after all of the tables before it."""
        numbers = range(len(form.table.columns))
        if self._copy is None or self._at is not form:
            self._end()
            name = form.table.name
            statement = form.copy(self._places[name], numbers, freeze=name not in self._staying)
            self._at, self._copy = form, _Copy(self._db, statement)
        if self._has_triggers and form.table.name in self._staying:
            self._staying[form.table.name] += run_sum(keys, values)
        for n in range(0, len(keys), _ROWS):
            columns = form.full_columns(keys[n : n + _ROWS], values[n : n + _ROWS])
            self._copy.write(form.write(columns, numbers))

    def _end(self) -> None:
        if self._copy is not None:
            self._copy.end()
        self._at = self._copy = None

    def abandon(self) -> None:
        """End a COPY under way, and the connection with it; what it brought is rolled back."""
        if self._copy is not None:
            self._copy.abandon()

    def finish(self, forms: dict[str, Form]) -> None:
        """Make keys and indexes, and let new tables take the places of old ones."""
        self._end()
        db = self._db
        if self._has_triggers:
            db.execute(_ALL_AT_ONCE)
        for name, checksum in self._staying.items() if self._has_triggers else ():
            if sum(run_sum(*run) for run in pages(db, forms[name])) % MODULUS != checksum % MODULUS:
                raise changed_by_triggers(forms[name])
        for name, form in forms.items():
            if name not in self._staying:
                db.execute(form.add_key(self._places[name]))
        gone = {
            name: form.at
            for name, form in self._made.items()
            if self._places.get(name) != form.at and is_there(db, name)
        }
        stale = {name: index_changes(self._made[name], forms[name]) for name in self._staying}
        lock_out_readers(db, [*gone.values(), *(forms[name].at for name, (old, _) in stale.items() if old)])
        self._swap(gone, forms)
        change_indexes(db, forms, stale)

    def _swap(self, gone: dict[str, str], forms: dict[str, Form]) -> None:
        """Drop old tables, and give new ones their names and what others were granted on the old ones."""
        db = self._db
        grants = [
            sql for name, at in gone.items() if name in forms for (sql,) in db.execute(_GRANTS, (at, name)).fetchall()
        ]
        for at in gone.values():
            db.execute(f"DROP TABLE {at}")
        for name, form in forms.items():
            if self._places[name] != form.at:
                db.execute(f"ALTER TABLE {self._places[name]} RENAME TO {quote(name)}")
        for sql in grants:
            db.execute(sql)


def extends(old: Form, new: Form) -> bool:
    """Whether a table becomes another one by adding columns."""
    columns = new.table.columns[: len(old.table.columns)]
    return (old.table.columns, old.table.key) == (columns, new.table.key)


def index_changes(old: Form, new: Form) -> tuple[list[str], list[str]]:
    """The names of the indexes that go, and the statements that make those that come."""
    before, after = old.indexes(), new.indexes()
    return (
        [name for name, statement in before.items() if after.get(name) != statement],
        [statement for name, statement in after.items() if before.get(name) != statement],
    )


def change_indexes(db: psycopg.Connection[Any], forms: dict[str, Form], changes: dict[str, Any]) -> None:
    """Drop and make indexes: of tables that stay as their `changes` say, of new ones all."""
    for old, _ in changes.values():
        for index in old:
            db.execute(f"DROP INDEX IF EXISTS {index}")
    for name, form in forms.items():
        for statement in changes[name][1] if name in changes else form.indexes().values():
            db.execute(statement)

"""What lies in a schema that a PostgreSQL target keeps: bookkeeping, rows by key and in pages, and locks."""

from __future__ import annotations

import os
import socket
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from puller import postgresql
from puller.errors import Invalid, TargetError
from puller.postgresql import BOOKKEEPING, one_text, quote
from puller.targets.pgforms import Form, parts_of
from puller.targets.tables import unreadable
from puller.wire import rows as wire
from puller.wire.keys import encode_element
from puller.wire.rows import Schema

if TYPE_CHECKING:
    import psycopg

_FIRST, _MOST, _BYTES = 16, 16384, 4 << 20
"""Rows of the first page of a range, rows and bytes of a page later on: many ranges are short."""
_PATIENCE = "10s"
"""How long another puller, or whoever writes to our tables, is waited for."""
_MOMENT, _AGAIN, _TRIES = "200ms", 0.5, 60
"""How long readers are kept waiting while a table is asked for, how many seconds they are left alone then, how often."""
OID = """(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relname = %s)"""
"""A table by its name. The catalogue is asked: to_regclass may not yet know what another puller just committed."""
_HOLDER = """
SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database()
    AND (classid::bigint << 32) | objid::bigint = hashtextextended(%s, 0)
"""


def pages(
    db: psycopg.Connection[Any], form: Form, lower: bytes = b"", upper: bytes | None = None
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The records of a table in [lower, upper), in key order; between two pages the connection is free."""
    where, size = form.from_(lower), _FIRST
    while True:
        query = f"{form.select()} {where} ORDER BY {form.order} LIMIT {size}"
        block = postgresql.BETWEEN.join(postgresql.rows_out(db, query))
        if not block:
            return
        (keys, values), last = _read(form, block)
        start = bisect_left(keys, lower)
        stop = len(keys) if upper is None else bisect_left(keys, upper)
        if start < stop:
            yield keys[start:stop], values[start:stop]
        if len(keys) < size or stop < len(keys):
            return
        where = form.after(last)
        size = max(1, min(4 * size, _MOST, size * _BYTES // len(block)))


def _read(form: Form, block: bytes) -> Any:
    try:
        return form.read(block)
    except (Invalid, msgspec.MsgspecError) as error:
        raise unreadable(form.table.name, error) from error


def look_up(db: psycopg.Connection[Any], kind: str, forms: dict[str, Form], keys: list[bytes]) -> list[bytes | None]:
    """The values under some keys, in key order; None where there is none."""
    found: dict[bytes, bytes] = {}
    tables = {encode_element(name) for name in forms}
    known = keys if kind == "bytes" else [key for key in keys if wire.table_prefix(key) in tables]
    for form, part, _ in parts_of(kind, forms, known, [None] * len(known)) if known else ():
        query = form.find(part)
        block = b"" if query is None else postgresql.BETWEEN.join(postgresql.rows_out(db, query))
        if block:
            found |= zip(*_read(form, block)[0], strict=True)
    return list(map(found.get, keys))


def schema_name(db: psycopg.Connection[Any]) -> str:
    """The schema that the search path leads to. Raises TargetError where there is none."""
    name = one_text(db, "SELECT current_schema()")
    if name is None:
        path = one_text(db, "SHOW search_path")
        raise TargetError(
            f"the search path ({path}) leads to no schema that this user may use; nothing was written. Make one (CREATE SCHEMA), "
            "or give the user USAGE and CREATE on it"
        )
    return str(name)


def stored(db: psycopg.Connection[Any], name: str) -> bytes | None:
    """A value of the bookkeeping."""
    if not is_there(db, BOOKKEEPING):
        return None
    value: bytes | None = one_text(db, f"SELECT value FROM {bookkeeping(db)} WHERE name = '{name}'")
    return value


def store(db: psycopg.Connection[Any], name: str, value: bytes) -> None:
    """Put a value into the bookkeeping."""
    values = f"('{name}', '\\x{value.hex()}')"
    db.execute(f"INSERT INTO {bookkeeping(db)} VALUES {values} ON CONFLICT (name) DO UPDATE SET value = excluded.value")


def bookkeeping(db: psycopg.Connection[Any]) -> str:
    """The bookkeeping's name as SQL."""
    return f"{quote(schema_name(db))}.{BOOKKEEPING}"


def schema_value(db: psycopg.Connection[Any]) -> bytes | None:
    """The value of the schema record, if there is one."""
    return stored(db, "schema")


def schema_of(value: bytes | None) -> Schema:
    """The schema that such a value is."""
    return [] if value is None else wire.decode_schema(value)


def is_there(db: psycopg.Connection[Any], name: str) -> bool:
    """Whether the schema has a table of a name, or anything else that takes it."""
    return one_text(db, f"SELECT {OID}", (name,)) is not None


def have_triggers(db: psycopg.Connection[Any], names: Iterable[str]) -> bool:
    """Whether somebody gave one of some tables triggers, which may change what is written to any."""
    query = f"SELECT true FROM pg_trigger WHERE tgrelid = {OID} AND NOT tgisinternal AND tgenabled <> 'D' LIMIT 1"
    return any(one_text(db, query, (name,)) is not None for name in names)


def changed_by_triggers(form: Form) -> TargetError:
    """What to raise where they did."""
    return TargetError(
        f"triggers change what is written to table {form.table.name!r}, or keep rows that are deleted; what was there was "
        "kept. Let them leave these rows as they are, or disable them: ALTER TABLE … DISABLE TRIGGER"
    )


def check_encoding(db: psycopg.Connection[Any], where: str) -> None:
    """Raise TargetError for a database that cannot keep every text."""
    encoding = one_text(db, "SHOW server_encoding")
    if encoding != "UTF8":
        raise TargetError(
            f"{where} keeps texts as {encoding}, which cannot hold all; nothing was written. Use a UTF8 one"
        )


def lock_out(db: psycopg.Connection[Any]) -> None:
    """Keep other pullers of the schema away until the transaction ends."""
    db.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
    db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"headwater {schema_name(db)}",))


class FollowerLock:
    """Keeps a second follower of a schema away, as long as its connection lasts."""

    def __init__(self, address: str, where: str) -> None:
        """Raises TargetError where another follower has it."""
        self._db = postgresql.connect(address)
        try:
            with postgresql.errors(address, TargetError, "nothing was written"):
                self._take(where)
        except BaseException:
            self._db.close()
            raise

    def _take(self, where: str) -> None:
        db, name = self._db, f"headwater-follower {schema_name(self._db)}"
        db.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
        if not one_text(db, "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,)):
            who = one_text(db, _HOLDER, (name,))
            raise TargetError(f"{where} is followed already, by {who or 'another process'}; nothing was written")
        who = f"process {os.getpid()} on {socket.gethostname()}"
        db.execute("SELECT set_config('application_name', %s, false)", (who,))

    def is_there(self) -> bool:
        """Whether the connection, and with it the lock, still lasts."""
        import psycopg

        try:
            self._db.execute("SELECT")
        except psycopg.Error:
            return False
        return True

    def close(self) -> None:
        """Let go."""
        self._db.close()


def lock(db: psycopg.Connection[Any], tables: list[str], mode: str) -> None:
    """Lock tables until the transaction ends."""
    if tables:
        db.execute(f"LOCK TABLE {', '.join(tables)} IN {mode} MODE")


def lock_out_readers(db: psycopg.Connection[Any], tables: list[str]) -> None:
    """Have tables for this transaction alone. Readers that come later wait for a moment only, however long others read."""
    import psycopg

    if not tables:
        return
    for tried in range(_TRIES + 1):
        try:
            with db.transaction():
                db.execute(f"SET LOCAL lock_timeout = '{_MOMENT}'")
                lock(db, tables, "ACCESS EXCLUSIVE")
            db.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
            return
        except psycopg.errors.LockNotAvailable:
            if tried == _TRIES:
                raise
        time.sleep(_AGAIN)

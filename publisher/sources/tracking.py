"""Tracking: triggers in a SQLite database that note the keys of changed rows, so that a publish need not read the others.

Where each dataset stands is kept in the database as well, in the transaction that its rows are in: a backup that is
restored brings back what was true of it, and a state that is not the published one says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import msgspec

from publisher.sources.catalogue import OURS, Stored, read_catalogue
from puller.errors import SourceError
from puller.sqlitefile import address, quote
from puller.wire.keys import encode_keys

CHANGES = f"{OURS}_changes"
READERS = f"{OURS}_readers"
MOST = 1 << 16
"""Changed keys over which everything is read: so many lookups cost as much."""
KEPT = 1 << 20
"""Changes that are kept for a dataset that is not published any more."""
EVERY = 100
"""A dataset's publishes after which one reads everything, to see whether the triggers missed something."""
_PATIENCE = 10.0


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """Where a dataset stands in a database."""

    state: bytes
    """The published state."""
    seq: int
    """The last change that it has."""
    schema: int
    """SQLite's schema version then; whatever changes that, VACUUM and new columns too, is not noted by triggers."""
    since: int
    """Publishes since everything was read."""


def track(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Install the triggers, for all tables of a database; return those that are tracked, and the others with the reason.

    Where it is done already, triggers are brought up to date. Raises SourceError.
    """
    with _writing(path) as db:
        tables, _ = read_catalogue(db, [], [])
        _drop_triggers(db)
        width = max([len(stored.key) for stored in tables], default=1)
        _make_tables(db, width)
        done, left = [], []
        for n, stored in enumerate(tables):
            why = _untrackable(db, stored)
            if why is not None:
                left.append((stored.name, why))
                continue
            for text in _triggers(db, stored, n):
                db.execute(text)
            done.append(stored.name)
        db.execute(f"DELETE FROM {READERS}")
        return done, left


def untrack(path: str) -> bool:
    """Remove all that tracking added; say whether there was something. Raises SourceError."""
    with _writing(path) as db:
        found = _has_tables(db)
        _drop_triggers(db)
        for table in (CHANGES, READERS):
            db.execute(f"DROP TABLE IF EXISTS main.{table}")
        return found


def why_untracked(db: sqlite3.Connection, tables: list[Stored]) -> str | None:
    """Why not all changes of these tables are noted, or None if they are; "" where tracking was never asked for."""
    if not _has_tables(db):
        return ""
    rows = db.execute("SELECT tbl_name, sql FROM main.sqlite_master WHERE type = 'trigger'")
    there = {(name, _numberless(sql)) for name, sql in rows}
    for stored in tables:
        why = _untrackable(db, stored)
        if why is None and not {(stored.name, _numberless(sql)) for sql in _triggers(db, stored, 0)} <= there:
            why = "it came or was altered later; run `publisher track` again"
        if why is not None:
            return f"table {stored.name!r}: {why}"
    return None


def standing(db: sqlite3.Connection, reader: bytes) -> Standing | None:
    """Where a dataset stands, if that is known."""
    row = db.execute(f"SELECT standing FROM main.{READERS} WHERE reader = ?", (reader,)).fetchone()
    return None if row is None else msgspec.msgpack.decode(row[0], type=Standing)


def newest(db: sqlite3.Connection) -> tuple[int, int]:
    """The number of the newest change, and SQLite's schema version."""
    (seq,) = db.execute(f"SELECT max(seq) FROM main.{CHANGES}").fetchone()
    (schema,) = db.execute("PRAGMA main.schema_version").fetchone()
    return seq or 0, schema


def touched_keys(db: sqlite3.Connection, tables: list[Stored], after: int) -> set[bytes]:
    """The keys that changes after a number touched."""
    found: set[bytes] = set()
    for stored in tables:
        heads, _ = changed_rows(db, stored, after)
        if heads:
            found |= set(encode_keys(stored.name, list(zip(*heads, strict=True))))
    return found


def changed_rows(db: sqlite3.Connection, stored: Stored, after: int) -> tuple[list[tuple[Any, ...]], sqlite3.Cursor]:
    """The keys of a table's rows that changes after a number touched, and the rows of these that there are."""
    keys = ", ".join(f"k{n}" for n in range(len(stored.key)))
    noted = f"SELECT DISTINCT {keys} FROM main.{CHANGES} WHERE seq > ? AND tbl = ?"
    same = " AND ".join(f"t.{stored.expressions[c]} IS c.k{n}" for n, c in enumerate(stored.key))
    columns = ", ".join(f"t.{stored.expressions[n]}" for n in [*stored.key, *stored.values])
    rows = f"SELECT {columns} FROM ({noted}) AS c CROSS JOIN main.{quote(stored.name)} AS t ON {same}"
    return db.execute(noted, (after, stored.name)).fetchall(), db.execute(rows, (after, stored.name))


def settle(path: str, reader: bytes, now: Standing) -> None:
    """Note where a dataset stands, and forget changes that all datasets have. Raises sqlite3.Error."""
    with closing(sqlite3.connect(address(path, "mode=rw"), uri=True, isolation_level=None, timeout=_PATIENCE)) as db:
        db.execute("BEGIN IMMEDIATE")
        if _has_tables(db):
            db.execute(f"REPLACE INTO {READERS} VALUES (?, ?)", (reader, msgspec.msgpack.encode(now)))
            stands = {
                name: msgspec.msgpack.decode(one, type=Standing) for name, one in db.execute(f"SELECT * FROM {READERS}")
            }
            late = [(name,) for name, one in stands.items() if one.seq < now.seq - KEPT]
            db.executemany(f"DELETE FROM {READERS} WHERE reader = ?", late)
            least = min(one.seq for one in stands.values() if one.seq >= now.seq - KEPT)
            db.execute(f"DELETE FROM {CHANGES} WHERE seq < ?", (least,))  # the last one stays: numbers go on from it
        db.execute("COMMIT")


def _triggers(db: sqlite3.Connection, stored: Stored, number: int) -> Iterator[str]:
    """The statements that note each changed key of a table, the number of which they are named by."""
    name, table = quote(f"{OURS}_{number}"), quote(stored.name)
    literal = "'" + stored.name.replace("'", "''") + "'"
    parts = [stored.expressions[n] for n in stored.key]
    columns = ", ".join(f"k{n}" for n in range(len(parts)))
    into = f"INSERT INTO {CHANGES}(tbl, {columns})"
    old, new = (", ".join(f"{row}.{part}" for part in parts) for row in ("OLD", "NEW"))
    moved = " OR ".join(f"NEW.{part} IS NOT OLD.{part}" for part in parts)

    def trigger(when: str, *statements: str) -> str:
        called = name[:-1] + "_" + when.lower().replace(" ", "_") + '"'
        return f"CREATE TRIGGER {called} {when} ON {table} BEGIN {' '.join(f'{one};' for one in statements)} END"

    yield trigger("AFTER INSERT", f"{into} VALUES({literal}, {new})")
    yield trigger("AFTER DELETE", f"{into} VALUES({literal}, {old})")
    yield trigger("AFTER UPDATE", f"{into} VALUES({literal}, {old})", f"{into} SELECT {literal}, {new} WHERE {moved}")
    own = ", ".join(f"{table}.{part}" for part in parts)
    others = [f"{into} SELECT {literal}, {own} FROM {table} WHERE {same}" for same in _replaced(db, stored)]
    if others:  # REPLACE deletes rows without a word where a unique index says so
        yield trigger("BEFORE INSERT", *others)
        yield trigger("BEFORE UPDATE", *others)


def _replaced(db: sqlite3.Connection, stored: Stored) -> Iterator[str]:
    """Conditions on rows that a REPLACE removes though they have another key."""
    table = quote(stored.name)
    for _, name, unique, origin, _ in db.execute(f"PRAGMA main.index_list({table})").fetchall():
        parts = [row for row in db.execute(f"PRAGMA main.index_xinfo({quote(name)})") if row[5]]
        if unique and not (origin == "pk" and all(row[4] == "BINARY" for row in parts)):
            yield " AND ".join(
                f"{table}.{quote(row[2])} = NEW.{quote(row[2])} COLLATE {quote(row[4])}" for row in parts
            )
    if not stored.by_rowid and not stored.hidden and _has_rowid(db, stored):
        yield f"{table}.rowid = NEW.rowid"


def _has_rowid(db: sqlite3.Connection, stored: Stored) -> bool:
    names = {column.name.lower() for column in stored.columns}
    row = db.execute("SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", (stored.name,)).fetchone()
    return not row[0] and "rowid" not in names


def _untrackable(db: sqlite3.Connection, stored: Stored) -> str | None:
    for _, name, unique, _, partial in db.execute(f"PRAGMA main.index_list({quote(stored.name)})").fetchall():
        names = {column for _, _, column in db.execute(f"PRAGMA main.index_info({quote(name)})")}
        plain = names <= {column.name for column in stored.columns}
        if unique and (partial or not plain):
            return f"its unique index {name!r} is over some rows or expressions only, and REPLACE may remove rows unnoticed"
    return None


def _numberless(sql: str) -> str:
    """A trigger without the number in its name, which depends on when it was made."""
    head, _, rest = sql.partition(f'"{OURS}_')
    return head + rest.lstrip("0123456789")


def _has_tables(db: sqlite3.Connection) -> bool:
    names = {name for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
    return {CHANGES, READERS} <= names


def _make_tables(db: sqlite3.Connection, width: int) -> None:
    for table in (CHANGES, READERS):
        db.execute(f"DROP TABLE IF EXISTS main.{table}")
    keys = ", ".join(f"k{n}" for n in range(width))
    db.execute(f"CREATE TABLE {CHANGES}(seq INTEGER PRIMARY KEY, tbl TEXT NOT NULL, {keys})")
    db.execute(f"CREATE TABLE {READERS}(reader BLOB PRIMARY KEY, standing BLOB NOT NULL) WITHOUT ROWID")


def _drop_triggers(db: sqlite3.Connection) -> None:
    names = [name for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'trigger'")]
    for name in names:
        if name.startswith(f"{OURS}_"):
            db.execute(f"DROP TRIGGER {quote(name)}")


@contextmanager
def _writing(path: str) -> Iterator[sqlite3.Connection]:
    """A connection in a write transaction that is committed at the end. Raises SourceError, and changes nothing."""
    try:
        with closing(
            sqlite3.connect(address(path, "mode=rw"), uri=True, isolation_level=None, timeout=_PATIENCE)
        ) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
    except sqlite3.Error as error:
        raise SourceError(f"{path} cannot be changed: {error}; it is as it was") from error

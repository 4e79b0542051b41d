"""What a SQLite database has: tables, their columns, keys and indexes as structure, and what of it no dataset can hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

from publisher.sources.base import left_out_index
from puller.errors import SourceError
from puller.sqlitefile import quote
from puller.wire import rows as wire
from puller.wire.keys import encode_element
from puller.wire.rows import Column, Index, Schema, Table

OURS = "_headwater"
"""Tables that begin so are headwater's: what a copy or a tracked database needs for itself."""
OLDEST = (3, 37)
_ROWID = ("rowid", "_rowid_", "oid")
_KEY_TYPES = {"int64", "float64", "text", "blob"}

Skipped = list[tuple[str, str]]
"""What is left out, and why."""


@dataclass
class Stored:
    """A table as it lies in the database.

    `columns` have the type that their declaration promises: "" where that says little, "any" where there is none.
    """

    name: str
    columns: list[Column]
    key: list[int]
    hidden: bool
    """Whether the first column is the rowid, which the table does not name."""
    by_rowid: bool
    """Whether the key is the rowid, so that the table lies in key order for sure."""
    indexes: list[Index] = field(default_factory=list)

    @property
    def values(self) -> list[int]:
        """The numbers of the columns that are not part of the key."""
        return [n for n in range(len(self.columns)) if n not in self.key]

    @cached_property
    def expressions(self) -> list[str]:
        """What to select for each column."""
        names = [quote(column.name) for column in self.columns]
        return [self.columns[0].name, *names[1:]] if self.hidden else names

    def select(self) -> str:
        """All rows in the order they lie in, the columns of the key first."""
        order = f" ORDER BY {self.expressions[self.key[0]]}" if self.by_rowid else ""
        columns = ", ".join(self.expressions[n] for n in [*self.key, *self.values])
        return f"SELECT {columns} FROM main.{quote(self.name)}{order}"

    def table(self, seen: Mapping[int, set[type]], old: Table | None, *, partly: bool = False) -> Table:
        """The table with the types that hold what was `seen` in each column, and stay where they can.

        `partly`: not all rows were seen, and those that were have keys that the published key has room for.
        """
        known = {} if old is None else {column.name: column.type for column in old.columns}
        columns = []
        for n, column in enumerate(self.columns):
            before, found = known.get(column.name, ""), seen.get(n, set()) - {type(None)}
            if n in self.key:
                kind = before if partly else _key_type(column.type, before, found)
            else:
                kind = _value_type(column.type, before, found)
            columns.append(Column(column.name, kind))
        return Table(self.name, columns, self.key, self.indexes)

    def keeps_key(self, seen: Mapping[int, set[type]], old: Table) -> bool:
        """Whether the key of some rows fits the types that the published table's key has."""
        known = {column.name: column.type for column in old.columns}
        types = [(known.get(self.columns[n].name, ""), seen[n]) for n in self.key]
        return all(kind != "" and wire.widened(kind, found) == kind for kind, found in types)


def _key_type(declared: str, before: str, seen: set[type]) -> str:
    """What is there decides: a key of type any is what few targets can hold."""
    if seen:
        return wire.widened("", seen)
    if before in _KEY_TYPES:
        return before
    return declared if declared in _KEY_TYPES else "text"


def _value_type(declared: str, before: str, seen: set[type]) -> str:
    """What was declared, as long as it holds; once any, always any, so that a type does not come and go with a row."""
    if before == "any" or declared == "any":
        return "any"
    return wire.widened(declared or before, seen)


def read_catalogue(db: sqlite3.Connection, wanted: Sequence[str], key: Sequence[str]) -> tuple[list[Stored], Skipped]:
    """The tables of a database in the order they were made, and what is left out of it.

    With `wanted`, only these. With `key`, these columns are the key of the one table that there is. Raises SourceError
    for a table that is wanted and cannot be had.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise SourceError(f"reading tables takes SQLite 3.37 or newer; this Python has {sqlite3.sqlite_version}")
    places = dict(db.execute("SELECT name, rowid FROM main.sqlite_master WHERE type IN ('table', 'view')"))
    listed = [row for row in db.execute("PRAGMA main.table_list") if row[1] in places]
    listed.sort(key=lambda row: places[row[1]])
    tables: list[Stored] = []
    skipped: Skipped = []
    for _, name, form, _, without_rowid, strict in listed:
        if name.startswith(("sqlite_", OURS)) or (wanted and name not in wanted):
            continue
        if form == "table":
            tables.append(_read_table(db, name, bool(without_rowid), bool(strict), skipped))
        elif form != "shadow" or wanted:
            skipped.append((name, _WHY[form]))
    _check_wanted(wanted, tables, skipped)
    if key and len(tables) > 1:
        raise SourceError("--key is for one table; name it with --table. Nothing was published")
    if key and tables:
        _rekey(tables[0], key)
    return tables, skipped


_WHY = {
    "view": "it is a view",
    "virtual": "it is a virtual table; so are the tables in which it keeps its data",
    "shadow": "it belongs to a virtual table",
}


def _check_wanted(wanted: Sequence[str], tables: list[Stored], skipped: Skipped) -> None:
    there = {table.name for table in tables}
    for name in wanted:
        why = dict(skipped).get(name, "there is none of that name")
        if name not in there:
            raise SourceError(f"table {name!r} cannot be published: {why}; nothing was published")


def _rekey(table: Stored, key: Sequence[str]) -> None:
    """Take other columns for the key. Raises SourceError where that cannot be."""
    if table.hidden:
        table.columns = table.columns[1:]
        table.indexes = [Index(i.name, i.unique, [n - 1 for n in i.columns]) for i in table.indexes]
    numbers = {column.name: n for n, column in enumerate(table.columns)}
    if missing := [name for name in key if name not in numbers]:
        raise SourceError(f"table {table.name!r} has no column {missing[0]!r}; nothing was published")
    table.key, table.hidden, table.by_rowid = [numbers[name] for name in key], False, False


def _read_table(db: sqlite3.Connection, name: str, without_rowid: bool, strict: bool, skipped: Skipped) -> Stored:
    columns: list[Column] = []
    places: dict[int, int] = {}
    keyed: dict[int, int] = {}
    info = db.execute(f"PRAGMA main.table_xinfo({quote(name)})").fetchall()
    taken = {row[1].lower() for row in info}
    for cid, column, declared, _, _, part, hidden in info:
        if hidden:
            skipped.append((f"{name}.{column}", "it is generated from other columns"))
            continue
        places[cid] = len(columns)
        if part:
            keyed[part] = len(columns)
        columns.append(Column(column, declared_type(declared, strict=strict)))
    key = [keyed[part] for part in sorted(keyed)]
    listed = db.execute(f"PRAGMA main.index_list({quote(name)})").fetchall()
    hidden_rowid = not key
    if hidden_rowid:
        rowid = next((one for one in _ROWID if one not in taken), None)
        if rowid is None:
            raise SourceError(
                f"table {name!r} has no primary key, and columns that hide its rowid; nothing was published. Say --table "
                f"{name!r} and --key"
            )
        columns.insert(0, Column(rowid, "int64"))
        places = {cid: n + 1 for cid, n in places.items()}
        places[-1] = 0
        key = [0]
    by_rowid = hidden_rowid or not (without_rowid or any(row[3] == "pk" for row in listed))
    if len(columns) > wire.MAX_COLUMNS:
        raise SourceError(f"table {name!r} has {len(columns):,} columns; a dataset's have at most {wire.MAX_COLUMNS:,}")
    indexes = list(_read_indexes(db, name, listed, places, skipped))
    return Stored(name, columns, key, hidden_rowid, by_rowid, indexes)


def _read_indexes(
    db: sqlite3.Connection,
    table: str,
    listed: list[tuple[int, str, int, str, int]],
    places: dict[int, int],
    skipped: Skipped,
) -> Iterator[Index]:
    """The indexes over plain columns, the oldest first; constraints have no name of their own."""
    found = 0
    for _, name, unique, origin, partial in reversed(listed):
        if origin == "pk":
            continue
        columns = [cid for _, cid, _ in db.execute(f"PRAGMA main.index_info({quote(name)})")]
        why = left_out_index(found, partial=bool(partial), plain=places.keys() >= set(columns))
        if why is not None:
            skipped.append((f"{table}.{name}", why))
            continue
        found += 1
        yield Index(name if origin == "c" else "", bool(unique), list(dict.fromkeys(places[cid] for cid in columns)))


def declared_type(declared: str, *, strict: bool) -> str:
    """The type that a declaration promises, by SQLite's rules of affinity; "" where it lets in several."""
    upper = declared.upper()
    if not upper or (strict and upper == "ANY"):
        return "any"
    for parts, kind in ((("INT",), "int64"), (("CHAR", "CLOB", "TEXT"), "text"), (("BLOB",), "blob")):
        if any(part in upper for part in parts):
            return kind
    return "float64" if any(part in upper for part in ("REAL", "FLOA", "DOUB")) else ""


class Named(Protocol):
    """A table of a database."""

    name: str


T = TypeVar("T", bound=Named)


def in_schema_order(tables: list[T], old: Schema) -> list[T]:
    """Tables that were published before in the order they have there, then the others."""
    places = {table.name: n for n, table in enumerate(old)}
    return sorted(tables, key=lambda table: places.get(table.name, len(places)))


def in_key_order(tables: list[T]) -> list[T]:
    """Tables in the order of their rows' keys."""
    return sorted(tables, key=lambda table: encode_element(table.name))

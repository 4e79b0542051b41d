"""What a PostgreSQL database has: tables, columns with the types that give their values back, keys and indexes as structure.

| PostgreSQL | dataset | as |
| --- | --- | --- |
| smallint, integer, bigint | int64 | |
| double precision, real | float64 | real widened, which is exact |
| boolean | bool | |
| bytea | blob | |
| json, jsonb | json | the text that the server gives |
| numeric, timestamps, arrays, all others | text | the text that the server gives: ISO dates, UTC, in key columns json too |

A domain is what it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from publisher.sources.base import left_out_index
from puller.errors import SourceError
from puller.postgresql import BOOKKEEPING, one_text, quote
from puller.wire import rows as wire
from puller.wire.rows import Column, Index, Table

if TYPE_CHECKING:
    import psycopg

_TYPES = {
    "int2": "int64",
    "int4": "int64",
    "int8": "int64",
    "float4": "float64",
    "float8": "float64",
    "bool": "bool",
    "bytea": "blob",
    "json": "json",
    "jsonb": "json",
}
_BY_ORDER = {"int2", "int4", "int8", "float4", "float8", "bool", "bytea", "uuid"}
"""Types that PostgreSQL orders as a dataset orders their keys."""
_BASES = """
WITH RECURSIVE base(oid, type) AS (
    SELECT oid, oid FROM pg_type WHERE typtype <> 'd'
    UNION ALL SELECT t.oid, b.type FROM pg_type t JOIN base b ON t.typbasetype = b.oid WHERE t.typtype = 'd')
SELECT base.oid, t.typname, t.typnamespace = 'pg_catalog'::regnamespace FROM base JOIN pg_type t ON t.oid = base.type
"""
_RELATIONS = """
SELECT c.oid, c.relname, c.relkind, c.relispartition,
    EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY c.oid
"""
_COLUMNS = """
SELECT attnum, attname, atttypid, attgenerated <> '' FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_INDEXES = """
SELECT i.relname, x.indisprimary, x.indisunique, x.indimmediate AND x.indisvalid,
    x.indpred IS NOT NULL, x.indexprs IS NOT NULL, x.indkey::int2[] AS columns, x.indnkeyatts,
    NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = x.indrelid AND a.attnum = ANY(x.indkey) AND NOT a.attnotnull),
    m.amname
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam
WHERE x.indrelid = %s ORDER BY i.oid
"""
_WHY = {"v": "it is a view", "m": "it is a materialized view", "f": "it is a foreign table"}
_INSTEAD = "name its key: --query 'SELECT * FROM {name}' --key COLUMN"

Skipped = list[tuple[str, str]]
"""What is left out, and why."""


@dataclass
class Relation:
    """A table, or the result of a query, and how it is read; the first columns that `select` gives are those of the key."""

    name: str
    columns: list[Column]
    key: list[int]
    source: str
    expressions: list[str]
    order: list[str]
    """What to order by, for each column of the key."""
    indexes: list[Index] = field(default_factory=list)

    @property
    def placed(self) -> list[int]:
        """The numbers of the columns in the order in which they are selected."""
        return [*self.key, *(n for n in range(len(self.columns)) if n not in self.key)]

    def select(self, *, ordered: bool) -> str:
        """All rows, in key order where PostgreSQL can tell it."""
        columns = ", ".join(self.expressions[n] for n in self.placed)
        return f"SELECT {columns} FROM {self.source}" + (f" ORDER BY {', '.join(self.order)}" if ordered else "")

    @property
    def table(self) -> Table:
        """The table as the dataset's schema has it."""
        return Table(self.name, self.columns, self.key, self.indexes)


@dataclass
class _Found:
    """A column as the catalogue has it."""

    name: str
    type: str
    is_nullable: bool = False


def read_tables(
    db: psycopg.Connection[Any], wanted: Sequence[str], key: Sequence[str]
) -> tuple[list[Relation], Skipped]:
    """The tables of the search path's first schema in the order they were made, and what is left out of it.

    With `wanted`, only these; with `key`, these columns are the key of the one table there is. Raises SourceError for a
    table that is wanted and cannot be had, and for one without a key.
    """
    if one_text(db, "SELECT current_schema()") is None:
        raise SourceError("the search path names no schema that there is; nothing was published")
    bases = _bases(db)
    tables: list[Relation] = []
    skipped: Skipped = []
    for oid, name, kind, is_part, is_extension in db.execute(_RELATIONS).fetchall():
        if name == BOOKKEEPING or (wanted and name not in wanted) or (is_part and not wanted):
            continue
        if kind in _WHY or is_extension:
            skipped.append((name, _WHY.get(kind, "it belongs to an extension")))
        else:
            tables.append(_read_table(db, oid, name, kind, key, bases, skipped))
    _check_wanted(db, wanted, tables, skipped)
    if key and len(tables) > 1:
        raise SourceError("--key is for one table; name it with --table. Nothing was published")
    return tables, skipped


def read_query(db: psycopg.Connection[Any], query: str, key: Sequence[str], name: str) -> Relation:
    """What a query gives, as the table `name`. Raises SourceError."""
    source = f"(\n{query.strip().rstrip(';')}\n) AS q"
    described = db.execute(f"SELECT * FROM {source} LIMIT 0").description or []
    bases = _bases(db)
    found = [_Found(column.name, bases.get(column.type_code, ""), is_nullable=True) for column in described]
    names = [column.name for column in found]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise SourceError(
            f"the query gives two columns of the name {twice!r}; nothing was published. Rename one with AS"
        )
    return _relation(name, source, found, _numbers(found, key, "the query"), [])


def _bases(db: psycopg.Connection[Any]) -> dict[int, str]:
    """The names of the types that values are made of in the end; those that are not PostgreSQL's own have none."""
    return {oid: name if own else "" for oid, name, own in db.execute(_BASES)}


def _check_wanted(db: psycopg.Connection[Any], wanted: Sequence[str], tables: list[Relation], skipped: Skipped) -> None:
    there = {table.name for table in tables}
    for name in wanted:
        if name not in there:
            schema = one_text(db, "SELECT current_schema()")
            why = dict(skipped).get(name)
            why = f"{why}; {_INSTEAD.format(name=quote(name))}" if why else f"schema {schema!r} has none of that name"
            raise SourceError(f"table {name!r} cannot be published: {why}; nothing was published")


def _numbers(columns: list[_Found], key: Sequence[str], what: str) -> list[int]:
    """The numbers of the columns that are to be the key. Raises SourceError."""
    numbers = {column.name: n for n, column in enumerate(columns)}
    if missing := [name for name in key if name not in numbers]:
        raise SourceError(f"{what} has no column {missing[0]!r}; nothing was published")
    return [numbers[name] for name in dict.fromkeys(key)]


def _read_table(
    db: psycopg.Connection[Any],
    oid: int,
    name: str,
    kind: str,
    key: Sequence[str],
    bases: dict[int, str],
    skipped: Skipped,
) -> Relation:
    indexes = db.execute(_INDEXES, (oid,)).fetchall()
    attributes = db.execute(_COLUMNS, (oid,)).fetchall()
    numbers = {attnum: column for attnum, column, _, _ in attributes}
    if not key:
        key = [numbers[n] for n in _key_of(indexes, name)]
    columns: list[_Found] = []
    places: dict[int, int] = {}
    for attnum, column, type_, generated in attributes:
        if generated and column not in key:
            skipped.append((f"{name}.{column}", "it is generated from other columns"))
            continue
        places[attnum] = len(columns)
        columns.append(_Found(column, bases.get(type_, "")))
    only = "ONLY " if kind == "r" else ""
    found = list(_read_indexes(indexes, name, places, skipped))
    at = one_text(db, "SELECT current_schema()")
    return _relation(
        name, f"{only}{quote(at)}.{quote(name)}", columns, _numbers(columns, key, f"table {name!r}"), found
    )


def _key_of(indexes: list[Any], name: str) -> list[int]:
    """The columns of the primary key, or of the first unique index that is as good. Raises SourceError."""
    for _, primary, _, _, _, _, columns, width, _, _ in indexes:
        if primary:
            return list(columns[:width])
    for _, _, unique, valid, partial, expressions, columns, width, filled, _ in indexes:
        if unique and valid and filled and not partial and not expressions:
            return list(columns[:width])
    raise SourceError(
        f"table {name!r} has no primary key, nor a unique index over columns that are NOT NULL; nothing was published. "
        f"Give it one, leave it out by naming the others with --table, or {_INSTEAD.format(name=quote(name))}"
    )


def _read_indexes(indexes: list[Any], table: str, places: dict[int, int], skipped: Skipped) -> Iterator[Index]:
    """The indexes over plain columns, the oldest first."""
    found = 0
    for name, primary, unique, _, partial, expressions, columns, width, _, method in indexes:
        if primary:
            continue
        plain = not expressions and places.keys() >= set(columns[:width])
        why = left_out_index(found, partial=partial, plain=plain)
        if why is None and method != "btree":
            why = f"it is an index of the method {method}"
        if why is not None:
            skipped.append((f"{table}.{name}", why))
            continue
        found += 1
        yield Index(name, unique, list(dict.fromkeys(places[n] for n in columns[:width])))


def _relation(name: str, source: str, found: list[_Found], key: list[int], indexes: list[Index]) -> Relation:
    if len(found) > wire.MAX_COLUMNS:
        raise SourceError(f"table {name!r} has {len(found):,} columns; a dataset's have at most {wire.MAX_COLUMNS:,}")
    columns = []
    expressions = []
    for n, column in enumerate(found):
        type_ = _TYPES.get(column.type, "text")
        columns.append(Column(column.name, "text" if type_ == "json" and n in key else type_))
        expressions.append(quote(column.name) + {"bool": "::int", "float4": "::float8"}.get(column.type, ""))
    order = []
    for n in key:
        by = quote(found[n].name) if found[n].type in _BY_ORDER else f'{quote(found[n].name)}::text COLLATE "C"'
        order.append(by + (" NULLS FIRST" if found[n].is_nullable else ""))
    return Relation(name, columns, key, source, expressions, order, indexes)

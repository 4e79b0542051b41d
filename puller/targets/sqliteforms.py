"""How records of a dataset lie in tables of SQLite: columns, statements by key, and what SQLite gives back for a row.

SQLite cannot hold some values as they are: NaN, -0.0, booleans and JSON in a column of type any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from puller.errors import TargetError
from puller.sqlitefile import quote
from puller.targets.tables import first_values, fits
from puller.wire import rows as wire
from puller.wire.rows import Json, Table

BOOKKEEPING = "_headwater"
_TYPES = {
    "int64": "INTEGER",
    "float64": "REAL",
    "text": "TEXT",
    "blob": "BLOB",
    "bool": "BOOLEAN",
    "json": "TEXT",
    "any": "",
}


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
        self.order = ", ".join(self.key)
        kinds = [_TYPES[column.type] for column in table.columns]
        self._declared = [f"{name} {kind}".rstrip() for name, kind in zip(self.columns, kinds, strict=True)]
        self.is_rowid = len(table.key) == 1 and table.columns[table.key[0]].type == "int64"
        self.bools = [n for n, column in enumerate(table.columns) if column.type == "bool"]
        self.jsons = [n for n, column in enumerate(table.columns) if column.type == "json"]
        self.anys = [n for n, column in enumerate(table.columns) if column.type == "any"]

    def create(self) -> str:
        """CREATE TABLE, with a rowid alias for a single integer key."""
        return f"CREATE TABLE {self.name} ({', '.join(self._declared)}, PRIMARY KEY ({self.order}))"

    def add_columns(self, start: int) -> list[str]:
        """ALTER TABLE for each column from a number on."""
        return [f"ALTER TABLE {self.name} ADD COLUMN {declared}" for declared in self._declared[start:]]

    def indexes(self) -> dict[str, str]:
        """The dataset's indexes by their names in SQLite: CREATE INDEX for each.

        None is unique: rows change one after the other, and the source saw to it.
        """
        found = {}
        for n, index in enumerate(self.table.indexes):
            name = f"idx_{self.table.name}_{n}"
            columns = ", ".join(self.columns[c] for c in index.columns)
            found[name] = f"CREATE INDEX {quote(name)} ON {self.name} ({columns})"
        return found

    def insert(self, rows: int, *, replace: bool) -> str:
        """INSERT of some rows; with `replace`, over those with the same keys."""
        columns, marks = ", ".join(self.columns), ", ".join("?" * len(self.columns))
        into = f"INSERT INTO {self.name} ({columns}) VALUES {', '.join([f'({marks})'] * rows)}"
        if not replace:
            return into
        rest = [self.columns[n] for n in self.table.value_columns]
        update = ", ".join(f"{name} = excluded.{name}" for name in rest)
        action = f"DO UPDATE SET {update}" if update else "DO NOTHING"
        return f"{into} ON CONFLICT ({self.order}) {action}"

    def where(self) -> str:
        """The condition that finds one row by its key."""
        return " AND ".join(f"{name} IS ?" for name in self.key)

    def from_(self, bound: bytes) -> tuple[str, Sequence[Any]]:
        """A condition, with its values, that all rows from a bound in key order on meet; earlier ones may, too."""
        values = first_values(self.table, bound)
        while values and not fits(self.table, values):
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

    def held(self, row: Sequence[Any]) -> list[Any]:
        """What SQLite gives back for a row bound to it: NaN as NULL, booleans as integers, -0.0 in REAL as 0.0."""
        cells = []
        for column, cell in zip(self.table.columns, row, strict=True):
            if isinstance(cell, float):
                cell = None if cell != cell else (cell or 0.0) if column.type == "float64" else cell
            elif isinstance(cell, bool):
                cell = int(cell)
            cells.append(cell)
        return cells

    def may_differ(self, values: list[bytes]) -> bool:
        """Whether a row of the batch may not come back from SQLite as it went in."""
        if self.anys:
            return True
        joined = b"".join(values)
        return any(c.type == "float64" for c in self.table.columns) and (
            b"\xcb\x7f\xf8\0\0\0\0\0\0" in joined or b"\xcb\x80\0\0\0\0\0\0\0" in joined
        )


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

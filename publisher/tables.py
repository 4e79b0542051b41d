"""What a batch puts and deletes, as records: of kind `bytes` as they are, of kind `table` with what the schema gains. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from puller.errors import UsageError
from puller.forms import BytesForm, TableForm, cell
from puller.wire import rows
from puller.wire.rows import SCHEMA_KEY, Column, Schema, Table

Records = dict[bytes, bytes | None]
"""Values by key; None: deleted."""


class Pending(Protocol):
    """The changes of a batch, by Python keys."""

    def put(self, key: Any, value: Any) -> None: ...

    def delete(self, key: Any) -> None: ...

    def table(self, name: str, key: Sequence[str]) -> None: ...

    def get(self, key: Any) -> tuple[bool, Any]:
        """Whether a key was put or deleted, and its value (None: deleted)."""
        ...

    def records(self, schema: Schema, is_empty: Callable[[str], bool]) -> Records:
        """The changes as records of a state that has a schema, with the schema they need. Raises UsageError.

        `is_empty` says whether a table of the schema has no rows; it is asked where the types of a key would widen.
        """
        ...

    def __len__(self) -> int: ...


class PendingBytes:
    """Changes of kind `bytes`."""

    def __init__(self) -> None:
        self._form = BytesForm()
        self._changes: Records = {}

    def put(self, key: Any, value: Any) -> None:
        wire = self._form.encode_key(key)
        self._changes[wire] = self._form.encode_value(key, value)

    def delete(self, key: Any) -> None:
        self._changes[self._form.encode_key(key)] = None

    def table(self, name: str, key: Sequence[str]) -> None:
        raise UsageError("a dataset of kind bytes has no tables")

    def get(self, key: Any) -> tuple[bool, Any]:
        wire = self._form.encode_key(key)
        return wire in self._changes, self._changes.get(wire)

    def records(self, schema: Schema, is_empty: Callable[[str], bool]) -> Records:
        return dict(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


class PendingRows:
    """Changes of kind `table`. They are encoded when they are published, for the schema that there is then."""

    def __init__(self) -> None:
        self._form = TableForm([])
        self._tables: dict[str, list[str]] = {}
        self._rows: dict[bytes, tuple[tuple[Any, ...], dict[str, Any] | None, dict[str, Any]]] = {}

    def put(self, key: Any, value: Any) -> None:
        wire = self._form.encode_key(key)
        if not isinstance(value, Mapping):
            raise UsageError(f"a row is a mapping of columns to values, not {type(value).__name__}")
        given = dict(value)
        if wrong := [name for name in given if type(name) is not str]:
            raise UsageError(f"the name of a column is str, not {type(wrong[0]).__name__}")
        self._rows[wire] = key, given, {name: cell(part) for name, part in given.items()}

    def delete(self, key: Any) -> None:
        self._rows[self._form.encode_key(key)] = key, None, {}

    def table(self, name: str, key: Sequence[str]) -> None:
        if not key or len(set(key)) != len(key) or isinstance(key, str):
            raise UsageError(f"the primary key of table {name!r} is a list of different columns, at least one")
        if self._tables.setdefault(name, list(key)) != list(key):
            raise UsageError(f"table {name!r} is given two primary keys")

    def get(self, key: Any) -> tuple[bool, Any]:
        wire = self._form.encode_key(key)
        found = self._rows.get(wire)
        return found is not None, None if found is None or found[1] is None else dict(found[1])

    def records(self, schema: Schema, is_empty: Callable[[str], bool]) -> Records:
        drafts = {table.name: _Draft(table) for table in schema}
        for name, columns in self._tables.items():
            if name not in drafts:
                drafts[name] = _Draft(Table(name, [Column(n, "") for n in columns], list(range(len(columns)))))
            drafts[name].check_key(columns)
        for key, given, cells in self._rows.values():
            if given is not None:
                _draft(drafts, key).add(key, cells)
        for table in schema:
            if drafts[table.name].rekeys() and is_empty(table.name):
                drafts[table.name].retype()
        found: Records = {}
        for wire, (key, given, cells) in self._rows.items():
            found[wire] = None if given is None else drafts[key[0]].encode(key, cells)
        new = [draft.table() for draft in drafts.values()]
        if new != schema:
            found[SCHEMA_KEY] = rows.encode_schema(new)
            rows.decode_schema(found[SCHEMA_KEY] or b"")
        return found

    def __len__(self) -> int:
        return len(self._rows)


def _draft(drafts: dict[str, _Draft], key: tuple[Any, ...]) -> _Draft:
    if key[0] not in drafts:
        raise UsageError(
            f"the dataset has no table {key[0]!r:.200}; nothing was published. Make it with "
            f"batch.table({key[0]!r:.200}, key=[…])"
        )
    return drafts[key[0]]


class _Draft:
    """A table with the columns and types that it gains."""

    def __init__(self, table: Table) -> None:
        self._old = table
        self._types: dict[str, str] = {column.name: column.type for column in table.columns}
        self._key = [table.columns[n].name for n in table.key]
        self._seen: dict[str, set[type]] = {}
        self._values: list[str] | None = None

    def check_key(self, key: Sequence[str]) -> None:
        """Raise UsageError if the table has another primary key."""
        if list(key) != self._key:
            raise UsageError(f"table {self._old.name!r} has the primary key {self._key}, not {list(key)}")

    def add(self, key: tuple[Any, ...], cells: dict[str, Any]) -> None:
        """Note the columns and types of a row."""
        if len(key) - 1 != len(self._key):
            raise UsageError(
                f"the primary key of table {self._old.name!r} has {len(self._key)} columns, not {len(key) - 1}"
            )
        for name, part in zip(self._key, key[1:], strict=True):
            if name in cells and (type(cells[name]) is not type(part) or cells[name] != part):
                raise UsageError(f"column {name!r} of the row is not what its key {key!r:.200} says")
            self._seen.setdefault(name, set()).add(type(part))
        for name, value in cells.items():
            self._types.setdefault(name, "")
            self._seen.setdefault(name, set()).add(type(value))

    def rekeys(self) -> bool:
        """Whether a column of the key gets another type."""
        return any(rows.widened(self._types[name], self._seen.get(name, ())) != self._types[name] for name in self._key)

    def retype(self) -> None:
        """Let the rows that come settle all types: there are no others."""
        self._types = dict.fromkeys(self._types, "")

    def encode(self, key: tuple[Any, ...], cells: dict[str, Any]) -> bytes:
        """The value of a row, once all were added."""
        if self._values is None:
            own = set(self._key)
            self._values = [name for name in self._types if name not in own]
        data = rows.encode_row(list(map(cells.get, self._values)))
        if len(data) > rows.MAX_ROW:
            raise UsageError(f"the row {key!r:.200} is larger than 256 MiB")
        return data

    def table(self) -> Table:
        """The table as it is to be, its columns in the order first seen; a key that no row has yet is text."""
        unseen = {name: "text" for name in self._key if name not in self._seen}
        columns = [
            Column(name, rows.widened(before or unseen.get(name, ""), self._seen.get(name, ())))
            for name, before in self._types.items()
        ]
        if len(columns) > rows.MAX_COLUMNS:
            raise UsageError(f"table {self._old.name!r} would have more than {rows.MAX_COLUMNS:,} columns")
        return Table(self._old.name, columns, self._old.key, self._old.indexes)

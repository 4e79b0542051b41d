"""Schemas and rows of the `table` kind (SPEC 9): their canonical bytes, checked both ways, many rows a call."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any

import msgspec

from puller.errors import Invalid
from puller.wire.codec import MAX_KEY, decoder, encode
from puller.wire.keys import INT_MAX, INT_MIN, decode_key_columns, encode_element, encode_keys, table_range

SCHEMA_KEY = b""
JSON_EXT = 1
MAX_COLUMNS = 4096
MAX_INDEXES = 64
MAX_TABLES = 65536
MAX_ROW = 256 * 1024 * 1024
MAX_SCHEMA = 16 * 1024 * 1024
TYPES = ("int64", "float64", "text", "blob", "bool", "json", "any")
Json = msgspec.msgpack.Ext
_ALLOWED: dict[str, frozenset[type]] = {
    "int64": frozenset({int}),
    "float64": frozenset({float}),
    "text": frozenset({str}),
    "blob": frozenset({bytes}),
    "bool": frozenset({bool}),
    "json": frozenset({Json}),
    "any": frozenset({int, float, str, bytes, bool, Json}),
}
_OF_TYPE: dict[type, str] = {int: "int64", float: "float64", str: "text", bytes: "blob", bool: "bool", Json: "json"}
_DECODED: dict[str, Any] = {
    "int64": Annotated[int, msgspec.Meta(le=INT_MAX)],
    "float64": float,
    "text": str,
    "blob": bytes,
    "bool": bool,
}
_NAN = struct.pack(">d", float("nan"))


class Column(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A column: its name, and one of `TYPES`."""

    name: str
    type: str


class Index(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An index over columns, by their numbers."""

    name: str
    unique: bool
    columns: list[int]


class Table(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A table: its columns in the order first seen; `key` numbers those of the primary key, in its order."""

    name: str
    columns: list[Column]
    key: list[int]
    indexes: list[Index] = []

    @property
    def value_columns(self) -> list[int]:
        """The numbers of the columns that a row's value holds: all but the primary key's."""
        return [n for n in range(len(self.columns)) if n not in self.key]


Schema = list[Table]
_decode_schema = decoder(list[Table])
_decode_rows = decoder(list[tuple[Any, ...]])


def encode_schema(schema: Schema) -> bytes:
    """The value of the schema record (SPEC 9.1)."""
    return encode(schema)


def decode_schema(value: bytes) -> Schema:
    """The schema that the record with the empty key holds (SPEC 9.1)."""
    if len(value) > MAX_SCHEMA:
        raise Invalid("the schema is larger than 16 MiB")
    schema: Schema = _decode_schema(value)
    if encode(schema) != value:
        raise Invalid("the schema is not in its shortest form")
    if len(schema) > MAX_TABLES:
        raise Invalid("the schema has more than 65,536 tables")
    if len({table.name for table in schema}) != len(schema):
        raise Invalid("the schema has two tables of one name")
    for table in schema:
        _check_table(table)
    return schema


def _check_table(table: Table) -> None:
    names = [column.name for column in table.columns]
    if len(names) > MAX_COLUMNS or len(table.indexes) > MAX_INDEXES:
        raise Invalid(f"table {table.name!r} has more than 4,096 columns or 64 indexes")
    if len(set(names)) != len(names):
        raise Invalid(f"table {table.name!r} has two columns of one name")
    for column in table.columns:
        if column.type not in TYPES:
            raise Invalid(f"column {column.name!r} is of the unknown type {column.type!r}")
    for numbers in [table.key, *(index.columns for index in table.indexes)]:
        if not numbers or len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(len(names))):
            raise Invalid(f"table {table.name!r} has a key or an index over columns it does not have")
    if any(table.columns[n].type == "json" for n in table.key):
        raise Invalid(f"table {table.name!r} has JSON in its primary key")


def encode_row(values: Sequence[Any]) -> bytes:
    """The canonical bytes of a row: its values without the key's, trailing nils dropped (SPEC 9.3)."""
    if values and values[-1] is None:
        end = len(values)
        while end and values[end - 1] is None:
            end -= 1
        values = values[:end]
    return encode(values)


def encode_rows(columns: Sequence[Sequence[Any]], rows: int) -> list[bytes]:
    """The canonical bytes of many rows, given their value columns (SPEC 9.3)."""
    if not columns:
        return [encode(())] * rows
    encoder = encode_row if None in columns[-1] else encode
    return list(map(encoder, zip(*columns, strict=True)))


def decode_columns(table: Table, values: Sequence[bytes]) -> list[Sequence[Any]]:
    """The value columns of rows of one table.

    Raises Invalid unless every row is canonical and of the columns' types (SPEC 9.3).
    """
    columns = [table.columns[n] for n in table.value_columns]
    joined = _array_header(len(values)) + b"".join(values)
    found = _decode_typed(columns, values, joined)
    if found is not None:
        return found
    rows: list[tuple[Any, ...]] = _decode_rows(joined)
    if list(map(encode, rows)) != list(values):
        raise Invalid(f"table {table.name!r} has a row that is not in its shortest form")
    width = len(columns)
    lengths = set(map(len, rows))
    if lengths != {width}:
        if lengths and max(lengths) > width:
            raise Invalid(f"table {table.name!r} has a row with more than {width} values")
        if any(row and row[-1] is None for row in rows):
            raise Invalid(f"table {table.name!r} has a row that ends in nil")
        rows = [row + (None,) * (width - len(row)) for row in rows]
    elif width and None in map(itemgetter(-1), rows):
        raise Invalid(f"table {table.name!r} has a row that ends in nil")
    cells: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * width
    for column, one in zip(columns, cells, strict=True):
        check_cells(column, one)
    return cells


def _decode_typed(columns: list[Column], values: Sequence[bytes], joined: bytes) -> list[Sequence[Any]] | None:
    """The columns of rows that all have the last one, as nearly always; the decoder checks their types. None: look closely."""
    try:
        rows = _row_decoder(tuple(column.type for column in columns))(joined)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not columns or not rows or list(map(encode, rows)) != values:
        return None
    cells: list[Sequence[Any]] = list(zip(*rows, strict=True))
    if None in cells[-1]:
        return None
    for column, one in zip(columns, cells, strict=True):
        if column.type not in _DECODED:
            check_cells(column, one)
        elif column.type == "float64":
            _check_nans(column, one)
    return cells


@lru_cache
def _row_decoder(types: tuple[str, ...]) -> Callable[[bytes], list[tuple[Any, ...]]]:
    """Decodes rows with a value, or nil, for each of the types; integers become floats, which shows when encoded again."""
    fields = tuple(_DECODED.get(type_, Any) | None for type_ in types)
    return msgspec.msgpack.Decoder(list[tuple[fields]]).decode  # type: ignore[valid-type]


def check_cells(column: Column, cells: Sequence[Any]) -> None:
    """Raise Invalid for a cell that the column's type does not allow, or that is not in its one form (SPEC 9.3)."""
    types = set(map(type, cells))
    types.discard(type(None))
    if not types <= _ALLOWED[column.type]:
        raise Invalid(f"column {column.name!r} of type {column.type} holds another type")
    if types <= {str, bytes, bool}:
        return
    if int in types and max(filter(_is_integer, cells) if None in cells or len(types) > 1 else cells) > INT_MAX:
        raise Invalid(f"column {column.name!r} holds an integer beyond 64 bits")
    if types == {float}:
        _check_nans(column, cells)
    elif float in types:
        _check_nans(column, [cell for cell in cells if type(cell) is float])
    for cell in cells if Json in types else ():
        if type(cell) is Json and (cell.code != JSON_EXT or not _is_text(cell.data)):
            raise Invalid(f"column {column.name!r} holds an extension that is not JSON text")


def _check_nans(column: Column, cells: Sequence[float | None]) -> None:
    """Raise Invalid for a NaN, among floats and nils, that is not the canonical one. A sum tells whether there may be any."""
    total = sum(filter(None, cells))
    if total != total and any(cell != cell and struct.pack(">d", cell) != _NAN for cell in cells):
        raise Invalid(f"column {column.name!r} holds a NaN of a form that is not canonical")


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_text(data: Any) -> bool:
    """Whether JSON text is UTF-8, and not empty."""
    try:
        return bool(str(data, "utf-8"))
    except UnicodeDecodeError:
        return False


def _array_header(n: int) -> bytes:
    if n < 16:
        return bytes([0x90 | n])
    return b"\xdc" + n.to_bytes(2, "big") if n < 1 << 16 else b"\xdd" + n.to_bytes(4, "big")


def by_table(
    schema: Schema, keys: Sequence[bytes], values: Sequence[Any]
) -> Iterable[tuple[Table, list[bytes], list[Any]]]:
    """Cut records, in key order and without the schema's, into one part per table. Raises Invalid for an unknown table."""
    prefixes = {encode_element(table.name): table for table in schema}

    def prefix(pair: tuple[bytes, Any]) -> bytes:
        return table_prefix(pair[0])

    if keys and table_prefix(keys[0]) == table_prefix(keys[-1]):
        groups: Iterable[tuple[bytes, list[bytes], list[Any]]] = [(table_prefix(keys[0]), list(keys), list(values))]
    else:
        pairs = ((p, list(g)) for p, g in groupby(zip(keys, values, strict=True), prefix))
        groups = ((p, [k for k, _ in g], [v for _, v in g]) for p, g in pairs)
    for name, part, rest in groups:
        if name not in prefixes:
            raise Invalid("a row belongs to a table that the schema does not name")
        yield prefixes[name], part, rest


def table_prefix(key: bytes) -> bytes:
    """The part of a key that names its table."""
    at = key.find(b"\0")
    while at >= 0 and key[at + 1 : at + 2] == b"\xff":
        at = key.find(b"\0", at + 2)
    return key[: at + 1]


def full_rows(table: Table, keys: Sequence[bytes], values: Sequence[bytes]) -> list[tuple[Any, ...]]:
    """The rows of one table, whose keys ascend, with all columns in column order."""
    return list(zip(*full_columns(table, keys, values), strict=True))


def full_columns(table: Table, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Sequence[Any]]:
    """All columns of rows of one table, whose keys ascend, in column order."""
    columns: list[Sequence[Any]] = [()] * len(table.columns)
    for n, cells in zip(table.key, decode_key_columns(table.name, keys, len(table.key)), strict=True):
        check_cells(table.columns[n], cells)
        columns[n] = cells
    for n, column in zip(table.value_columns, decode_columns(table, values), strict=True):
        columns[n] = column
    return columns


def records_of(table: Table, rows: Sequence[Sequence[Any]]) -> tuple[list[bytes], list[bytes]]:
    """The keys and the values of rows given with all columns in column order. Raises Invalid for too long a key."""
    return column_records(table, list(zip(*rows, strict=True)))


def column_records(table: Table, columns: Sequence[Sequence[Any]]) -> tuple[list[bytes], list[bytes]]:
    """The keys and the values of rows given as all columns in column order, or as none. Raises Invalid for too long a key."""
    if not columns or not columns[0]:
        return [], []
    keys = encode_keys(table.name, [columns[n] for n in table.key])
    if max(map(len, keys)) > MAX_KEY:
        raise Invalid(f"a key is longer than {MAX_KEY:,} bytes")
    return keys, encode_rows([columns[n] for n in table.value_columns], len(columns[0]))


def table_bounds(table: Table) -> tuple[bytes, bytes]:
    """The keys of a table's rows are those in [first, second)."""
    return table_range(table.name)


def widened(before: str, seen: Iterable[type]) -> str:
    """The type of a column that was of type `before` ("": new) and takes cells of these types as well."""
    types = {_OF_TYPE[kind] for kind in seen if kind is not type(None)}
    types |= {before} - {""}
    return types.pop() if len(types) == 1 else "any"


def fits_int64(value: int) -> bool:
    """Whether an integer fits the type int64; others travel as JSON text (SPEC 9.3)."""
    return INT_MIN <= value <= INT_MAX

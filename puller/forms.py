"""What records look like to Python programs (SPEC 8 to 10): keys and values of each kind as Python values, and back. Pure.

| kind | key | value |
| --- | --- | --- |
| `bytes` | bytes | bytes |
| `files` | the path, a str with `/` | `File` |
| `table` | a tuple: the table's name, then the primary key | a dict: each column's name and value, the key's too |

A row's values are int, float, str, bytes, bool, None, and for JSON what `json.loads` would give: dict, list, and ints
beyond 64 bits. `1`, `1.0` and `True` are different values and different keys, as they are in a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from puller.errors import Invalid, UsageError
from puller.wire import files, jsontext, rows
from puller.wire.codec import MAX_KEY
from puller.wire.keys import decode_key, decode_keys, encode_element
from puller.wire.rows import Json, Schema, Table

T = TypeVar("T")
FileType = Literal["file", "executable", "symlink", "folder"]
_TYPE_BYTES: dict[str, bytes] = {
    "file": files.FILE,
    "executable": files.EXECUTABLE,
    "symlink": files.SYMLINK,
    "folder": files.FOLDER,
}
_TYPE_NAMES: dict[bytes, FileType] = {
    files.FILE: "file",
    files.EXECUTABLE: "executable",
    files.SYMLINK: "symlink",
    files.FOLDER: "folder",
}


def type_name(kind: bytes) -> FileType:
    """What lies at a path, by the first byte of its value (SPEC 8.2). Raises Invalid."""
    if kind not in _TYPE_NAMES:
        raise Invalid("a path holds something of an unknown type")
    return _TYPE_NAMES[kind]


@dataclass(frozen=True, slots=True)
class File:
    """What lies at a path (SPEC 8.2): `content` is a file's bytes or a symlink's destination; an empty folder has none.

    >>> File(b"text")
    File(content=b'text', type='file')
    """

    content: bytes
    type: FileType = "file"


class Form(Protocol):
    """Translates the records of one kind. Lists of wire keys are in key order.

    The `encode_*` methods raise UsageError for Python values that the kind cannot hold, the `decode_*` methods
    Invalid for records that break the format.
    """

    def encode_key(self, key: Any) -> bytes:
        """The wire key of a Python key."""
        ...

    def encode_value(self, key: Any, value: Any) -> bytes:
        """The wire value of a Python value that is to stand under a Python key."""
        ...

    def decode_keys(self, keys: Sequence[bytes]) -> list[Any]:
        """The Python keys of wire keys."""
        ...

    def decode_values(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Any]:
        """The Python values of records."""
        ...

    def encode_bound(self, key: Any) -> bytes:
        """Where a Python key stands in key order; of a tuple or a path, any first part may be given."""
        ...

    def prefix_range(self, prefix: Any) -> tuple[bytes, bytes | None]:
        """Keys that begin with `prefix` are those in [first, second); None: there is no upper end.

        A prefix is the first bytes of a key, the first characters of a path, or the first elements of a tuple.
        """
        ...


def form_of(kind: str, schema: Schema | None = None) -> Form:
    """The form of a dataset's kind; a table's needs the schema, and without one knows no tables."""
    if kind == "table":
        return TableForm(schema or [])
    return FilesForm() if kind == "files" else BytesForm()


class BytesForm:
    """Kind `bytes` (SPEC 10): everything as it is.

    >>> BytesForm().encode_key(b"k")
    b'k'
    """

    def encode_key(self, key: Any) -> bytes:
        return _fitting(bytes(_typed(key, bytes, "a key of a dataset of kind bytes")))

    def encode_value(self, key: Any, value: Any) -> bytes:
        return bytes(_typed(value, bytes, "a value of a dataset of kind bytes"))

    def decode_keys(self, keys: Sequence[bytes]) -> list[bytes]:
        return list(keys)

    def decode_values(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
        return list(values)

    def encode_bound(self, key: Any) -> bytes:
        return _typed(key, bytes, "a bound")

    def prefix_range(self, prefix: Any) -> tuple[bytes, bytes | None]:
        return _bytes_range(_typed(prefix, bytes, "a prefix"))


class FilesForm:
    """Kind `files` (SPEC 8): paths, and what lies there.

    >>> FilesForm().decode_values([b"run"], [b"x#!/bin/sh"])
    [File(content=b'#!/bin/sh', type='executable')]
    """

    def encode_key(self, key: Any) -> bytes:
        try:
            return files.check_path(_fitting(_utf8(_typed(key, str, "a path"))))
        except Invalid as error:
            raise UsageError(str(error)) from error

    def encode_value(self, key: Any, value: Any) -> bytes:
        file = _typed(value, File, "a value of a dataset of kind files")
        if file.type not in _TYPE_BYTES:
            raise UsageError(f"{key}: the type of a File is one of {', '.join(_TYPE_BYTES)}, not {file.type!r}")
        data = _TYPE_BYTES[file.type] + _typed(file.content, bytes, "the content of a File")
        try:
            files.check_values([self.encode_key(key)], [data])
        except Invalid as error:
            raise UsageError(str(error)) from error
        return data

    def decode_keys(self, keys: Sequence[bytes]) -> list[str]:
        try:
            return list(map(bytes.decode, keys))
        except UnicodeDecodeError as error:
            raise Invalid("a path is not UTF-8") from error

    def decode_values(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[File]:
        files.check_values(keys, values)
        return [File(value[1:], _TYPE_NAMES[value[:1]]) for value in values]

    def encode_bound(self, key: Any) -> bytes:
        return _utf8(_typed(key, str, "a bound"))

    def prefix_range(self, prefix: Any) -> tuple[bytes, bytes | None]:
        return _bytes_range(_utf8(_typed(prefix, str, "a prefix")))


class TableForm:
    """Kind `table` (SPEC 9): rows as dicts, by the schema they are of.

    >>> schema = [Table("prices", [rows.Column("sku", "text"), rows.Column("price", "float64")], [0])]
    >>> form = TableForm(schema)
    >>> key = form.encode_key(("prices", "a1"))
    >>> form.decode_values([key], [form.encode_value(("prices", "a1"), {"price": 9.5})])
    [{'sku': 'a1', 'price': 9.5}]
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._tables = {table.name: table for table in schema}
        self._names = {table.name: [column.name for column in table.columns] for table in schema}
        self._nested = {t.name for t in schema if {"json", "any"} & {column.type for column in t.columns}}

    def encode_key(self, key: Any) -> bytes:
        if type(key) is not tuple or len(key) < 2:
            raise UsageError(f"a key is a tuple of a table's name and a primary key, not {key!r:.200}")
        return _fitting(self.encode_bound(key))

    def encode_value(self, key: Any, value: Any) -> bytes:
        """The wire value of a row.

        Columns that `value` leaves out are None; those of the key may be left out, or say what the key says. A
        value is encoded by what it is, whatever its column's type: whoever publishes it widens the type.
        """
        table = self._table(key)
        row = _typed(value, Mapping, "a row")  # type: ignore[type-abstract]
        names = [column.name for column in table.columns]
        if unknown := [name for name in row if name not in set(names)]:
            raise UsageError(f"table {table.name!r} has no column {unknown[0]!r:.200}")
        for n, part in zip(table.key, key[1:], strict=True):
            if names[n] in row and not _same(row[names[n]], part):
                raise UsageError(f"column {names[n]!r} of the row is not what its key {key!r:.200} says")
        data = rows.encode_row([cell(row.get(names[n])) for n in table.value_columns])
        if len(data) > rows.MAX_ROW:
            raise UsageError(f"the row {key!r:.200} is larger than 256 MiB")
        return data

    def _table(self, key: Any) -> Table:
        self.encode_key(key)
        table = self._tables.get(key[0])
        if table is None:
            raise UsageError(f"the dataset has no table {key[0]!r:.200}")
        if len(key) - 1 != len(table.key):
            raise UsageError(
                f"the primary key of table {table.name!r} has {len(table.key)} columns, not {len(key) - 1}"
            )
        return table

    def decode_keys(self, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for name, part in _by_table(keys):
            found += [(name, *head) for head in decode_keys(name, part)]
        return found

    def decode_values(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        start = 0
        for name, part in _by_table(keys):
            if name not in self._tables:
                raise Invalid("a row belongs to a table that the schema does not name")
            cells = rows.full_rows(self._tables[name], part, values[start : start + len(part)])
            start += len(part)
            if name in self._nested:
                cells = [tuple(map(plain, row)) for row in cells]
            names = self._names[name]
            found += [dict(zip(names, row, strict=True)) for row in cells]
        return found

    def encode_bound(self, key: Any) -> bytes:
        parts = _typed(key, tuple, "a bound")
        if parts and type(parts[0]) is not str:
            raise UsageError(f"a key begins with a table's name, not {parts[0]!r:.200}")
        try:
            return b"".join(map(encode_element, parts))
        except (Invalid, UnicodeEncodeError) as error:
            raise UsageError(f"{parts!r:.200}: {error}") from error

    def prefix_range(self, prefix: Any) -> tuple[bytes, bytes | None]:
        bound = self.encode_bound(prefix)
        return bound or b"\0", bound + b"\xff"


def cell(value: Any) -> Any:
    """A Python value as the cell of a row (SPEC 9.5): nested values and ints beyond 64 bits become JSON text.

    Raises UsageError for what no row can hold.

    >>> cell({"a": [1, 1.0]}).data
    b'{"a":[1,1.0]}'
    """
    kind = type(value)
    if value is None or kind is bool or kind is bytes:
        return value
    try:
        if kind is str:
            value.encode()
            return value
        if kind is float:
            return value if value == value else float("nan")
        if kind is int:
            return _checked(jsontext.cell(value))
        if kind in (dict, list):
            return _nested(value)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{value!r:.100} cannot be part of a row: {error}") from error
    raise UsageError(
        f"{value!r:.100} cannot be part of a row: values are int, float, str, bytes, bool, None, and dicts and lists of "
        "what JSON has"
    )


def plain(value: Any) -> Any:
    """The Python value of a cell: JSON text parsed. Raises Invalid if it is none.

    >>> plain(cell([1, {"b": None}]))
    [1, {'b': None}]
    """
    if type(value) is not Json:
        return value
    try:
        return msgspec.json.decode(value.data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Invalid(f"a row holds JSON text that cannot be read: {error}") from error


def _nested(value: Any) -> Any:
    """JSON text that gives `value` back; what JSON would change (tuples, NaN, keys that are no str) is refused."""
    found = jsontext.cell(value)
    if not _same(msgspec.json.decode(found.data), value):
        raise UsageError(f"{value!r:.100} cannot be part of a row: JSON would not give it back as it is")
    return _checked(found)


def _checked(value: Any) -> Any:
    if type(value) is Json:
        data = bytes(value.data)
        if jsontext.json_depth(data) > jsontext.MAX_JSON_DEPTH:
            raise UsageError(f"JSON is nested more than {jsontext.MAX_JSON_DEPTH} deep")
        if data[:1] not in b"[{" and len(data.lstrip(b"-")) > jsontext.MAX_DIGITS:
            raise UsageError(f"an int has more than {jsontext.MAX_DIGITS:,} digits")
    return value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _typed(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind):
        raise UsageError(f"{what} is {kind.__name__}, not {type(value).__name__}")
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r:.200} is not Unicode text: {error.reason}") from error


def _fitting(key: bytes) -> bytes:
    if len(key) > MAX_KEY:
        raise UsageError(f"a key of {len(key):,} bytes is longer than {MAX_KEY:,}")
    return key


def _bytes_range(prefix: bytes) -> tuple[bytes, bytes | None]:
    short = prefix.rstrip(b"\xff")
    return prefix, short[:-1] + bytes([short[-1] + 1]) if short else None


def _by_table(keys: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Keys cut into one part per table, with its name; no schema is needed for that."""
    if keys and (len(keys) == 1 or rows.table_prefix(keys[0]) == rows.table_prefix(keys[-1])):
        yield decode_key(keys[0])[0], list(keys)
        return
    for _, group in groupby(keys, rows.table_prefix):
        part = list(group)
        yield decode_key(part[0])[0], part

"""Rows of the `table` kind as delimited text and back, exactly. Pure.

RFC 4180 in UTF-8 with lines that end in a newline: a header with the names of the columns, then one record a row. A field
is quoted if it is an empty text, or holds the delimiter, a quote or an end of line; inside quotes, a quote is doubled.

| value | field |
| --- | --- |
| nil | empty, without quotes |
| text | itself; an empty one as `""` |
| int | its digits |
| float | the shortest digits that read back as the same, with a point or an exponent; `inf`, `-inf`, `nan` |
| bool | `true`, `false` |
| blob | `\\x` and its hexadecimal digits |
| json | its text |

In a column of type any, a text is always quoted and gets a leading `\\` if it begins with `\\`, `{` or `[`; JSON text is
an object or an array, or an integer beyond 64 bits. So each value's type shows in its field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

from puller.errors import Invalid, TargetError
from puller.wire import rows as wire
from puller.wire.jsontext import MAX_DIGITS
from puller.wire.rows import JSON_EXT, Column, Json, Table

_INTEGER = re.compile(r"-?[0-9]+").fullmatch
_MARKED = ("\\", "{", "[")
_BOOLS = {"true": True, "false": False}
_BLOB = "\\x"

Cells = Sequence[Any]


class CsvForm:
    """How the rows of a table look as delimited text. `parse` gives back exactly the cells that `format` was given."""

    def __init__(self, table: Table, delimiter: str = ",") -> None:
        self.table = table
        self._delimiter = delimiter
        self._width = len(table.columns)
        self._specials = (delimiter, '"', "\n", "\r")
        self._special = re.compile(f'[{delimiter}"\r\n]').search
        end = f"[{delimiter}\n]"
        self._fields = re.compile(f'("[^"]*(?:""[^"]*)*"|[^"{delimiter}\n]*){end}').findall
        self.header = (delimiter.join(map(self._text, (column.name for column in table.columns))) + "\n").encode()

    def format(self, columns: Sequence[Cells]) -> bytes:
        """The records of rows, given all columns in column order. Raises TargetError for JSON text that has no field."""
        fields = map(self._format, self.table.columns, columns)
        return ("\n".join(map(self._delimiter.join, zip(*fields, strict=True))) + "\n").encode()

    def parse(self, data: bytes) -> list[Cells]:
        """All columns of the rows in whole records. Raises Invalid for what is no record of the table."""
        try:
            text = data.decode()
            fields = self._quoted_fields(text) if '"' in text else self._plain_fields(text)
            return [self._parse(c, fields[n :: self._width]) for n, c in enumerate(self.table.columns)]
        except (ValueError, KeyError, OverflowError) as error:
            raise Invalid(f"a line is not a row of table {self.table.name!r}: {error}") from error

    def _plain_fields(self, text: str) -> list[str]:
        lines = text.split("\n")
        if lines.pop() or set(map(str.count, lines, repeat(self._delimiter))) != {self._width - 1}:
            raise ValueError("it has another number of fields")
        return self._delimiter.join(lines).split(self._delimiter)

    def _quoted_fields(self, text: str) -> list[str]:
        """The fields with their quotes, which are what tells an empty text from nil."""
        fields: list[str] = self._fields(text)
        rows = zip(*[iter(fields)] * self._width, strict=True)
        if "\n".join(map(self._delimiter.join, rows)) + "\n" != text:
            raise ValueError("it has another number of fields, or quotes inside a field")
        return fields

    def _format(self, column: Column, cells: Cells) -> Cells:
        if column.type == "text":
            return self._texts(cells)
        if column.type == "any":
            return [self._any(cell, column.name) for cell in cells]
        if column.type == "json":
            return self._texts([None if cell is None else str(cell.data, "utf-8") for cell in cells])
        write = _WRITE[column.type]
        if None in cells:
            return ["" if cell is None else write(cell) for cell in cells]
        return list(map(write, cells))

    def _texts(self, cells: Cells) -> Cells:
        if None not in cells and "" not in cells:
            joined = "\0".join(cells)
            if not any(map(joined.__contains__, self._specials)):
                return cells
        return ["" if cell is None else self._text(cell) for cell in cells]

    def _text(self, text: str) -> str:
        return _quote(text) if not text or self._special(text) else text

    def _any(self, cell: Any, column: str) -> str:
        if cell is None:
            return ""
        if type(cell) is str:
            return _quote("\\" + cell if cell.startswith(_MARKED) else cell)
        if type(cell) is Json:
            text = str(cell.data, "utf-8")
            if text[0] in "{[":
                return _quote(text)
            if not _INTEGER(text) or len(text) > MAX_DIGITS or wire.fits_int64(int(text)):
                raise TargetError(
                    f"column {column!r} holds JSON text that is no object, array or large integer, which CSV cannot give back "
                    "exactly; pull into SQLite"
                )
            return text
        return _WRITE_ANY[type(cell)](cell)

    def _parse(self, column: Column, fields: list[str]) -> Cells:
        if column.type == "text":
            return _unquoted(fields)
        if column.type == "json":
            return [None if cell is None else Json(JSON_EXT, cell.encode()) for cell in _unquoted(fields)]
        read = _READ[column.type]
        cells: list[Any] = (
            [read(field) if field else None for field in fields] if "" in fields else list(map(read, fields))
        )
        if column.type == "int64" and not _fit(cells):
            raise ValueError(f"column {column.name!r} has an integer beyond 64 bits")
        return cells


def _fit(cells: Iterable[int | None]) -> bool:
    numbers = [cell for cell in cells if cell is not None]
    return not numbers or (wire.fits_int64(min(numbers)) and wire.fits_int64(max(numbers)))


def _unquoted(fields: list[str]) -> list[str | None]:
    if "" not in fields and not any(map(str.startswith, fields, repeat('"'))):
        return fields  # type: ignore[return-value]
    return [_unquote(field) if field.startswith('"') else field or None for field in fields]


def _value(field: str) -> Any:
    """The cell that a field of a column of type any stands for."""
    if field.startswith('"'):
        text = _unquote(field)
        if text.startswith("\\"):
            return text[1:]
        return Json(JSON_EXT, text.encode()) if text.startswith(("{", "[")) else text
    if field in _BOOLS:
        return _BOOLS[field]
    if field.startswith(_BLOB):
        return _bytes(field)
    if not _INTEGER(field):
        return float(field)
    number = int(field)
    return number if wire.fits_int64(number) else Json(JSON_EXT, field.encode())


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _unquote(field: str) -> str:
    return field[1:-1].replace('""', '"')


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _blob(value: bytes) -> str:
    return _BLOB + value.hex()


def _bytes(field: str) -> bytes:
    if not field.startswith(_BLOB):
        raise ValueError(f"{field!r:.100} is no blob")
    return bytes.fromhex(field[2:])


_WRITE: dict[str, Callable[[Any], str]] = {"int64": str, "float64": repr, "bool": _bool, "blob": _blob}
_WRITE_ANY: dict[type, Callable[[Any], str]] = {int: str, float: repr, bool: _bool, bytes: _blob}
_READ: dict[str, Callable[[str], Any]] = {
    "int64": int,
    "float64": float,
    "bool": _BOOLS.__getitem__,
    "blob": _bytes,
    "any": _value,
}

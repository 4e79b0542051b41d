"""Rows of the `table` kind as JSON and back (SPEC 9.5). Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from puller.errors import Invalid, TargetError
from puller.wire import rows as wire
from puller.wire.rows import JSON_EXT, Json, Table

_encode = msgspec.json.encode
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}]')


MAX_JSON_DEPTH = 512


def json_depth(text: Any) -> int:
    """How deep arrays and objects are nested in JSON text; at most that, where it is within the limit anyway."""
    data = bytes(text)
    if data.count(b"[") + data.count(b"{") <= MAX_JSON_DEPTH:
        return data.count(b"[") + data.count(b"{")
    depth = deepest = 0
    for token in _BRACKETS.findall(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token, 0)
        deepest = max(deepest, depth)
    return deepest


def cell(value: Any) -> Any:
    """A parsed JSON value as a cell: nested values and integers beyond 64 bits become JSON text."""
    if isinstance(value, (dict, list)):
        return Json(JSON_EXT, _encode(value))
    if type(value) is int and not wire.fits_int64(value):
        return Json(JSON_EXT, b"%d" % value)
    return value


def _json_value(value: Any, column: str) -> Any:
    if type(value) is Json:
        return msgspec.Raw(value.data)
    if isinstance(value, float) and not math.isfinite(value):
        raise TargetError(f"column {column!r} holds {value}, which JSON cannot express; pull into SQLite")
    return value


class JsonForm:
    """How the rows of a table look as JSON objects: members in column order; nils are left out.

    Blobs are base64 text. `parse` gives back exactly the cells that `format` was given, or `format` raises
    TargetError.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        fields = [(f"c{n}", _field_type(column.type), None) for n, column in enumerate(table.columns)]
        renames = {f"c{n}": column.name for n, column in enumerate(table.columns)}
        self._sparse: Any = msgspec.defstruct("Row", fields, rename=renames, omit_defaults=True)
        self._whole: Any = msgspec.defstruct("Row", fields, rename=renames)
        strict: Any = msgspec.defstruct("Row", fields, rename=renames, forbid_unknown_fields=True)
        self._strict = msgspec.json.Decoder(list[strict])
        self._encode_lines: Callable[[list[Any]], bytes] = msgspec.json.Encoder().encode_lines
        self._plain = all(column.type in ("int64", "text", "bool", "blob") for column in table.columns)

    def format(self, rows: list[tuple[Any, ...]], *, first: bool) -> bytes:
        """Lines of JSON. The first line of a file names all columns, so that their order and all of them can be read back."""
        given = rows
        if not self._plain:
            names = [column.name for column in self.table.columns]
            rows = [tuple(map(_json_value, row, names)) for row in rows]
        structs = [self._sparse(*row) for row in rows]
        if first and rows:
            structs[0] = self._whole(*rows[0])
        data = self._encode_lines(structs)
        if not self._plain and (data.count(b"\n") != len(rows) or not _same(self.parse(data.splitlines()), given)):
            raise TargetError(
                f"table {self.table.name!r} holds values that JSON Lines cannot give back exactly; pull into SQLite"
            )
        return data

    def parse(self, lines: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """The rows in lines of JSON that were written by `format`. Raises Invalid for others."""
        try:
            structs = self._strict.decode(b"[" + b",".join(lines) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"a line is not a row of table {self.table.name!r}: {error}") from error
        rows = list(map(msgspec.structs.astuple, structs))
        if self._plain:
            return rows
        types = [column.type for column in self.table.columns]
        return [tuple(map(_parsed, row, types)) for row in rows]


def _field_type(type_: str) -> Any:
    plain: dict[str, Any] = {"int64": int, "text": str, "bool": bool, "blob": bytes, "float64": float}
    if type_ == "json":
        return msgspec.Raw
    return plain[type_] | None if type_ in plain else Any


def _parsed(value: Any, type_: str) -> Any:
    if type_ == "json" and value is not None:
        text = bytes(value)
        return None if text == b"null" else Json(JSON_EXT, text)
    return cell(value)


def _same(found: list[tuple[Any, ...]], given: list[tuple[Any, ...]]) -> bool:
    return list(map(wire.encode_row, found)) == list(map(wire.encode_row, given))

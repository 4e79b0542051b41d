"""Rows of the `table` kind as JSON and back (SPEC 9.5). Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from puller.errors import Invalid, TargetError
from puller.wire import rows as wire
from puller.wire.rows import JSON_EXT, Json, Table

_encode = msgspec.json.encode
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}]')


MAX_JSON_DEPTH = 512
MAX_DIGITS = 4000


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


def needs_dicts(names: Iterable[str]) -> bool:
    """Whether objects with such member names must be handled as dicts: structs cannot have them."""
    return any(c in '"\\' or c < " " for name in names for c in name)


def row_struct(fields: list[tuple[str, Any]], **options: Any) -> Any:
    """A struct for JSON objects with members (name, type), all of which may be absent; attributes are c0, c1, …"""
    attributes = [(f"c{n}", type_, None) for n, (_, type_) in enumerate(fields)]
    renames = {f"c{n}": name for n, (name, _) in enumerate(fields)}
    return msgspec.defstruct("Row", attributes, rename=renames, gc=False, **options)


class JsonForm:
    """How the rows of a table look as JSON objects: members in column order; nils are left out.

    Blobs are base64 text. `parse` gives back exactly the cells that `format` was given, or `format` raises
    TargetError.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._names = [column.name for column in table.columns]
        self._dicts = needs_dicts(self._names)
        fields = [(column.name, _field_type(column.type)) for column in table.columns]
        if not self._dicts:
            self._sparse: Any = row_struct(fields, omit_defaults=True)
            self._whole: Any = row_struct(fields)
            self._strict = msgspec.json.Decoder(list[row_struct(fields, forbid_unknown_fields=True)])  # type: ignore[misc]
        self._encode_lines: Callable[[list[Any]], bytes] = msgspec.json.Encoder().encode_lines
        self._plain = not self._dicts and all(c.type in ("int64", "text", "bool", "blob") for c in table.columns)

    def format(self, rows: list[tuple[Any, ...]], *, first: bool) -> bytes:
        """Lines of JSON. The first line of a file names all columns, so that their order can be read back."""
        given = rows
        if not self._plain:
            rows = [tuple(map(_json_value, row, self._names)) for row in rows]
        objects = list(map(self._object, rows))
        if first and rows:
            objects[0] = dict(zip(self._names, rows[0], strict=True)) if self._dicts else self._whole(*rows[0])
        data = self._encode_lines(objects)
        if not self._plain and (data.count(b"\n") != len(rows) or not _same(self.parse(data.splitlines()), given)):
            raise TargetError(
                f"table {self.table.name!r} holds values that JSON Lines cannot give back exactly; pull into SQLite"
            )
        return data

    def _object(self, row: tuple[Any, ...]) -> Any:
        if not self._dicts:
            return self._sparse(*row)
        return {name: value for name, value in zip(self._names, row, strict=True) if value is not None}

    def parse(self, lines: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """The rows in lines of JSON that were written by `format`. Raises Invalid for others."""
        joined = b"[" + b",".join(lines) + b"]"
        types = [column.type for column in self.table.columns]
        try:
            if self._dicts:
                return self._parse_dicts(joined, types)
            rows = list(map(msgspec.structs.astuple, self._strict.decode(joined)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"a line is not a row of table {self.table.name!r}: {error}") from error
        return rows if self._plain else [tuple(map(_parsed, row, types)) for row in rows]

    def _parse_dicts(self, joined: bytes, types: list[str]) -> list[tuple[Any, ...]]:
        found = []
        for row in msgspec.json.decode(joined, type=list[dict[str, msgspec.Raw]]):
            if not set(row) <= set(self._names):
                raise Invalid(f"a line has members that table {self.table.name!r} lacks")
            cells = (
                msgspec.json.decode(row.get(n, b"null"), type=_member_type(t))
                for n, t in zip(self._names, types, strict=True)
            )
            found.append(tuple(map(_parsed, cells, types)))
        return found


def _field_type(type_: str) -> Any:
    plain: dict[str, Any] = {"int64": int, "text": str, "bool": bool, "blob": bytes, "float64": float}
    if type_ == "json":
        return msgspec.Raw
    return plain[type_] | None if type_ in plain else Any


def _member_type(type_: str) -> Any:
    found = _field_type(type_)
    return found if found in (Any, msgspec.Raw) else found | None


def _parsed(value: Any, type_: str) -> Any:
    if type_ == "json" and value is not None:
        text = bytes(value)
        return None if text == b"null" else Json(JSON_EXT, text)
    return cell(value)


def _same(found: list[tuple[Any, ...]], given: list[tuple[Any, ...]]) -> bool:
    return list(map(wire.encode_row, found)) == list(map(wire.encode_row, given))

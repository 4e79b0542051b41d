"""How records of a dataset lie in tables of PostgreSQL: columns, conditions by key, and COPY's text, made and read in C.

| dataset | PostgreSQL |
| --- | --- |
| int64, float64, text, blob, bool | bigint, double precision, text, bytea, boolean |
| json | json, which keeps the text as it is |
| any | json: numbers, texts and booleans as they are; {"blob": base64}, {"json": …}, {"float": "NaN"} for the rest |

Texts in a key are compared byte by byte (COLLATE "C"), so that the primary key's index gives a dataset's order.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from puller.errors import Invalid, TargetError
from puller.postgresql import BOOKKEEPING, TextRows, each, literal, quote
from puller.targets.tables import first_values, fits
from puller.wire import rows as wire
from puller.wire.codec import MAX_KEY
from puller.wire.keys import decode_keys, encode_keys
from puller.wire.rows import JSON_EXT, Column, Json, Schema, Table

RECORDS = Table("records", [Column("key", "blob"), Column("value", "blob")], [0])
"""The table of a dataset of kind `bytes`."""
_TYPES = {
    "int64": "bigint",
    "float64": "double precision",
    "text": "text",
    "blob": "bytea",
    "bool": "boolean",
    "json": "json",
    "any": "json",
}
_LONGEST = 63
"""Bytes of the longest name that PostgreSQL keeps; it cuts others."""
_encode_lines = msgspec.json.Encoder().encode_lines
_CONTROL = re.compile(rb"\\u00([0-9a-f]{2})")
_BETWEEN = re.compile(rb"\]\n\[")
"""What stands between rows; to replace it by this takes half as long as by bytes.replace."""
_ESCAPE = re.compile(rb'\\[^"]')
_SHORT = {b"\\n": b"\n", b"\\t": b"\t", b"\\r": b"\r", b"\\b": b"\b", b"\\f": b"\f"}
Rows = tuple[list[bytes], list[bytes]]


class Form:
    """A table of a dataset in a schema of a database, and the SQL for it. Raises TargetError for what has no room there."""

    def __init__(self, table: Table, schema: str) -> None:
        self.table = table
        for name in (table.name, *(column.name for column in table.columns)):
            if not name or "\0" in name or len(name.encode()) > _LONGEST:
                raise TargetError(
                    f"PostgreSQL has no room for the name {name!r:.200}: names have 1 to {_LONGEST} bytes and no zero among "
                    "them; nothing was written. Pull into SQLite or JSON Lines"
                )
        if table.name == BOOKKEEPING:
            raise TargetError(f"a table of the name {table.name!r} would meet headwater's bookkeeping")
        for n in table.key:
            if table.columns[n].type == "any":
                raise TargetError(
                    f"column {table.columns[n].name!r} of the primary key of table {table.name!r} holds several types, and "
                    "one of PostgreSQL holds one; nothing was written. Pull into JSON Lines"
                )
        self.at = f"{quote(schema)}.{quote(table.name)}"
        self.columns = [quote(column.name) for column in table.columns]
        self.key = [self.columns[n] for n in table.key]
        self.order = ", ".join(self.key)
        self.kinds = [_TYPES[column.type] for column in table.columns]
        self._schema = schema
        self._rows = TextRows([column.type for column in table.columns])

    def create(self, at: str) -> str:
        """CREATE TABLE under a name, without its key."""
        kinds = [
            kind + (' COLLATE "C"' if kind == "text" and n in self.table.key else "")
            for n, kind in enumerate(self.kinds)
        ]
        return f"CREATE TABLE {at} ({', '.join(map(' '.join, zip(self.columns, kinds, strict=True)))})"

    def add_columns(self, start: int) -> str:
        """ALTER TABLE that adds the columns from a number on."""
        added = zip(self.columns[start:], self.kinds[start:], strict=True)
        return f"ALTER TABLE {self.at} {', '.join(f'ADD COLUMN {name} {kind}' for name, kind in added)}"

    def add_key(self, at: str) -> str:
        """ALTER TABLE that makes the key."""
        return f"ALTER TABLE {at} ADD PRIMARY KEY ({self.order})"

    def indexes(self) -> dict[str, str]:
        """The dataset's indexes by their names in PostgreSQL: CREATE INDEX for each. JSON has no order to index by.

        None is unique: rows change one after the other, and the source saw to it.
        """
        found = {}
        for n, index in enumerate(self.table.indexes):
            if "json" not in (self.kinds[c] for c in index.columns):
                name = f"idx_{self.table.name}_{n}"
                if len(name.encode()) > _LONGEST:
                    name = f"idx_{hashlib.sha256(self.table.name.encode()).hexdigest()[:32]}_{n}"
                columns = ", ".join(self.columns[c] for c in index.columns)
                found[f"{quote(self._schema)}.{quote(name)}"] = f"CREATE INDEX {quote(name)} ON {self.at} ({columns})"
        return found

    def select(self) -> str:
        """All columns, in the dataset's order, as `read` takes them."""
        casts = ["::int" if kind == "boolean" else "" for kind in self.kinds]
        columns = ", ".join(f"t.{name}{cast}" for name, cast in zip(self.columns, casts, strict=True))
        return f"SELECT {columns} FROM {self.at} AS t"

    def upsert(self, staged: str) -> str:
        """INSERT of staged rows, over those with the same keys."""
        columns = ", ".join(self.columns)
        update = ", ".join(f"{name} = excluded.{name}" for name in (self.columns[n] for n in self.table.value_columns))
        action = f"DO UPDATE SET {update}" if update else "DO NOTHING"
        return f"INSERT INTO {self.at} ({columns}) SELECT {columns} FROM {staged} ON CONFLICT ({self.order}) {action}"

    def changed(self, staged: str) -> str:
        """SELECT of a staged row that does not lie in the table as it was staged."""
        own, other = (", ".join(f"{at}.{name}::text" for name in self.columns) for at in "ts")
        join = f"LEFT JOIN {self.at} AS t ON {self._same('s', self.key)}"
        return f"SELECT true FROM {staged} AS s {join} WHERE ROW({own}) IS DISTINCT FROM ROW({other}) LIMIT 1"

    def remove(self, staged: str) -> str:
        """DELETE of the rows with staged keys."""
        return f"DELETE FROM {self.at} AS t USING {staged} AS s WHERE " + self._same("s", self.key)

    def left(self, staged: str) -> str:
        """SELECT of a row with a staged key, none of which is to be there."""
        return f"SELECT true FROM {self.at} AS t JOIN {staged} AS s ON {self._same('s', self.key)} LIMIT 1"

    def find(self, keys: Sequence[bytes]) -> str | None:
        """SELECT of the rows with some keys, in any order; None: PostgreSQL can have none of them."""
        heads = [head for head in self.heads(keys) if self._fits(head)]
        if not heads:
            return None
        types = [self.kinds[n] for n in self.table.key]
        arrays = ", ".join(_array(cells, type_) for cells, type_ in zip(zip(*heads, strict=True), types, strict=True))
        names = [f"k{n}" for n in range(len(types))]
        return f"{self.select()} JOIN unnest({arrays}) AS k({', '.join(names)}) ON {self._same('k', names)}"

    def _same(self, other: str, names: Sequence[str]) -> str:
        return " AND ".join(f"t.{own} = {other}.{name}" for own, name in zip(self.key, names, strict=True))

    def _fits(self, head: Sequence[Any]) -> bool:
        """Whether values are of the types of the key's first columns, and such as PostgreSQL has."""
        return fits(self.table, head) and not any(type(v) is str and "\0" in v for v in head)

    def from_(self, bound: bytes) -> str:
        """A condition that all rows from a bound in key order on meet; earlier ones may, too."""
        head = self._bound(bound)
        while head and not self._fits(head):
            head = head[:-1]
        return self._above(head, ">=") if head else ""

    def after(self, head: Sequence[Any]) -> str:
        """The condition that the rows behind one meet, given its key's values."""
        return self._above(head, ">")

    def _above(self, head: Sequence[Any], sign: str) -> str:
        values = ", ".join(
            literal(_plain_text(value), self.kinds[n]) for value, n in zip(head, self.table.key, strict=False)
        )
        return f"WHERE ({', '.join(f't.{name}' for name in self.key[: len(head)])}) {sign} ({values})"

    def _bound(self, bound: bytes) -> Sequence[Any]:
        return first_values(self.table, bound)

    def heads(self, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """The values of the primary key in some keys, which ascend. Raises Invalid."""
        heads = decode_keys(self.table.name, keys)
        if set(map(len, heads)) - {len(self.key)}:
            raise Invalid(f"table {self.table.name!r} has a key with a wrong number of values")
        return heads

    def full_columns(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Sequence[Any]]:
        """All columns of records, whose keys ascend. Raises Invalid."""
        return wire.full_columns(self.table, keys, values)

    def records(self, columns: list[Sequence[Any]]) -> Rows:
        """The records of rows. Raises Invalid."""
        keys = encode_keys(self.table.name, [columns[n] for n in self.table.key])
        if max(map(len, keys)) > MAX_KEY:
            raise Invalid(f"a key is longer than {MAX_KEY:,} bytes")
        return keys, wire.encode_rows([columns[n] for n in self.table.value_columns], len(keys))

    def read(self, block: bytes) -> tuple[Rows, Sequence[Any]]:
        """The records in what `rows_out` gave of `select`, and the last one's key values. Raises Invalid for an edited row."""
        columns = self._rows.columns(block)
        for n, column in enumerate(self.table.columns):
            if column.type == "any":
                columns[n] = each(_from_tagged, columns[n])
        return self.records(columns), [columns[n][-1] for n in self.table.key]

    def write(self, columns: list[Sequence[Any]], numbers: Sequence[int]) -> bytes:
        """COPY's text (`copy`) of some columns of rows. Raises TargetError for values that PostgreSQL cannot hold."""
        cells = [self._convert(number, column) for number, column in zip(numbers, columns, strict=True)]
        data: bytes = _encode_lines(list(zip(*cells, strict=True)))
        data = _BETWEEN.sub(b"\n", data[1:-2]) + b"\n"
        if _ESCAPE.search(data) is None:  # what is escaped, if anything, are quotes
            return data
        data = data.replace(b"\\\\", b"\0")  # JSON has no such byte; what begins with a backslash now is an escape
        for escape in set(_ESCAPE.findall(data)):
            if escape == b"\\u":
                if b"\\u0000" in data:
                    raise self._zero(columns, numbers)
                data = _CONTROL.sub(_control, data)
            else:
                data = data.replace(escape, _SHORT[escape])
        return data.replace(b"\0", b"\\\\")

    def copy(self, at: str, numbers: Sequence[int], *, freeze: bool = False) -> str:
        """The COPY that takes what `write` makes: CSV whose texts are quoted, with the backslash before quotes and itself."""
        names = ", ".join(self.columns[n] for n in numbers)
        options = "FORMAT csv, ESCAPE '\\', NULL 'null'" + (", FREEZE" if freeze else "")
        return f"COPY {at} ({names}) FROM STDIN ({options})"

    def _convert(self, number: int, cells: Sequence[Any]) -> Sequence[Any]:
        type_ = self.table.columns[number].type
        if type_ == "float64":
            return cells if _all_finite(cells) else each(_float_text, cells)
        if number in self.table.key and None in cells:
            raise TargetError(
                f"table {self.table.name!r} has a row without a value in its key, which PostgreSQL cannot hold; nothing was "
                "written. Pull into JSON Lines"
            )
        if type_ == "any":
            return [self._tagged(number, cell) for cell in cells]
        return each(_CELLS[type_], cells) if type_ in _CELLS else cells

    def _tagged(self, number: int, cell: Any) -> str | None:
        try:
            return None if cell is None else _to_tagged(cell)
        except msgspec.DecodeError:
            raise TargetError(
                f"column {self.table.columns[number].name!r} of table {self.table.name!r} holds JSON that PostgreSQL cannot "
                f"give back exactly: {bytes(cell.data)[:100]!r}; nothing was written. Pull into SQLite"
            ) from None

    def _zero(self, columns: list[Sequence[Any]], numbers: Sequence[int]) -> TargetError:
        for number, cells in zip(numbers, columns, strict=True):
            found = next((cell for cell in cells if type(cell) is str and "\0" in cell), None)
            if found is not None:
                return TargetError(
                    f"column {self.table.columns[number].name!r} of table {self.table.name!r} holds a text with a zero "
                    f"character, {found!r:.100}, which PostgreSQL cannot hold; nothing was written. Pull into SQLite"
                )
        return TargetError(f"table {self.table.name!r} holds JSON that PostgreSQL cannot hold; nothing was written")


class BytesForm(Form):
    """The records of a dataset of kind `bytes`."""

    def __init__(self, schema: str) -> None:
        super().__init__(RECORDS, schema)

    def _bound(self, bound: bytes) -> Sequence[Any]:
        return (bound,)

    def heads(self, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        return list(zip(keys, strict=True))

    def full_columns(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Sequence[Any]]:
        return [keys, values]

    def records(self, columns: list[Sequence[Any]]) -> Rows:
        keys, values = columns
        if None in values or max(map(len, keys)) > MAX_KEY:
            raise Invalid("no value, or too long a key")
        return list(keys), list(values)


def forms_of(kind: str, schema: Schema, where: str) -> dict[str, Form]:
    """The tables of a dataset in the schema `where` of a database, in the order of their rows' keys."""
    if kind == "bytes":
        return {RECORDS.name: BytesForm(where)}
    return {table.name: Form(table, where) for table in sorted(schema, key=wire.table_bounds)}


def _all_finite(cells: Sequence[Any]) -> bool:
    return all(map(math.isfinite, filter(None, cells)))


def _float_text(cell: float) -> float | str:
    return cell if math.isfinite(cell) else str(cell)


def _blob_text(cell: bytes) -> str:
    return "\\x" + cell.hex()


def _json_text(cell: Json) -> str:
    return str(cell.data, "utf-8")


_CELLS: dict[str, Callable[[Any], Any]] = {"blob": _blob_text, "json": _json_text}


def _plain_text(value: Any) -> str:
    """A value of a key as PostgreSQL's input functions read it."""
    return _blob_text(value) if isinstance(value, bytes) else str(value)


def _array(cells: Sequence[Any], type_: str) -> str:
    texts = map(_plain_text, cells)
    if type_ in ("text", "bytea"):
        escaped = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
        return literal('{"' + '","'.join(escaped) + '"}', f"{type_}[]")
    return literal("{" + ",".join(texts) + "}", f"{type_}[]")


def _control(match: re.Match[bytes]) -> bytes:
    return bytes([int(match.group(1), 16)])


class _Tagged(msgspec.Struct, forbid_unknown_fields=True):
    """What a column of type `any` holds as an object."""

    blob: bytes | None = None
    json: msgspec.Raw = msgspec.Raw(b"")
    float: str | None = None


_decode_tagged = msgspec.json.Decoder(_Tagged).decode
_decode_plain = msgspec.json.Decoder(bool | int | float | str).decode


def _to_tagged(cell: Any) -> str:
    """A value as JSON by which its type is known again. Raises DecodeError for JSON that would change."""
    if type(cell) is Json:
        data = b'{"json":' + cell.data + b"}"
        if bytes(_decode_tagged(data).json) != cell.data:
            raise msgspec.DecodeError
        return data.decode()
    if isinstance(cell, bytes):
        return '{"blob":"' + base64.b64encode(cell).decode() + '"}'
    if isinstance(cell, float) and not math.isfinite(cell):
        return f'{{"float":"{cell}"}}'
    return msgspec.json.encode(cell).decode()


def _from_tagged(text: str) -> Any:
    """The value of such JSON. Raises Invalid where it was edited into something else."""
    try:
        if not text.startswith("{"):
            return _decode_plain(text)
        found = _decode_tagged(text)
        if found.blob is not None:
            return found.blob
        if bytes(found.json):
            return Json(JSON_EXT, bytes(found.json))
        return float(found.float or "")
    except (msgspec.MsgspecError, ValueError) as error:
        raise Invalid(f"{text:.100} in a column of type any") from error


def parts_of(
    kind: str, forms: dict[str, Form], keys: list[bytes], values: list[Any]
) -> list[tuple[Form, list[bytes], list[Any]]]:
    """Records, in key order and without a schema's, in one part per table. Raises Invalid for an unknown table."""
    if kind == "bytes":
        return [(forms[RECORDS.name], keys, values)]
    schema = [form.table for form in forms.values()]
    return [(forms[table.name], part, rest) for table, part, rest in wire.by_table(schema, keys, values)]

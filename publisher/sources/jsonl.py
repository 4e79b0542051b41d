"""JSON Lines as source (kind `table`, one table): columns are the union of the fields."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from operator import attrgetter
from typing import IO, Any

import msgspec

from publisher.sources.base import Report, Unsorted
from puller.errors import Invalid, SourceError, UsageError
from puller.wire import rows as wire
from puller.wire.codec import MAX_INLINE, MAX_KEY
from puller.wire.jsontext import MAX_DIGITS, MAX_JSON_DEPTH, cell, json_depth, needs_dicts, row_struct
from puller.wire.keys import decode_key, encode_keys
from puller.wire.nodes import Run, is_ascending
from puller.wire.rows import SCHEMA_KEY, Column, Json, Schema, Table

_BLOCK = 4 << 20
_RUN = 4096
_OF_TYPE: dict[frozenset[type], str] = {
    frozenset({int}): "int64",
    frozenset({float}): "float64",
    frozenset({str}): "text",
    frozenset({bool}): "bool",
    frozenset({Json}): "json",
}


class JsonLinesSource:
    """Reads one JSON object a line; `path` may be "-" for standard input.

    `schema` is what was published before: its columns stay, in their order, and its key is used where none is
    given. A field that is null or absent is nil; of a field that a line has twice, the last one counts.
    """

    kind = "table"

    def __init__(self, path: str, key: Sequence[str], table: str, schema: Schema) -> None:
        self.where = path
        self._table = table
        self.report = Report()
        self._old = next((t for t in schema if t.name == table), None)
        self._key = list(key)
        if not self._key and self._old is not None:
            self._key = [self._old.columns[n].name for n in self._old.key]
        if not self._key:
            raise UsageError(f"{path}: say which field is the key of a row, with --key FIELD (repeatable)")
        self._sorted = True
        self._spool: IO[bytes] | None = None
        self._columns = _Columns(self._key, self._old)

    def runs(self) -> Iterator[Run]:
        """In one pass if the lines are in key order; raises Unsorted at the first that is not, and then sorts."""
        self.report = Report()
        self._columns = _Columns(self._key, self._old)
        return self._ordered() if self._sorted else self._sort()

    def lead(self) -> Run:
        schema = [] if self._columns.empty else [self._columns.table(self._table, self._old)]
        return [SCHEMA_KEY], [wire.encode_schema(schema)]

    def _ordered(self) -> Iterator[Run]:
        last = b""
        for keys, values in self._records():
            if keys and (keys[0] <= last or not is_ascending(keys)):
                self._sorted = False
                raise Unsorted
            if keys:
                last = keys[-1]
                yield keys, values

    def _sort(self) -> Iterator[Run]:
        keys: list[bytes] = []
        values: list[Any] = []
        for part in self._records():
            keys += part[0]
            values += part[1]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        for before, after in pairwise(order):
            if keys[before] == keys[after]:
                row = decode_key(keys[before])[1]
                raise SourceError(
                    f"{self.where}: lines {before + 1} and {after + 1} have the same key {list(row)!r:.200}; "
                    "nothing was published"
                )
        for start in range(0, len(order), _RUN):
            pick = order[start : start + _RUN]
            yield list(map(keys.__getitem__, pick)), list(map(values.__getitem__, pick))

    def _records(self) -> Iterator[Run]:
        number = 0
        with self._open() as file:
            rest = b""
            while block := file.read(_BLOCK):
                self.report.bytes_read += len(block)
                if number == 0 and not rest and block.startswith(b"\xef\xbb\xbf"):
                    block = block[3:]
                end = block.rfind(b"\n") + 1
                if not end:
                    rest += block
                    continue
                lines, rest = rest + block[:end], block[end:]
                yield self._encode(lines, number)
                number += lines.count(b"\n")
            if rest.strip():
                yield self._encode(rest, number)

    def _encode(self, lines: bytes, number: int) -> Run:
        rows = self._decode(lines, number)
        if not rows:
            return [], []
        try:
            cells = self._columns.cells(rows)
            heads = cells[: len(self._key)]
            keys = encode_keys(self._table, heads)
        except Invalid as error:
            raise SourceError(f"{self.where}: near line {number + 1}: {error}; nothing was published") from error
        if max(map(len, keys)) > MAX_KEY:
            raise SourceError(f"{self.where}: near line {number + 1}: a key is longer than 4096 bytes")
        for name, head in zip(self._key, heads, strict=True):
            if None in head:
                line = self._line(lines, number, head.index(None))
                raise SourceError(f"{self.where}: line {line} has no key field {name!r}; nothing was published")
        values: list[Any] = wire.encode_rows(cells[len(self._key) :], len(keys))
        if max(map(len, values)) > wire.MAX_ROW:
            raise SourceError(
                f"{self.where}: near line {number + 1}: a row is larger than 256 MiB; nothing was published"
            )
        if max(map(len, values)) > MAX_INLINE:
            values = [value if len(value) <= MAX_INLINE else LazyRow(value) for value in values]
        return keys, values

    def _line(self, lines: bytes, number: int, row: int) -> int:
        full = (n for n, line in enumerate(lines.split(b"\n"), number + 1) if line.strip())
        return next(islice(full, row, None), number + 1)

    def _decode(self, lines: bytes, number: int) -> list[Any]:
        """Rows as objects of the columns' decoder."""
        try:
            structs = self._columns.decoder.decode_lines(lines)
            known = not self._columns.misses(structs)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            known = False
        if not known:
            self._learn(lines, number)
            structs = self._columns.decoder.decode_lines(lines)
        expected = lines.count(b"\n") + (not lines.endswith(b"\n"))
        if len(structs) != expected:
            expected = sum(1 for line in lines.split(b"\n") if line.strip())
        if len(structs) != expected:
            self._learn(lines, number)
            raise SourceError(f"{self.where}: near line {number + 1} there is more than one object in a line")
        return structs

    def _learn(self, lines: bytes, number: int) -> None:
        """Take up new fields; raise SourceError for the first line that is no JSON object."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        fields: dict[str, None] = {}
        for n, line in enumerate(lines.split(b"\n"), number + 1):
            if not line.strip():
                continue
            try:
                fields.update(dict.fromkeys(decode(line)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise SourceError(
                    f"{self.where}: line {n} is not a JSON object ({error}); nothing was published"
                ) from error
        self._columns.add(fields)

    def _open(self) -> IO[bytes]:
        try:
            if self.where != "-":
                return open(self.where, "rb", buffering=0)
            if self._spool is None:
                self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - kept to be read again
                shutil.copyfileobj(sys.stdin.buffer, self._spool)
                self._spool.flush()
            copy = os.fdopen(os.dup(self._spool.fileno()), "rb")
            copy.seek(0)
            return copy
        except OSError as error:
            raise SourceError(f"{self.where} cannot be read: {error.strerror}; nothing was published") from error


class _Columns:
    """The columns seen so far, the key's first, with the types of their cells."""

    def __init__(self, key: list[str], old: Table | None) -> None:
        self._key = key
        self._names = list(key)
        known = {} if old is None else {column.name: column.type for column in old.columns}
        self._types: list[set[type]] = [set() for _ in key]
        self._old = known
        self._order: list[str] = list(known)
        self.add(dict.fromkeys(known))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to know a table by."""
        return not self._order and not any(self._types)

    def add(self, fields: dict[str, None]) -> None:
        """Take up the fields that are not known yet, in order."""
        known = set(self._names)
        new = [name for name in fields if name not in known]
        self._names += new
        self._types += [set() for _ in new]
        ordered = set(self._order)
        self._order += [name for name in fields if name not in ordered]
        self._dicts = needs_dicts(self._names)
        if self._dicts:
            self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(dict[str, Any])
        else:
            members = [(name, Any) for name in self._names]
            self.decoder = msgspec.json.Decoder(row_struct(members, forbid_unknown_fields=True))

    def misses(self, rows: list[Any]) -> bool:
        """Whether rows have fields that are not known; structs say so themselves."""
        return self._dicts and not set().union(*rows) <= set(self._names)

    def cells(self, rows: list[Any]) -> list[list[Any]]:
        """The cells of each column, the key's first, as the format has them; notes their types."""
        found = []
        for n, seen in enumerate(self._types):
            cells = [row.get(self._names[n]) for row in rows] if self._dicts else list(map(attrgetter(f"c{n}"), rows))
            types = set(map(type, cells))
            if dict in types or list in types or (int in types and not _fit(cells, types)):
                cells = list(map(self._nested, cells))
                types = set(map(type, cells))
            seen |= types
            found.append(cells)
        return found

    @staticmethod
    def _nested(value: Any) -> Any:
        found = cell(value)
        if type(value) is int and isinstance(found, Json) and len(bytes(found.data)) > MAX_DIGITS:
            raise Invalid(f"an integer has more than {MAX_DIGITS:,} digits")
        if isinstance(found, Json) and json_depth(found.data) > MAX_JSON_DEPTH:
            raise Invalid(f"JSON is nested more than {MAX_JSON_DEPTH} deep")
        return found

    def table(self, name: str, old: Table | None) -> Table:
        """The table with all columns, in the order first seen."""
        order = [*self._order, *(column for column in self._key if column not in self._order)]
        place = {column: n for n, column in enumerate(order)}
        if len(order) > wire.MAX_COLUMNS:
            raise SourceError(f"the rows have {len(order):,} fields; a table has at most {wire.MAX_COLUMNS:,} columns")
        columns = [Column(column, self._type(column)) for column in order]
        return Table(name, columns, [place[column] for column in self._key], [] if old is None else old.indexes)

    def _type(self, name: str) -> str:
        seen = frozenset(self._types[self._names.index(name)] - {type(None)})
        before = self._old.get(name)
        now = _OF_TYPE.get(seen, "any")
        if before is None or before == now or before == "any":
            return before or now
        return before if not seen else "any"


def _fit(cells: list[Any], types: set[type]) -> bool:
    numbers = cells if types == {int} else [value for value in cells if type(value) is int]
    return wire.fits_int64(max(numbers)) and wire.fits_int64(min(numbers))


class LazyRow:
    """A row over 1 MiB, given as a stream so that it is stored in pieces."""

    prefix = b""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def open(self) -> Any:
        import io

        return io.BytesIO(self._value)

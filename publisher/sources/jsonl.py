"""JSON Lines as source (kind `table`, one table): columns are the union of the fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, Any

import msgspec

from publisher.sources import sorting
from publisher.sources.rowsfile import RowsFile
from publisher.sources.sorting import Rows
from publisher.sources.statcache import StatCache
from puller.errors import Invalid, SourceError
from puller.wire import rows as wire
from puller.wire.codec import MAX_KEY
from puller.wire.jsontext import MAX_DIGITS, MAX_JSON_DEPTH, cell, json_depth, needs_dicts, row_struct
from puller.wire.keys import decode_key, encode_keys
from puller.wire.nodes import Run
from puller.wire.rows import SCHEMA_KEY, Column, Json, Schema, Table

_BLOCK = 512 << 10
_MARK = b"\xef\xbb\xbf"
_MOST_BYTES = 9
"""A row has at most so many bytes for each of its line (`1e1` becomes nine), or is small."""


class JsonLinesSource(RowsFile):
    """Reads one JSON object a line; `path` may be "-" for standard input.

    `schema` is what was published before: its columns stay, in their order, and its key is used where none is
    given. A field that is null or absent is nil; of a field that a line has twice, the last one counts. Lines that
    are not in key order are sorted within `memory` bytes, and in temporary files beyond.
    """

    def __init__(
        self,
        path: str,
        key: Sequence[str],
        table: str,
        schema: Schema,
        *,
        memory: int = sorting.MEMORY,
        cache: StatCache | None = None,
    ) -> None:
        super().__init__(path, key, table, schema, memory=memory, cache=cache)
        self._columns = _Columns(self._key, self._old)

    def lead(self) -> Run:
        schema = [] if self._columns.empty else [self._columns.table(self._table, self._old)]
        return [SCHEMA_KEY], [wire.encode_schema(schema)]

    def _again(self) -> None:
        self._columns = _Columns(self._key, self._old)

    def _duplicate(self, key: bytes) -> SourceError:
        """The error for two rows with the same key; reads the lines once more to find them."""
        found: list[int] = []
        with self._open() as file:
            number = 0
            for lines, ends in self._blocks(file):
                keys, _ = self._encode(lines, ends, number)
                found += [self._line(lines, number, n) for n, other in enumerate(keys) if other == key]
                number += ends
                if len(found) > 1:
                    break
        named = " and ".join(map(str, found[:2]))
        row = list(decode_key(key)[1])
        return SourceError(f"{self.where}: lines {named} have the same key {row!r:.200}; nothing was published")

    def _records(self) -> Iterator[Rows]:
        number = 0
        with self._open() as file:
            for lines, ends in self._blocks(file):
                yield self._encode(lines, ends, number)
                number += ends

    def _blocks(self, file: IO[bytes]) -> Iterator[tuple[memoryview, int]]:
        """Whole lines with their number, in a buffer that is used again for the next ones."""
        buffer = bytearray(_BLOCK)
        filled, end = 0, 0
        first = True
        while got := file.readinto(memoryview(buffer)[filled:]):  # type: ignore[attr-defined]
            self.report.bytes_read += got
            before, filled = filled, filled + got
            if first and filled < len(_MARK) and _MARK.startswith(buffer[:filled]):
                continue
            if first and buffer.startswith(_MARK):
                buffer[: filled - len(_MARK)] = buffer[len(_MARK) : filled]
                before, filled = 0, filled - len(_MARK)
            first = False
            end = buffer.rfind(b"\n", before, filled) + 1
            if end:
                yield memoryview(buffer)[:end], buffer.count(b"\n", 0, end)
                buffer[: filled - end] = buffer[end:filled]
                filled -= end
            elif filled == len(buffer):
                buffer = buffer + bytearray(len(buffer))
        if buffer[:filled].strip():
            yield memoryview(buffer)[:filled], 1

    def _encode(self, lines: memoryview, ends: int, number: int) -> Rows:
        rows = self._decode(lines, ends, number)
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
        values = wire.encode_rows(cells[len(self._key) :], len(keys))
        if len(lines) * _MOST_BYTES > wire.MAX_ROW and max(map(len, values)) > wire.MAX_ROW:
            raise SourceError(
                f"{self.where}: near line {number + 1}: a row is larger than 256 MiB; nothing was published"
            )
        return keys, values

    def _line(self, lines: memoryview, number: int, row: int) -> int:
        full = (n for n, line in enumerate(bytes(lines).split(b"\n"), number + 1) if line.strip())
        return next(islice(full, row, None), number + 1)

    def _decode(self, lines: memoryview, ends: int, number: int) -> list[Any]:
        """Rows as objects of the columns' decoder."""
        try:
            structs = self._columns.decoder.decode_lines(lines)
            known = not self._columns.misses(structs)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            known = False
        if not known:
            self._learn(bytes(lines), number)
            structs = self._columns.decoder.decode_lines(lines)
        if len(structs) != ends and len(structs) != sum(1 for line in bytes(lines).split(b"\n") if line.strip()):
            self._learn(bytes(lines), number)
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

    def cells(self, rows: list[Any]) -> list[Sequence[Any]]:
        """The cells of each column, the key's first, as the format has them; notes their types."""
        columns: list[Sequence[Any]] = list(zip(*self._tuples(rows), strict=True))
        for n, cells in enumerate(columns):
            types = set(map(type, cells))
            if dict in types or list in types or (int in types and not _fit(cells, types)):
                columns[n] = cells = list(map(self._nested, cells))
                types = set(map(type, cells))
            self._types[n] |= types
        return columns

    def _tuples(self, rows: list[Any]) -> Iterable[tuple[Any, ...]]:
        if self._dicts:
            return [tuple(map(row.get, self._names)) for row in rows]
        return map(msgspec.structs.astuple, rows)

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
        types = dict(zip(self._names, self._types, strict=True))
        columns = [Column(column, wire.widened(self._old.get(column, ""), types[column])) for column in order]
        return Table(name, columns, [place[column] for column in self._key], [] if old is None else old.indexes)


def _fit(cells: Sequence[Any], types: set[type]) -> bool:
    numbers = cells if types == {int} else [value for value in cells if type(value) is int]
    return wire.fits_int64(max(numbers)) and wire.fits_int64(min(numbers))

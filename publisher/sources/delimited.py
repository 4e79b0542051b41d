"""CSV and TSV as source (kind `table`, one table): fields as they are written, or with the types that all rows allow."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from publisher.sources import sorting
from publisher.sources.rowsfile import RowsFile
from publisher.sources.sorting import Rows
from publisher.sources.statcache import StatCache
from puller.errors import SourceError
from puller.wire import rows as wire
from puller.wire.codec import MAX_KEY
from puller.wire.keys import decode_key, encode_key, encode_keys
from puller.wire.nodes import Run
from puller.wire.rows import SCHEMA_KEY, Column, Schema, Table

DELIMITERS = ",\t;|"
_SAMPLE = 64 << 10
_LOOKED_AT = 50
"""Rows by which the delimiter is told."""
_STEP, _BATCH, _BYTES = 64, 512, 1 << 20
_NUMBERS = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\n)*")
_EXACT = 15
"""Characters of a whole number that a double holds, whatever they are."""
_BOOLS = {"true": True, "false": False, "": None}
_ALLOWED = {"int64": ("int64", "float64"), "float64": ("float64",), "bool": ("bool",), "text": ()}
"""What a column may be that was published with a type: never what is narrower, lest rows be rewritten to and fro."""


class DelimitedSource(RowsFile):
    """Reads a file of delimited fields in UTF-8, quoted by `"`; "-" is standard input.

    The first row names the fields, unless the key is given by numbers ("1", "2", …): then there is no such row, and fields
    are named by their numbers. Every row has as many fields. The delimiter is the one that cuts
    the first rows into the most fields, as many in each, or with `tabs` a tab.

    Fields are text as written. With `detect`, a column whose fields all are whole numbers of 64 bits, numbers (but for
    whole ones that lose digits as doubles), or `true` and `false` has that type, an empty field in it is nil, and a type
    that was published is never narrowed.
    """

    def __init__(
        self,
        path: str,
        key: Sequence[str],
        table: str,
        schema: Schema,
        *,
        detect: bool = False,
        tabs: bool = False,
        memory: int = sorting.MEMORY,
        cache: StatCache | None = None,
    ) -> None:
        super().__init__(path, key, table, schema, memory=memory, cache=cache)
        self._detect = detect
        self._tabs = tabs
        self._types: list[str] | None = None
        self._again()

    def _read_as(self) -> list[str]:
        return [*self._key, "detected" if self._detect else "as written"]

    def _again(self) -> None:
        self._names: list[str] = []
        self._keyed: list[int] = []
        self._order: list[int] = []

    def lead(self) -> Run:
        types = self._types or ["text"] * len(self._names)
        columns = [Column(self._names[n], types[n]) for n in self._order]
        schema = [Table(self._table, columns, list(map(self._order.index, self._keyed)))] if columns else []
        return [SCHEMA_KEY], [wire.encode_schema(schema)]

    def _records(self) -> Iterator[Rows]:
        if self._detect and self._types is None:
            self._types = self._detected()
        for rows in self._rows():
            columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
            if self._types is not None:
                columns = [_typed(cells, kind) for cells, kind in zip(columns, self._types, strict=True)]
            if any(None in columns[n] for n in self._keyed):
                raise self._blame(lambda row: not all(row[n] for n in self._keyed), "a field of its key is empty")
            keys = encode_keys(self._table, [columns[n] for n in self._keyed])
            if max(map(len, keys)) > MAX_KEY:
                raise self._blame(lambda row: len(self._key_of(row)) > MAX_KEY, "its key is longer than 4096 bytes")
            values = [columns[n] for n in self._order if n not in self._keyed]
            yield keys, wire.encode_rows(values, len(rows))

    def _detected(self) -> list[str]:
        """The narrowest type of each column that holds all its fields, and that it may have after what it had."""
        possible: list[list[str]] = []
        filled: set[int] = set()
        for rows in self._rows():
            possible = possible or [list(_FITS) for _ in self._names]
            for n, cells in enumerate(zip(*rows, strict=True)):
                if possible[n] and (given := list(filter(None, cells))):
                    filled.add(n)
                    possible[n] = [kind for kind in possible[n] if _FITS[kind](given)]
        before = {} if self._old is None else {column.name: column.type for column in self._old.columns}
        types = []
        for n, (name, fits) in enumerate(zip(self._names, possible or [[]] * len(self._names), strict=True)):
            had = before.get(name, "")
            found = [kind for kind in _ALLOWED.get(had, fits) if kind in fits]
            types.append(found[0] if found and (n in filled or had) else "text")
        return types

    def _rows(self) -> Iterator[list[list[str]]]:
        """The rows in batches, each with as many fields as there are names."""
        batch: list[list[str]] = []
        size = 0
        with self._reader() as reader:
            while part := list(islice(reader, _STEP)):
                rows = part if all(part) else list(filter(None, part))  # empty lines
                if not set(map(len, rows)) <= {len(self._names)}:
                    raise self._ragged()
                batch += rows
                size += sum(map(len, chain.from_iterable(rows)))
                if len(batch) >= _BATCH or size >= _BYTES:
                    self.report.bytes_read += size
                    yield batch
                    batch, size = [], 0
        self.report.bytes_read += size
        if batch:
            yield batch

    @contextmanager
    def _reader(self) -> Iterator[Iterator[list[str]]]:
        """Rows after the header, if there is one; learns the names of the fields. Errors name the line."""
        csv.field_size_limit(wire.MAX_ROW)
        line = 0
        with self._open() as raw, io.BufferedReader(raw, _SAMPLE) as file:  # type: ignore[type-var]
            delimiter = self._delimiter(file.peek(_SAMPLE)[:_SAMPLE])
            text = io.TextIOWrapper(file, "utf-8-sig", newline="")
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            try:
                first = next(filter(None, reader), None)
                line = reader.line_num
                if first is None:
                    yield iter(())
                    return
                named = self._name(first, line)
                yield reader if named else chain([first], reader)
            except UnicodeDecodeError as error:
                raise self._undecodable() from error
            except csv.Error as error:
                raise SourceError(f"{self.where}:{reader.line_num}: {error}; nothing was published") from error

    def _delimiter(self, sample: bytes) -> str:
        if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SourceError(f"{self.where}:1: this is UTF-16; nothing was published. Convert it to UTF-8")
        if self._tabs:
            return "\t"
        return find_delimiter(sample.decode("utf-8-sig", "replace"), whole=len(sample) < _SAMPLE)

    def _name(self, first: list[str], line: int) -> bool:
        """Take the names of the fields from the first row; say whether that is what it is."""
        named = not all(name.isdecimal() for name in self._key)
        self._names = first if named else [str(n + 1) for n in range(len(first))]
        missing = [name for name in self._key if name not in self._names]
        if missing:
            raise SourceError(
                f"{self.where}:{line}: there is no field {missing[0]!r} for the key, but "
                f"{', '.join(map(repr, self._names))[:200]}; nothing was published. If the first row is data, give the key by "
                "numbers: --key 1"
            )
        twice = [name for name in self._names if self._names.count(name) > 1]
        if twice:
            raise SourceError(f"{self.where}:{line}: two fields have the name {twice[0]!r}; nothing was published")
        if len(self._names) > wire.MAX_COLUMNS:
            raise SourceError(f"{self.where}:{line}: more than {wire.MAX_COLUMNS:,} fields; nothing was published")
        places = {} if self._old is None else {column.name: n for n, column in enumerate(self._old.columns)}
        self._keyed = [self._names.index(name) for name in self._key]
        self._order = sorted(range(len(first)), key=lambda n: places.get(self._names[n], len(places)))
        return named

    def _key_of(self, row: list[str]) -> bytes:
        types = self._types or ["text"] * len(self._names)
        return encode_key(self._table, [_typed([row[n]], types[n])[0] for n in self._keyed])

    def _lines(self, of: Callable[[list[str]], bool]) -> Iterator[int]:
        """The lines at which such rows begin."""
        csv.field_size_limit(wire.MAX_ROW)
        with self._open() as raw, io.BufferedReader(raw, _SAMPLE) as file:  # type: ignore[type-var]
            delimiter = self._delimiter(file.peek(_SAMPLE)[:_SAMPLE])
            reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            begins, is_header = 1, self._names != [str(n + 1) for n in range(len(self._names))]
            for row in reader:
                if row and not is_header and of(row):
                    yield begins
                is_header = is_header and not row
                begins = reader.line_num + 1

    def _blame(self, of: Callable[[list[str]], bool], why: str) -> SourceError:
        """The error for the first such row; reads the file once more to find it."""
        line = next(self._lines(of), "?")
        return SourceError(f"{self.where}:{line}: {why}; nothing was published")

    def _ragged(self) -> SourceError:
        width = len(self._names)
        return self._blame(lambda row: len(row) != width, f"this row has not {width} fields, as the first one has")

    def _duplicate(self, key: bytes) -> SourceError:
        found = " and ".join(map(str, islice(self._lines(lambda row: self._key_of(row) == key), 2)))
        row = list(decode_key(key)[1])
        return SourceError(f"{self.where}: lines {found} have the same key {row!r:.200}; nothing was published")

    def _undecodable(self) -> SourceError:
        with self._open() as raw, io.BufferedReader(raw) as file:  # type: ignore[type-var]
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return SourceError(
                        f"{self.where}:{number}: this is not UTF-8; nothing was published. Convert the file, for example "
                        "with iconv -f LATIN1 -t UTF-8"
                    )
        return SourceError(f"{self.where} was changed while it was read; nothing was published. Try again")


def find_delimiter(sample: str, *, whole: bool) -> str:
    """The delimiter that cuts the first rows into the most fields, as many in each; a comma if there is none."""
    widest = {}
    for delimiter in DELIMITERS:
        rows = list(islice(csv.reader(sample.splitlines(keepends=True), delimiter=delimiter), _LOOKED_AT + 1))
        rows = rows if whole and len(rows) <= _LOOKED_AT else rows[:-1]
        widths = {len(row) for row in rows if row}
        widest[delimiter] = widths.pop() if len(widths) == 1 else 1
    return max(widest, key=lambda delimiter: widest[delimiter])


def _typed(cells: Sequence[str], kind: str) -> Sequence[Any]:
    """The fields of a column as values of its type. Raises SourceError for a field that has appeared meanwhile."""
    if kind == "text":
        return cells
    convert = _BOOLS.__getitem__ if kind == "bool" else int if kind == "int64" else float
    try:
        if kind != "bool" and "" in cells:
            return [convert(cell) if cell else None for cell in cells]
        return list(map(convert, cells))
    except (ValueError, KeyError) as error:
        raise SourceError(
            f"the file was changed while it was read ({error}); nothing was published. Try again"
        ) from error


def _are_integers(cells: list[str]) -> bool:
    """Whether all are whole numbers of 64 bits as they would be written again."""
    try:
        numbers = list(map(int, cells))
    except ValueError:
        return False
    return list(map(str, numbers)) == cells and wire.fits_int64(max(numbers)) and wire.fits_int64(min(numbers))


def _are_numbers(cells: list[str]) -> bool:
    """Whether all are numbers as JSON has them, and finite; whole ones, such as a double holds to the last digit."""
    joined = "\n".join(cells) + "\n"
    if joined.count("\n") != len(cells) or not _NUMBERS.fullmatch(joined):
        return False
    whole = [cell for cell in cells if len(cell) > _EXACT and cell.lstrip("-").isdigit()]
    return all(map(math.isfinite, map(float, cells))) and all(int(float(cell)) == int(cell) for cell in whole)


def _are_bools(cells: list[str]) -> bool:
    return set(cells) <= {"true", "false"}


_FITS: dict[str, Callable[[list[str]], bool]] = {
    "int64": _are_integers,
    "float64": _are_numbers,
    "bool": _are_bools,
}
"""Types that can be detected, the narrowest first."""

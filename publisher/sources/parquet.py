"""Parquet as source (kind `table`, one table): a file, or a folder of files with the same columns; typed by its columns."""

from __future__ import annotations

import contextlib
import os
import stat as stats
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any
from urllib.parse import unquote

from publisher.sources import sorting
from publisher.sources.rowsfile import RowsFile
from publisher.sources.sorting import Rows
from publisher.sources.statcache import StatCache, look, racy_since
from puller.errors import Invalid, SourceError
from puller.wire import rows as wire
from puller.wire.codec import MAX_KEY
from puller.wire.keys import decode_key, encode_key, encode_keys
from puller.wire.nodes import Run
from puller.wire.rows import SCHEMA_KEY, Column, Schema, Table

ENDING = ".parquet"
OURS = ".headwater"
"""What the names of bookkeeping end in, which lies beside copies."""
_BATCH_ROWS, _BATCH_BYTES = 4096, 4 << 20
_BUFFER = 1 << 20
"""Bytes of a column that are read at a time: without it, a column of a row group is."""
_NIL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class _Part:
    """A file, and the values that the folders above it (`name=value`) give all its rows."""

    path: str
    folders: tuple[tuple[str, str | None], ...] = ()


@dataclass
class _Shape:
    """The columns that all files have: their Arrow types, and the types that they become."""

    names: list[str]
    arrow: list[Any]
    kinds: list[str]
    """The type of each column; "" where the cells decide."""
    own: Table | None
    """The table that the file was written from, if headwater wrote it."""
    seen: list[set[type]] = field(default_factory=list)


class ParquetSource(RowsFile):
    """Reads the rows of Parquet files, a batch of a row group at a time; "-" is standard input.

    A folder is one table: the files in it and below, in the order of their paths, with the same columns; folders
    `name=value` are columns of text. What each type becomes is in `publisher.sources.arrowcells`. A file that
    headwater wrote gives back exactly what it was written from, and names its own table and key.
    """

    def __init__(
        self,
        path: str,
        key: Sequence[str],
        table: str | None,
        schema: Schema,
        *,
        name: str,
        strict: bool = False,
        memory: int = sorting.MEMORY,
        cache: StatCache | None = None,
    ) -> None:
        """`table` names the rows' table; None: as it was published or written, else `name`."""
        require()
        self.where = path
        self._strict = strict
        self._spool = None
        own = None
        if not (key and table) and path != "-":
            own = self._survey(next(iter(self._find(path)[0]), None))
        if table is None:
            table = schema[0].name if len(schema) == 1 else own.name if own is not None else name
        if not key and own is not None and table not in [one.name for one in schema]:
            key = [own.columns[n].name for n in own.key]
        super().__init__(path, key, table, schema, memory=memory, cache=cache)
        self._again()

    def size(self) -> int:
        """Bytes of all files."""
        return sum(os.path.getsize(part.path) for part in self._find(self.where)[0])

    def _survey(self, part: _Part | None) -> Table | None:
        """The table that a file was written from, if headwater wrote it."""
        if part is None:
            return None
        from puller.arrow import table_of

        with self._reading(part) as parquet:
            return table_of(parquet.schema_arrow)

    def _find(self, root: str) -> tuple[list[_Part], list[tuple[str, str]]]:
        """The files of the source, and what is left out of a folder, with the reason."""
        if not os.path.isdir(root):
            return [_Part(root)], []
        parts: list[_Part] = []
        skipped: list[tuple[str, str]] = []
        for folder, names, files in os.walk(root, followlinks=True, onerror=self._unreadable):
            names[:] = [name for name in names if "=" in name or not name.startswith((".", "_"))]
            inside = os.path.relpath(folder, root)
            above = () if inside == "." else tuple(map(_partition, inside.split(os.sep)))
            for name in files:
                path = os.path.join(folder, name)
                if name.startswith((".", "_")) or name.endswith(OURS):
                    continue
                if not name.lower().endswith(ENDING):
                    skipped.append((os.path.relpath(path, root), "it is no Parquet file"))
                elif None in above:
                    raise SourceError(
                        f"{path} is in a folder whose name is not NAME=VALUE; nothing was published. Files of one table are in "
                        "one folder; publish each table by itself"
                    )
                else:
                    parts.append(_Part(path, above))  # type: ignore[arg-type]
        if not parts:
            raise SourceError(f"{root} holds no *{ENDING} file; nothing was published")
        return sorted(parts, key=lambda part: part.path), sorted(skipped)

    def _unreadable(self, error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}; nothing was published") from error

    def _look(self) -> None:
        limit = racy_since(time.time_ns())
        for part in self._find(self.where)[0] if self.where != "-" else ():
            with contextlib.suppress(OSError):
                status = os.stat(part.path)
                if stats.S_ISREG(status.st_mode):
                    inside = os.path.relpath(part.path, self.where)
                    self._looks[encode_key(self._table, [*self._read_as(), inside])] = look(status)
                    self.unsettled |= max(status.st_ctime_ns, status.st_mtime_ns) >= limit

    def _again(self) -> None:
        self._shape: _Shape | None = None

    def lead(self) -> Run:
        table = None if self._shape is None else self._made(self._shape)
        return [SCHEMA_KEY], [wire.encode_schema([] if table is None else [table])]

    def _made(self, shape: _Shape) -> Table:
        old = {} if self._old is None else {column.name: column.type for column in self._old.columns}
        columns = []
        for n in self._order(shape):
            name, kind, before = shape.names[n], shape.kinds[n], old.get(shape.names[n], "")
            if kind == "":
                kind = wire.widened(before, shape.seen[n]) if shape.seen[n] else before or "text"
            elif before == "any" and name not in self._key:
                kind = "any"
            columns.append(Column(name, kind))
        names = [column.name for column in columns]
        key = list(map(names.index, self._key))
        for known in (self._old, shape.own):
            if known is not None and [column.name for column in known.columns] == names[: len(known.columns)]:
                return Table(self._table, columns, key, known.indexes)
        return Table(self._table, columns, key)

    def _order(self, shape: _Shape) -> list[int]:
        """The columns, those that were published before first."""
        places = {} if self._old is None else {column.name: n for n, column in enumerate(self._old.columns)}
        return sorted(range(len(shape.names)), key=lambda n: places.get(shape.names[n], len(places)))

    def _records(self) -> Iterator[Rows]:
        for _, _, rows in self._placed():
            yield rows

    def _placed(self) -> Iterator[tuple[str, int, Rows]]:
        """The records, with their file and the number of the row before them in it."""
        parts, skipped = self._find(self.where)
        if skipped and self._strict:
            raise SourceError(f"{skipped[0][0]} cannot be published: {skipped[0][1]}; nothing was published")
        self.report.skipped = skipped
        for part in parts:
            with self._reading(part) as parquet:
                shape = self._shaped(part, parquet.schema_arrow)
                number = 0
                for batch in self._batches(parquet):
                    yield part.path, number, self._encode(part, shape, batch, number)
                    number += batch.num_rows
                    self.report.bytes_read += batch.nbytes

    @contextlib.contextmanager
    def _reading(self, part: _Part) -> Iterator[Any]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        file = self._open_part(part)
        try:
            with file, ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as parquet:
                yield parquet
        except (ArrowException, OSError) as error:
            raise SourceError(f"{part.path} cannot be read: {error}; nothing was published") from error

    def _open_part(self, part: _Part) -> IO[bytes]:
        if part.path == "-":
            return self._open()
        try:
            return open(part.path, "rb", buffering=0)
        except OSError as error:
            raise SourceError(f"{part.path} cannot be read: {error.strerror}; nothing was published") from error

    @staticmethod
    def _batches(parquet: Any) -> Iterator[Any]:
        """Batches of bounded size: fewer rows of a row group where they are large."""
        from pyarrow import default_memory_pool

        for n in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(n)
            size = max(1, group.total_byte_size // max(1, group.num_rows))
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // size))
            yield from parquet.iter_batches(rows, row_groups=[n], use_threads=False)
            default_memory_pool().release_unused()  # pages may be as large as the writer liked

    def _shaped(self, part: _Part, schema: Any) -> _Shape:
        """The columns of the table, which the first file settles. Raises SourceError for a file with others."""
        names = [*schema.names, *(name for name, _ in part.folders)]
        arrow = [*schema.types, *([None] * len(part.folders))]
        if self._shape is None:
            self._shape = self._first(part, names, arrow, schema)
        first = dict(zip(self._shape.names, self._shape.arrow, strict=True))
        for name, type_ in zip(names, arrow, strict=True):
            if name not in first:
                raise SourceError(f"{part.path}: column {name!r} is not in the files before; nothing was published")
            if type_ != first.pop(name):
                raise SourceError(
                    f"{part.path}: column {name!r} is {type_}, and another type in the files before; nothing was published"
                )
        if first:
            raise SourceError(f"{part.path}: column {next(iter(first))!r} is missing; nothing was published")
        return self._shape

    def _first(self, part: _Part, names: list[str], arrow: list[Any], schema: Any) -> _Shape:
        from puller.arrow import table_of

        if twice := [name for name in names if names.count(name) > 1]:
            raise SourceError(f"{part.path}: two columns have the name {twice[0]!r}; nothing was published")
        if len(names) > wire.MAX_COLUMNS:
            raise SourceError(f"{part.path}: more than {wire.MAX_COLUMNS:,} columns; nothing was published")
        if missing := [name for name in self._key if name not in names]:
            raise SourceError(
                f"{part.path}: there is no column {missing[0]!r} for the key, but "
                f"{', '.join(map(repr, names))[:200] or 'none'}; nothing was published"
            )
        own = table_of(schema)
        shape = _Shape(names, arrow, [], own, [set() for _ in names])
        for n, (name, type_) in enumerate(zip(names, arrow, strict=True)):
            found = ("text", None) if type_ is None else _conversion(type_, own, n)
            if found is None:
                raise SourceError(
                    f"{part.path}: column {name!r} is of type {type_}, which no column can hold; nothing was published"
                )
            shape.kinds.append(found[0])
        return shape

    def _encode(self, part: _Part, shape: _Shape, batch: Any, number: int) -> Rows:
        given = dict(part.folders)
        columns: list[Sequence[Any]] = []
        for n, name in enumerate(shape.names):
            columns.append(
                [given[name]] * batch.num_rows if name in given else self._cells(part, shape, batch, n, number)
            )
        if not batch.num_rows:
            return [], []
        heads = [columns[shape.names.index(name)] for name in self._key]
        for name, cells in zip(self._key, heads, strict=True):
            if None in cells and shape.own is None:
                row = number + cells.index(None) + 1
                raise SourceError(f"{part.path}: row {row:,} has no value in {name!r}, its key; nothing was published")
        rest = [columns[n] for n in self._order(shape) if shape.names[n] not in self._key]
        try:
            keys = encode_keys(self._table, heads)
        except Invalid as error:
            raise SourceError(f"{part.path}: near row {number + 1:,}: {error}; nothing was published") from error
        values = wire.encode_rows(rest, len(keys))
        if max(map(len, keys)) > MAX_KEY or max(map(len, values)) > wire.MAX_ROW:
            raise SourceError(
                f"{part.path}: near row {number + 1:,}: a key is longer than 4096 bytes, or a row larger than 256 MiB; nothing "
                "was published"
            )
        return keys, values

    def _cells(self, part: _Part, shape: _Shape, batch: Any, n: int, number: int) -> Sequence[Any]:
        from pyarrow import ArrowException

        name = shape.names[n]
        _, convert = _conversion(shape.arrow[n], shape.own, n)
        try:
            cells: Sequence[Any] = convert(batch.column(name))
        except (Invalid, ValueError, ArrowException) as error:
            said = "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise SourceError(
                f"{part.path}: column {name!r}, near row {number + 1:,}: {said}; nothing was published"
            ) from error
        if shape.kinds[n] == "":
            shape.seen[n].update(set(map(type, cells)) - {type(None)})
        return cells

    def _duplicate(self, key: bytes) -> SourceError:
        """The error for two rows with the same key; reads the files once more to find them."""
        found = []
        for path, number, (keys, _) in self._placed():
            found += [f"row {number + n:,} of {path}" for n, other in enumerate(keys, 1) if other == key]
            if len(found) > 1:
                break
        row = list(decode_key(key)[1])
        return SourceError(f"{' and '.join(found[:2])} have the same key {row!r:.200}; nothing was published")


def require() -> None:
    """Raise SourceError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise SourceError(
            "Parquet needs pyarrow; nothing was published. Install it with: pip install 'headwater[parquet]'"
        ) from error


def _conversion(type_: Any, own: Table | None, n: int) -> Any:
    """The type of column n ("": what the cells are) and what makes its cells; None where no column can hold the Arrow type."""
    if own is not None and own.columns[n].type in ("json", "any"):  # the others are what they are in any file
        return own.columns[n].type, partial(_own_cells, own.columns[n])
    from publisher.sources.arrowcells import conversion

    return conversion(type_)


def _own_cells(column: Column, array: Any) -> Sequence[Any]:
    """The cells that headwater wrote; somebody else may have written on. Raises Invalid for what no dataset can hold."""
    from puller.arrow import to_cells

    cells = to_cells(column.type, array)
    wire.check_cells(column, cells)
    return cells


def _partition(name: str) -> tuple[str, str | None] | None:
    """The column and the value that a folder stands for, as Hive writes them; None for another folder."""
    column, equals, value = name.partition("=")
    if not equals:
        return None
    return unquote(column), None if value == _NIL_PARTITION else unquote(value)

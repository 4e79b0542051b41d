"""A Parquet file as target: typed columns, exact in every value (`puller.arrow`), in row groups of bounded size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from puller.errors import Invalid, TargetError
from puller.targets.onefile import Encoder, OneFileTarget, Sink
from puller.wire import rows as wire
from puller.wire.rows import Table

GROUP_ROWS = 120_000
GROUP_BYTES = 16 << 20
"""A row group ends where it has so many rows, or their values so many bytes: it is held in memory as a whole."""
_BATCH = 10_000
"""Rows that are read at a time."""


class ParquetTarget(OneFileTarget):
    """Keeps a Parquet file equal to a dataset with one table."""

    what = "a Parquet file"

    def __init__(self, path: str) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise TargetError(
                f"{path}: Parquet needs pyarrow; nothing was written. Install it with: pip install 'headwater[parquet]'"
            ) from error
        super().__init__(path)

    def encoder(self, table: Table | None, sink: Sink) -> Encoder:
        return _Groups(table, sink)

    def decoded(self, table: Table, file: IO[bytes]) -> Iterator[list[Sequence[Any]]]:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        from puller.arrow import arrow_schema, to_cells

        try:
            parquet = ParquetFile(file, pre_buffer=False)
            if not parquet.schema_arrow.equals(arrow_schema(table)):
                raise Invalid("its columns are not those of the table")
            for batch in parquet.iter_batches(_BATCH):
                pairs = zip(table.columns, batch.columns, strict=True)
                yield [to_cells(column.type, array) for column, array in pairs]
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise Invalid(f"it is no Parquet file that can be read: {error}") from error


class _Groups:
    """Collects rows, as Arrow has them, until they make a row group."""

    def __init__(self, table: Table | None, sink: Sink) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        from puller.arrow import arrow_schema

        self._table = table
        self._schema = pa.schema([]) if table is None else arrow_schema(table)
        self._writer = ParquetWriter(sink, self._schema, compression="zstd")
        self._batches: list[Any] = []
        self._rows = self._size = 0

    def write(self, keys: list[bytes], values: list[bytes]) -> None:
        import pyarrow as pa

        from puller.arrow import to_array

        assert self._table is not None
        columns = wire.full_columns(self._table, keys, values)
        arrays = [to_array(column.type, cells) for column, cells in zip(self._table.columns, columns, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._size += batch.nbytes
        if self._rows >= GROUP_ROWS or self._size >= GROUP_BYTES:
            self._end_group()

    def finish(self) -> None:
        if self._batches:
            self._end_group()
        self._writer.close()

    def abandon(self) -> None:
        import pyarrow as pa

        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()

    def _end_group(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._rows, self._size = [], 0, 0

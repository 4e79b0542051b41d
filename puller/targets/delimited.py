"""A CSV or TSV file as target: a header and one record a row, exact in every value (`puller.wire.csvtext`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from puller.errors import Invalid
from puller.targets.onefile import Encoder, OneFileTarget, Sink
from puller.wire import rows as wire
from puller.wire.csvtext import CsvForm
from puller.wire.rows import Table

_BLOCK = 1 << 20


class DelimitedTarget(OneFileTarget):
    """Keeps a file of fields with a delimiter (`,` or a tab) equal to a dataset with one table."""

    def __init__(self, path: str, delimiter: str) -> None:
        super().__init__(path)
        self._delimiter = delimiter
        self.what = "a CSV file" if delimiter == "," else "a TSV file"

    def encoder(self, table: Table | None, sink: Sink) -> Encoder:
        return _Records(None if table is None else CsvForm(table, self._delimiter), sink)

    def decoded(self, table: Table, file: IO[bytes]) -> Iterator[list[Sequence[Any]]]:
        form = CsvForm(table, self._delimiter)
        if file.read(len(form.header)) != form.header:
            raise Invalid("its first line does not name the columns")
        while lines := file.readlines(_BLOCK):
            quotes = sum(map(bytes.count, lines, [b'"'] * len(lines)))
            while quotes % 2 and (line := file.readline()):  # a newline inside quotes ends no record
                lines.append(line)
                quotes += line.count(b'"')
            yield list(form.parse(b"".join(lines)))


class _Records:
    def __init__(self, form: CsvForm | None, sink: Sink) -> None:
        self._form = form
        self._sink = sink
        if form is not None:
            sink.write(form.header)

    def write(self, keys: list[bytes], values: list[bytes]) -> None:
        assert self._form is not None
        self._sink.write(self._form.format(wire.full_columns(self._form.table, keys, values)))

    def finish(self) -> None:
        """Records end by themselves."""

    def abandon(self) -> None:
        """Nothing is kept back."""

"""A JSON Lines file as target: one object a row (SPEC 9.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from puller.targets.onefile import Encoder, OneFileTarget, Sink
from puller.wire import rows as wire
from puller.wire.jsontext import JsonForm
from puller.wire.rows import Table

_BLOCK = 1 << 20


class JsonLinesTarget(OneFileTarget):
    """Keeps a file of JSON lines equal to a dataset with one table."""

    what = "a JSON Lines file"

    def encoder(self, table: Table | None, sink: Sink) -> Encoder:
        return _Lines(table, sink)

    def decoded(self, table: Table, file: IO[bytes]) -> Iterator[list[Sequence[Any]]]:
        form = JsonForm(table)
        while lines := file.readlines(_BLOCK):
            yield list(zip(*form.parse(lines), strict=True))


class _Lines:
    def __init__(self, table: Table | None, sink: Sink) -> None:
        self._form = None if table is None else JsonForm(table)
        self._sink = sink

    def write(self, keys: list[bytes], values: list[bytes]) -> None:
        assert self._form is not None
        rows = wire.full_rows(self._form.table, keys, values)
        self._sink.write(self._form.format(rows, first=self._sink.size == 0))

    def finish(self) -> None:
        """Lines end by themselves."""

    def abandon(self) -> None:
        """Nothing is kept back."""

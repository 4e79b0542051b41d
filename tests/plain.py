"""Publishing in this process: sources by their path, and a source of any kind whose records are given."""

from __future__ import annotations

from pathlib import Path

from publisher.publish import Options, Outcome, publish
from publisher.sources import open_source
from publisher.sources.base import Report, Unsorted
from puller.stores import open_store
from puller.wire import rows as wire
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Run


class _Lazy:
    prefix = b""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def open(self):
        import io

        return io.BytesIO(self._value)


class PlainSource:
    """Wire records from a dict."""

    def __init__(self, kind: str, records: dict[bytes, bytes]) -> None:
        self.kind = kind
        self.report = Report()
        self._records = records

    def runs(self):
        keys = sorted(key for key in self._records if key or self.kind != "table")
        for n in range(0, len(keys), 100):
            part = keys[n : n + 100]
            values = map(self._records.__getitem__, part)
            yield part, [value if len(value) <= MAX_INLINE else _Lazy(value) for value in values]

    def lead(self):
        return ([b""], [self._records[b""]]) if self.kind == "table" else ([], [])


def publish_records(root: Path | str, kind: str, records: dict[bytes, bytes], time: float = 1000.0) -> Outcome:
    """Publish a state as the next version of the dataset `data`; it is created where there is none."""
    options = Options(allow_shrink=True)
    return publish(
        open_store(str(root)), lambda name, schema: PlainSource(kind, records), "data", options, now=lambda: time
    )


def publish_source(
    path: Path | str, dest: Path | str, *, key: tuple[str, ...] = (), cache: bool = True, keyring=None, **options
) -> Outcome:
    """Publish a source as the command does, as the dataset `data`."""

    def find(name, schema):
        cached_for = str(dest) if cache else None
        return open_source(
            str(path), None, key=key, tables=(), name=name, schema=schema, strict=False, cached_for=cached_for
        )

    return publish(open_store(str(dest)), find, "data", Options(**options), keyring=keyring)


def runs_of(source) -> list[Run]:
    """All that a source gives, once it is sorted."""
    try:
        return list(source.runs())
    except Unsorted:
        return list(source.runs())


def read_table(source) -> tuple[dict[str, str], list[tuple]]:
    """Types by column, and the rows in key order."""
    runs = runs_of(source)
    (table,) = wire.decode_schema(source.lead()[1][0])
    keys = [key for run in runs for key in run[0]]
    values = [v if isinstance(v, bytes) else v.open().read() for run in runs for v in run[1]]
    assert keys == sorted(set(keys))
    return {column.name: column.type for column in table.columns}, wire.full_rows(table, keys, values)

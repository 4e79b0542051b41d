"""Publishing in this process: sources by their path, and a source of any kind whose records are given."""

from __future__ import annotations

from pathlib import Path

from publisher.publish import Options, Outcome, publish
from publisher.sources import open_source
from publisher.sources.base import Report
from puller.stores import open_store
from puller.wire.codec import MAX_INLINE


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

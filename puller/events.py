"""What a step of a target changes: noted while the step is made, told once it is committed."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from typing import Any, NamedTuple, Self

from puller.errors import Moved, TargetError
from puller.forms import Form, form_of
from puller.runs import Cursor, spans
from puller.targets.base import Opening, Reading
from puller.wire.checksum import Hash, record_hashes
from puller.wire.nodes import Run, Value
from puller.wire.rows import SCHEMA_KEY, decode_schema

_HEADER = struct.Struct("<qqq")
_ABSENT, _IN_TARGET = -1, -2
_IN_MEMORY = 8 << 20
_BATCH, _BATCH_BYTES = 512, 4 << 20

Event = tuple[bytes, bytes | None, bytes | None]
"""A wire key, its old value and its new one; None: absent."""
Hashes = list[Hash | None]


class Change(NamedTuple):
    """A key whose value changed, with its value before and after: None where it was added, or is gone."""

    key: Any
    old: Any
    new: Any


class Watch:
    """Notes what a step changes and gives it back in key order; some megabytes are held in memory, the rest in a file.

    `reading` holds a state of the target still. Where all of a state is replaced, or the schema changes, and the
    old state can still be read afterwards, both are compared then instead; rows whose columns changed are changes,
    too, though their bytes are the same. Use it as a context manager, for one pull.
    """

    def __init__(self, reading: Callable[[], AbstractContextManager[Reading]]) -> None:
        self._reading = reading
        self._stack = ExitStack()
        self._old: Reading | None = None
        self._file: Any = None
        self._cursor: Cursor | None = None
        self._compare = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, opening: Opening) -> None:
        """A step from the state that is held now begins; what was noted of one before counts no more."""
        self._stack.close()
        self._old = self._stack.enter_context(self._reading())
        if (None if self._old.state is None else self._old.state.position) != opening.expected:
            raise Moved("another puller changed the target in the meantime; nothing was written")
        self._file = self._stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
        self._compare = self._old.state is None or (opening.replace and self._old.lasting)
        self._cursor = Cursor(_runs(self._old)) if opening.replace and not self._compare else None

    def note(self, keys: list[bytes], values: list[Value], before: Hashes, hashes: Hashes) -> None:
        """Note a run of the step, with the record hashes of what was held and of what comes."""
        old = self._old
        assert old is not None
        if keys and keys[0] == SCHEMA_KEY and old.state is not None and old.state.kind == "table":
            self._compare = self._compare or before[0] != hashes[0]
        if self._compare or not keys:
            return
        if self._cursor is not None:
            self._note_all(_take_through(self._cursor, keys[-1]), (keys, values), hashes)
            return
        for key, value, was, now in zip(keys, values, before, hashes, strict=True):
            if was != now:
                self._write(key, None if was is None else old.get(key), value)

    def end(self) -> None:
        """The step is complete, and about to be committed."""
        if self._cursor is not None:
            self._note_all(self._cursor.take_below(None), ([], []), [])

    def _note_all(self, old: Run, new: Run, hashes: Hashes) -> None:
        held, given = (dict(zip(*run, strict=True)) for run in (old, new))
        was, now = dict(zip(old[0], record_hashes(*old), strict=True)), dict(zip(new[0], hashes, strict=True))
        for key in sorted({*held, *given}):
            if was.get(key) != now.get(key):
                self._write(key, held.get(key), given.get(key))

    def _write(self, key: bytes, *values: Value) -> None:
        sizes = [_ABSENT if v is None else len(v) if isinstance(v, bytes) else _IN_TARGET for v in values]
        parts = [value for value in values if isinstance(value, bytes)]
        try:
            self._file.write(b"".join([_HEADER.pack(len(key), *sizes), key, *parts]))
        except OSError as error:
            raise TargetError(
                f"what changes cannot be noted in {tempfile.gettempdir()}: {error.strerror}; nothing was written. Name a folder "
                "that has room for it in TMPDIR"
            ) from error

    def changes(self, position: tuple[int, int]) -> Iterator[Change]:
        """What the step changed that led to `position`. Raises Moved if another puller changed the target since."""
        if self._old is None:
            return
        with self._reading() as new:
            if new.state is None or new.state.position != position:
                raise Moved("another puller changed the target before its changes were told")
            old_form, new_form = form_at(self._old), form_at(new)
            for batch in _batches(self._compared(new) if self._compare else self._noted(new)):
                keys = new_form.decode_keys([key for key, _, _ in batch])
                olds = _decoded(old_form, [(key, old) for key, old, _ in batch])
                news = _decoded(new_form, [(key, now) for key, _, now in batch])
                for change, (_, old, now) in zip(map(Change, keys, olds, news), batch, strict=True):
                    if old != now or repr(change.old) != repr(change.new):
                        yield change

    def _noted(self, new: Reading) -> Iterator[Event]:
        self._file.seek(0)
        while header := self._file.read(_HEADER.size):
            size, *sizes = _HEADER.unpack(header)
            key = self._file.read(size)
            old, now = (None if size < 0 else self._file.read(size) for size in sizes)
            yield key, old, new.get(key) if sizes[1] == _IN_TARGET else now

    def _compared(self, new: Reading) -> Iterator[Event]:
        """All records that differ; those that may look different under another schema, too."""
        assert self._old is not None
        table = new.state is not None and new.state.kind == "table"
        every = table and self._old.state is not None and self._old.get(SCHEMA_KEY) != new.get(SCHEMA_KEY)
        first = b"\0" if table else b""
        for parts in spans([Cursor(_runs(self._old, first)), Cursor(_runs(new, first))]):
            runs: dict[int, Any] = dict(parts)
            old, now = (runs.get(n, ([], [])) for n in (0, 1))
            if not every and old == now:
                continue
            held, given = (dict(zip(*run, strict=True)) for run in (old, now))
            for key in sorted({*held, *given}):
                if every or held.get(key) != given.get(key):
                    yield key, held.get(key), given.get(key)


def form_at(reading: Reading) -> Form:
    """The form of the records of a state."""
    kind = "bytes" if reading.state is None else reading.state.kind
    return _form(kind, reading.get(SCHEMA_KEY) if kind == "table" else None)


@lru_cache(maxsize=16)
def _form(kind: str, schema: bytes | None) -> Form:
    return form_of(kind, None if schema is None else decode_schema(schema))


def _runs(reading: Reading, lower: bytes = b"") -> Iterator[Run]:
    for keys, values in reading.runs(lower):
        yield keys, list(values)


def _take_through(cursor: Cursor, limit: bytes) -> Run:
    """All further records with keys up to and including `limit`."""
    return cursor.take_below(limit + b"\0")


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    batch: list[Event] = []
    size = 0
    for event in events:
        batch.append(event)
        size += len(event[1] or b"") + len(event[2] or b"")
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _decoded(form: Form, records: list[tuple[bytes, bytes | None]]) -> list[Any]:
    """Python values of records, None where there is none."""
    there = [(key, value) for key, value in records if value is not None]
    found = iter(form.decode_values([key for key, _ in there], [value for _, value in there]))
    return [None if value is None else next(found) for _, value in records]

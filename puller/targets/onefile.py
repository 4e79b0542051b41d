"""Targets that are one file with the rows of one table (kind `table`): sorted by key, replaced as a whole.

Bookkeeping is the file `NAME.headwater` beside it. It describes the file that is there and, while a new one is
moved into place, that one too: the size and SHA-256 of the data say which of them is the truth.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import stat as stats
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol

import msgspec

from puller.durable import sync_folder
from puller.errors import Invalid, LocalEdits, NotOurs, TargetError, UsageError
from puller.parts import Parts, tables_in
from puller.runs import Cursor, live, overlay
from puller.targets.base import Changes, Check, Opening, State, check_all, check_held, count, whole
from puller.wire import rows as wire
from puller.wire.checksum import Hash, record_hashes
from puller.wire.keys import decode_key
from puller.wire.nodes import Run, Value
from puller.wire.rows import SCHEMA_KEY, Table

SUFFIX = ".headwater"
_BLOCK = 1 << 20


class _Held(msgspec.Struct, frozen=True):
    """A state, and the file that holds it."""

    state: State
    schema: bytes
    size: int
    sha256: str
    pending: bool = False
    """Whether the file may not be in its place yet."""


class Sink(io.RawIOBase):
    """Takes the bytes of the new file in order, and knows their number and SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._digest.update(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    def tell(self) -> int:
        return self.size

    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal digits."""
        return self._digest.hexdigest()


class Encoder(Protocol):
    """Writes the rows of one table to a file."""

    def write(self, keys: list[bytes], values: list[bytes]) -> None:
        """Take rows, whose keys ascend over all calls. Raises TargetError for what the file cannot give back exactly."""
        ...

    def finish(self) -> None:
        """Write what is left, and what a file ends with."""
        ...

    def abandon(self) -> None:
        """Let go of a file that will be thrown away; never raises."""
        ...


class OneFileTarget(ABC):
    """Keeps a file equal to a dataset with one table."""

    kinds: tuple[str, ...] = ("table",)
    gives_values = False
    what: str
    """What such a file is called, with its article."""

    @abstractmethod
    def encoder(self, table: Table | None, sink: Sink) -> Encoder:
        """Begin a file of a table; None: the dataset has no table yet."""

    @abstractmethod
    def decoded(self, table: Table, file: IO[bytes]) -> Iterator[list[Sequence[Any]]]:
        """All columns of the rows in a file, some rows at a time. Raises Invalid for what no encoder wrote."""

    def __init__(self, path: str) -> None:
        self.where = path
        self._path = os.path.realpath(path)
        self._side = self._path + SUFFIX
        self.partial = f"{self._side}-partial"
        self._lock = -1

    def state(self) -> State | None:
        held = self._held()
        return None if held is None else held.state

    def is_there(self) -> bool:
        return self._held() is None or os.path.lexists(self._path)

    def remember(self, state: State, was: State) -> None:
        self._acquire()
        held = self._held()
        if held is not None and held.state.mark == was.mark:
            self._write_side([msgspec.structs.replace(held, state=state)])

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @contextmanager
    def writer(self, opening: Opening) -> Iterator[_Writer]:
        temporary = f"{self._side}-new"
        writer, created = None, False
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            created = not os.path.lexists(self._side)
            held = self._begin(opening)
            with open(temporary, "wb", buffering=_BLOCK) as file:
                writer = _Writer(self, file, temporary, held, opening)
                try:
                    yield writer
                finally:
                    writer.abandon()
        except OSError as error:
            kept = "" if writer is not None and writer.done else "; what was there was kept"
            raise TargetError(f"{self.where} cannot be written: {error.strerror}{kept}") from error
        finally:
            if writer is not None:
                for path in [temporary] + ([self._side] if created and not writer.done else []):
                    if os.path.lexists(path):
                        os.unlink(path)
            elif created and self._lock >= 0 and os.path.getsize(self._side) == 0:
                os.unlink(self._side)

    def _begin(self, opening: Opening) -> _Held | None:
        self._acquire()
        held = self._held()
        check_held(None if held is None else held.state, opening, self.where)
        there = os.path.lexists(self._path)
        if held is None and there and os.path.getsize(self._path) and not opening.adopt:
            raise NotOurs(
                f"{self.where} was not made by headwater; nothing was written. Use a new name, or --adopt to overwrite it"
            )
        if held is not None and there and not opening.overwrite and not self._is(held):
            raise LocalEdits(
                f"{self.where} was changed since it was pulled; nothing was written. Move it away, or pull with "
                "--overwrite",
                [self.where],
            )
        if held is not None and not there and not opening.replace:
            raise LocalEdits(f"{self.where} is gone; run `puller pull --overwrite` to write it again", [self.where])
        return held

    def records(self) -> Iterator[Run]:
        held = self._held()
        if held is None or not held.schema:
            return
        yield [SCHEMA_KEY], [held.schema]
        yield from self.rows(self.table(held.schema, held.state.parts))

    def rows(self, table: Table) -> Iterator[Run]:
        """The records in the file."""
        try:
            if not stats.S_ISREG(os.stat(self._path).st_mode):
                raise LocalEdits(f"{self.where} is no file any more; nothing was written", [self.where])
            with open(self._path, "rb") as file:
                for columns in self.decoded(table, file):
                    keys, values = wire.column_records(table, columns)
                    yield keys, list(values)
        except Invalid as error:
            raise LocalEdits(f"{self.where} was changed since it was pulled: {error}", [self.where]) from error
        except OSError as error:
            raise TargetError(f"{self.where} cannot be read: {error.strerror}") from error

    def table(self, schema: bytes, parts: Parts) -> Table:
        """The one table of a schema that is held. Raises UsageError if there are more, TargetError if there is none yet."""
        tables = tables_in(wire.decode_schema(schema), parts)
        if len(tables) != 1:
            raise (UsageError if tables else TargetError)(
                f"{self.where}: {self.what} holds one table, not {len(tables)}; choose one with --table, or pull into SQLite"
            )
        return tables[0]

    def check(self) -> Check:
        check = check_all(self.records(), [] if os.path.lexists(self._path) else [self.where])
        held = self._held()
        if held is not None and not (check.differing or check.missing) and not self._is(held):
            check.differing.append(self.where)  # the same rows, in other bytes: the next step would refuse them
        return check

    def _acquire(self) -> None:
        """Lock the bookkeeping file. It is replaced now and then: a lock on one that was replaced counts for nothing."""
        while self._lock < 0:
            lock = os.open(self._side, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(self._side) and os.path.samestat(os.fstat(lock), os.stat(self._side)):
                    self._lock, lock = lock, -1
            except BlockingIOError as error:
                raise TargetError(f"another puller is at work on {self.where}; nothing was written") from error
            finally:
                if lock >= 0:
                    os.close(lock)

    def _held(self) -> _Held | None:
        try:
            with open(self._side, "rb") as file:
                data = file.read()
            helds = msgspec.json.decode(data, type=list[_Held]) if data else []
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise TargetError(
                f"the bookkeeping of {self.where} is damaged ({error}); delete {self._side} and run `puller pull --adopt`"
            ) from error
        settled = [held for held in helds if not held.pending]
        if len(helds) == len(settled):
            return settled[-1] if settled else None
        return next((held for held in helds if self._is(held)), settled[-1] if settled else None)

    def _is(self, held: _Held) -> bool:
        try:
            stat = os.stat(self._path)
            if not stats.S_ISREG(stat.st_mode) or stat.st_size != held.size:
                return False
            with open(self._path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == held.sha256
        except OSError:
            return False

    def _write_side(self, helds: list[_Held]) -> None:
        """Replace what the bookkeeping says, in place: its lock belongs to the file."""
        self._acquire()
        data = msgspec.json.encode(helds)
        temporary = f"{self._side}-tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                os.rename(temporary, self._side)
                os.close(self._lock)
                self._lock = os.dup(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise TargetError(f"{self._side} cannot be written: {error.strerror}") from error


class _Writer:
    def __init__(
        self, target: OneFileTarget, file: IO[bytes], temporary: str, held: _Held | None, opening: Opening
    ) -> None:
        self._target = target
        self._file = file
        self._temporary = temporary
        self._held = held
        self._opening = opening
        self._sink = Sink(file)
        self._schema = b"" if held is None else held.schema
        self._table: Table | None = None
        self._encoder: Encoder | None = None
        self._changes = Changes()
        self.done = False
        self._cursor = Cursor(())
        if held is not None and held.schema and not opening.replace:
            self._cursor = Cursor(target.rows(target.table(held.schema, held.state.parts)))

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        count(self._changes, keys, values, opening=self._opening)
        plain: list[Value] = list(whole(self._opening, keys, values))
        before: dict[bytes, Value] = {}
        if None in plain:
            for key in [key for key, value in zip(keys, plain, strict=True) if value is None and key]:
                decode_key(key)
        rows = (keys, plain)
        if keys and keys[0] == SCHEMA_KEY:
            before[SCHEMA_KEY] = self._schema or None
            if not isinstance(plain[0], bytes):
                raise Invalid("the dataset deletes its schema")
            self._schema = plain[0]
            rows = keys[1:], plain[1:]
        self._merge(rows, before)
        return [None] * len(keys) if self._opening.replace else record_hashes(keys, list(map(before.get, keys)))

    def _merge(self, rows: Run, before: dict[bytes, Value]) -> None:
        """Write the held lines up to the last of `rows` with these in their place; note what was there before."""
        changes = Cursor([rows])
        while changes.fill():
            limit = min(changes.last, self._cursor.last) if self._cursor.fill() else changes.last
            parts = [self._cursor.take(limit) if self._cursor.fill() else ([], []), changes.take(limit)]
            if parts[0][0] and parts[1][0]:
                known = dict(zip(*parts[0], strict=True))
                before.update((key, known.get(key)) for key in parts[1][0])
            for run in live([overlay([part for part in parts if part[0]])]):
                self._write(*run)

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        for keys, values in self._target.records():
            yield keys, record_hashes(keys, values)  # type: ignore[misc]

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        raise NotImplementedError

    def overwrites(self) -> list[str]:
        there = os.path.lexists(self._target._path)
        ours = self._held is not None and self._target._is(self._held)
        return [self._target.where] if there and not ours else []

    def commit(self, state: State) -> Changes:
        while self._cursor.fill():
            self._write(*self._cursor.take(self._cursor.last))
        self._begun().finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        new = _Held(state, self._schema, self._sink.size, self._sink.sha256(), pending=True)
        held = [] if self._held is None else [self._held]
        self._target._write_side([*held, new])
        os.rename(self._temporary, self._target._path)
        self.done = True
        sync_folder(os.path.dirname(os.path.abspath(self._target._path)))
        self._target._write_side([msgspec.structs.replace(new, pending=False)])
        return self._changes

    def abandon(self) -> None:
        """What was not committed is not wanted."""
        if self._encoder is not None and not self.done:
            self._encoder.abandon()

    def _begun(self) -> Encoder:
        """The encoder, which is made once the schema is known."""
        if self._encoder is None:
            self._table = self._target.table(self._schema, self._opening.parts) if self._schema else None
            self._encoder = self._target.encoder(self._table, self._sink)
        return self._encoder

    def _write(self, keys: list[bytes], values: list[Value]) -> None:
        encoder = self._begun()
        if self._table is None:
            raise Invalid("the dataset has rows, but no schema")
        for _, part, rest in wire.by_table([self._table], keys, values):
            encoder.write(part, rest)

"""A SQLite database as source (kind `table`): its tables in one read transaction, every value as it is stored."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from publisher.sources import sorting, tracking
from publisher.sources.base import Report, Unsorted, lazily
from publisher.sources.catalogue import Stored, in_key_order, in_schema_order, read_catalogue
from publisher.sources.sorting import Duplicate, Rows, Sorter
from publisher.sources.statcache import StatCache, look, racy_since
from publisher.sources.tracking import Standing
from puller.errors import Invalid, SourceError
from puller.sqlitefile import address, wants_log
from puller.wire import rows as wire
from puller.wire.codec import MAX_KEY, encode
from puller.wire.keys import decode_key, encode_keys
from puller.wire.nodes import Run, is_ascending
from puller.wire.rows import SCHEMA_KEY, Schema

_STEP = 64
"""Rows that are fetched at once: few, because nothing says how large the next one is."""
_BATCH, _BYTES = 512, 1 << 20
_LARGE = 4 << 20
_INTEGERS: set[type] = {int}
"""What a rowid can be."""
_PATIENCE = 60.0
"""Seconds that a writer may hold the lock for."""
_CACHE = 16 << 10
"""KiB of pages that SQLite keeps."""


class SQLiteSource:
    """Reads the tables of a database, or those that are `wanted`, as they are at one moment.

    The key of a row is the table's primary key, or the rowid where it has none; `key` names other columns for a single
    table. `schema` is what was published before: the order of tables, and types that were any, stay.

    The database is opened by SQLite alone and never written to. Tables that do not lie in key order are sorted within
    `memory` bytes, and in temporary files beyond.
    """

    kind = "table"

    def __init__(
        self,
        path: str,
        wanted: Sequence[str],
        key: Sequence[str],
        schema: Schema,
        *,
        strict: bool = False,
        memory: int = sorting.MEMORY,
        cache: StatCache | None = None,
        reader: str | None = None,
    ) -> None:
        self.where = path
        self._wanted = list(wanted)
        self._key = list(key)
        self._old = schema
        self._strict = strict
        self._memory = memory
        self._cache = cache
        self._looks: dict[bytes, bytes] = {}
        self._unsettled = False
        self._sorting = False
        self._reader = None if reader is None or key else msgspec.msgpack.encode((reader, self._wanted))
        self._at: Standing | None = None
        self._now: tuple[int, int] | None = None
        self._touched: tuple[list[bytes], list[bytes]] | None = None
        self.expected: set[bytes] | None = None
        self._tables: list[Stored] = []
        self._seen: dict[str, dict[int, set[type]]] = {}
        self._state = b""
        self.report = Report()

    def size(self) -> int:
        return os.path.getsize(self.where)

    def recall(self, state: bytes) -> list[bytes] | None:
        """Where triggers note what changes, the rows are read at once, in the transaction that says which they are."""
        known = None if self._cache is None else self._cache.load(state)
        self._look()
        if self._looks and known == self._looks:
            return []
        self._state = state
        if self._reader is None:
            return None
        with reading(self.where) as db:
            self._survey(db)
            if self._at is None or self._at.since >= tracking.EVERY:
                return None
            return self._read_touched(db)

    def remember(self, state: bytes) -> None:
        if self._reader is not None and self._now is not None:
            since = 0 if self._touched is None or self._at is None else self._at.since + 1
            now = Standing(state, *self._now, since)
            if self._at is None or now != msgspec.structs.replace(self._at, since=since):
                try:
                    tracking.settle(self.where, self._reader, now)
                except sqlite3.Error as error:
                    self.report.warnings.append(
                        f"it could not be noted in {self.where} which changes are published ({error}): the next publish reads "
                        "everything"
                    )
                return
        if self._cache is not None and self._looks:
            self._cache.save(state, dict.fromkeys(self._looks, b"") if self._unsettled else self._looks)

    def _survey(self, db: sqlite3.Connection) -> list[Stored]:
        """Read what tables there are, and where the dataset stands if all their changes are noted; in schema order."""
        tables, skipped = read_catalogue(db, self._wanted, self._key)
        if skipped and self._strict:
            raise SourceError(f"{skipped[0][0]} cannot be published: {skipped[0][1]}; nothing was published")
        self.report.skipped = skipped
        self._tables = in_schema_order(tables, self._old)
        self._seen = {}
        self._at = self._now = self._touched = self.expected = None
        why = tracking.why_untracked(db, tables) if self._reader is not None else ""
        if why:
            self.report.warnings.append(f"not all changes are tracked, so everything was read: {why}")
        if why is None and self._reader is not None:
            self._now = tracking.newest(db)
            at = tracking.standing(db, self._reader)
            known = at is not None and (at.state, at.schema) == (self._state, self._now[1])
            self._at = at if known else None
        return tables

    def _read_touched(self, db: sqlite3.Connection) -> list[bytes] | None:
        """Read the rows that were touched since the dataset was published; None if reading all is as good."""
        assert self._at is not None
        assert self._now is not None
        if self._now[0] - self._at.seq > tracking.MOST:
            return None
        old = {table.name: table for table in self._old}
        keys: dict[bytes, bytes | None] = {}
        for stored in self._tables:
            head = len(stored.key)
            heads, cursor = tracking.changed_rows(db, stored, self._at.seq)
            keys |= dict.fromkeys(_keys(stored, heads))
            with self._errors_of(db, stored):
                seen = self._seen[stored.name] = {n: set() for n in range(len(stored.columns))}
                for rows, values, _ in _batches(cursor, head):
                    for n, cells in zip([*stored.key, *stored.values], zip(*rows, strict=True), strict=True):
                        seen[n].update(map(type, cells))
                    keys |= zip(_keys(stored, rows), values, strict=True)
            if stored.name not in old or not stored.keeps_key(seen, old[stored.name]):
                return None
        found = sorted(key for key, value in keys.items() if value is not None)
        self._touched = found, [keys[key] or b"" for key in found]
        return sorted(keys)

    def _look(self) -> None:
        """What the database and its log look like before they are read: a commit writes to one of them."""
        limit = racy_since(time.time_ns())
        selection = msgspec.msgpack.encode((self._wanted, self._key))
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                status = os.stat(self.where + suffix)
                self._looks[suffix.encode() + selection] = look(status)
                self._unsettled |= max(status.st_ctime_ns, status.st_mtime_ns) >= limit

    def runs(self) -> Iterator[Run]:
        """In one read transaction; raises Unsorted if a table that began in key order does not go on so."""
        self.report = Report() if self._touched is None else self.report
        if not self._looks:
            self._look()
        if self._touched is not None:
            if self._touched[0]:
                yield self._touched[0], lazily(self._touched[1])
            return
        with reading(self.where) as db:
            tables = self._survey(db)
            if self._at is not None:
                self.expected = tracking.touched_keys(db, tables, self._at.seq)
            for stored in in_key_order(tables):
                with self._errors_of(db, stored):
                    for keys, values in self._in_order(db, stored):
                        yield keys, lazily(values)

    def lead(self) -> Run:
        old = {table.name: table for table in self._old}
        partly = self._touched is not None
        tables = [stored.table(self._seen[stored.name], old.get(stored.name), partly=partly) for stored in self._tables]
        value = wire.encode_schema(tables)
        try:
            wire.decode_schema(value)
        except Invalid as error:
            raise SourceError(
                f"{self.where}: no dataset can hold this schema: {error}; nothing was published"
            ) from error
        return [SCHEMA_KEY], [value]

    def _in_order(self, db: sqlite3.Connection, stored: Stored) -> Iterator[Rows]:
        if not stored.by_rowid and (self._sorting or not self._begins_in_order(db, stored)):
            yield from self._sorted(db, stored)
            return
        last = b""
        for keys, values in self._records(db, stored):
            if keys[0] <= last or not is_ascending(keys):
                if stored.by_rowid:
                    raise SourceError(_damaged(self.where, f"table {stored.name!r} is out of order"))
                self._sorting = True
                raise Unsorted
            last = keys[-1]
            yield keys, values

    def _begins_in_order(self, db: sqlite3.Connection, stored: Stored) -> bool:
        keys, _ = next(self._records(db, stored), ([], []))
        return is_ascending(keys)

    def _sorted(self, db: sqlite3.Connection, stored: Stored) -> Iterator[Rows]:
        with Sorter(self._memory) as sorter:
            try:
                for keys, values in self._records(db, stored):
                    sorter.add(keys, values)
                yield from sorter.runs()
            except Duplicate as error:
                row = list(decode_key(error.key)[1])
                raise SourceError(
                    f"table {stored.name!r} has two rows with the key {row!r:.200}; nothing was published"
                ) from error

    def _records(self, db: sqlite3.Connection, stored: Stored) -> Iterator[Rows]:
        """The records of a table in the order they lie in; notes the types of their cells."""
        order = [*stored.key, *stored.values]
        seen: dict[int, set[type]] = {n: set() for n in order}
        self._seen[stored.name] = seen
        if stored.by_rowid:
            seen[stored.key[0]] = _INTEGERS
        head = len(stored.key)
        for rows, values, size in _batches(db.execute(stored.select()), head):
            columns = list(zip(*rows, strict=True))
            for n, cells in zip(order, columns, strict=True):
                if seen[n] is not _INTEGERS:
                    seen[n].update(map(type, cells))
            keys = encode_keys(stored.name, columns[:head])
            if not stored.by_rowid and max(map(len, keys)) > MAX_KEY:
                raise SourceError(
                    f"table {stored.name!r} has a key of more than {MAX_KEY:,} bytes; nothing was published"
                )
            if size > wire.MAX_ROW and max(map(len, values)) > wire.MAX_ROW:
                raise SourceError(f"table {stored.name!r} has a row of over 256 MiB; nothing was published")
            self.report.bytes_read += size
            yield keys, values

    @contextlib.contextmanager
    def _errors_of(self, db: sqlite3.Connection, stored: Stored) -> Iterator[None]:
        """A text that is none, named by its row."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "decode to UTF-8" not in str(error):
                raise
            raise SourceError(
                f"table {stored.name!r}, {_undecodable(db, stored)}: this text is not UTF-8; nothing was published. Store such "
                "bytes as a blob: CAST(… AS BLOB)"
            ) from error


def _keys(stored: Stored, rows: list[tuple[Any, ...]]) -> list[bytes]:
    """The keys of rows whose first cells are those of the key."""
    return encode_keys(stored.name, list(zip(*rows, strict=True))[: len(stored.key)]) if rows else []


def _batches(cursor: sqlite3.Cursor, head: int) -> Iterator[tuple[list[tuple[Any, ...]], list[bytes], int]]:
    """Rows, and the canonical bytes of what follows their first `head` cells, with their size."""
    rest, final = itemgetter(slice(head, None)), itemgetter(-1)
    rows: list[tuple[Any, ...]] = []
    values: list[bytes] = []
    size, step = 0, _STEP
    while part := cursor.fetchmany(step):
        encoder = wire.encode_row if None in map(final, part) else encode
        encoded = list(map(encoder, map(rest, part)))
        rows += part
        values += encoded
        taken = sum(map(len, encoded))
        size += taken
        step = _STEP if taken < _LARGE else 1
        if len(rows) >= _BATCH or size >= _BYTES:
            yield rows, values, size
            rows, values, size = [], [], 0
    if rows:
        yield rows, values, size


def _undecodable(db: sqlite3.Connection, stored: Stored) -> str:
    """Where the first text that is not UTF-8 stands."""
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    names = [stored.columns[n].name for n in [*stored.key, *stored.values]]
    for row in db.execute(stored.select()):
        for name, cell in zip(names, row, strict=True):
            if type(cell) is str and not _is_unicode(cell):
                return f"column {name!r} of the row with the key {list(row[: len(stored.key)])!a:.200}"
    return "some row"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection in a read transaction, which sees one state while others write. Raises SourceError.

    Nothing but SQLite opens the file (closing another descriptor of it would drop this process's locks), and nothing of
    it is left lying about: of a database in WAL mode that nobody has open, a reader that may write removes the log that
    SQLite makes for it. Where the folder cannot be written to and there is no log, the file is read as it is, and has
    to look the same afterwards.
    """
    with errors(path), contextlib.ExitStack() as stack:
        before = look(os.stat(path))
        fresh = not os.path.exists(f"{path}-wal")
        frozen = False
        db = stack.enter_context(contextlib.closing(_connect(path, "mode=rw" if fresh else "mode=ro")))
        try:
            _begin(db)
        except sqlite3.OperationalError as error:
            if not fresh or os.path.exists(f"{path}-journal") or not wants_log(error):
                raise
            frozen = True
            db = stack.enter_context(contextlib.closing(_connect(path, "mode=ro&immutable=1")))
            _begin(db)
        yield db
        if frozen and (look(os.stat(path)) != before or os.path.exists(f"{path}-wal")):
            raise SourceError(f"{path} was changed while it was read; nothing was published. Try again")


def _connect(path: str, options: str) -> sqlite3.Connection:
    return sqlite3.connect(address(path, options), uri=True, isolation_level=None, timeout=_PATIENCE)


def _begin(db: sqlite3.Connection) -> None:
    for pragma in ("query_only=ON", "trusted_schema=OFF", f"cache_size=-{_CACHE}"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("BEGIN")
    db.execute("SELECT 1 FROM main.sqlite_master LIMIT 1").fetchone()


@contextlib.contextmanager
def errors(path: str) -> Iterator[None]:
    """Errors of SQLite and of the system as SourceError."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "malformed" in text or "not a database" in text or "decode to UTF-8" in text:
            raise SourceError(_damaged(path, text)) from error
        hint = " A writer holds its lock; try again" if "locked" in text or "busy" in text else ""
        raise SourceError(f"{path} cannot be read: {text}; nothing was published.{hint}") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; nothing was published") from error


def _damaged(path: str, why: str) -> str:
    return f"{path} is no SQLite database, or a damaged one ({why}); nothing was published. `PRAGMA integrity_check` says more"

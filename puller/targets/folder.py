"""A folder as target (kind `files`): staged beside the data, journalled, then moved into place file by file.

Bookkeeping lies in `.headwater/`: a database with the state, an index of what was written, and the journal of a
step under way. A step is decided when its journal is committed; after that it is only ever finished.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat as stats
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from puller.durable import sync_files
from puller.errors import HeadwaterError, Moved, NotOurs, TargetError
from puller.targets import held
from puller.targets.base import Check, Opening, State, check_held
from puller.targets.disk import Disk, remove_tree
from puller.targets.edits import DELETE, FOLDER, PLACE
from puller.targets.reading import Connections
from puller.targets.staging import make_parents, place_file, place_folder, remove_folder
from puller.targets.steps import DATA, NEW, NewWriter, StepWriter
from puller.wire import files
from puller.wire.checksum import MODULUS
from puller.wire.nodes import Run

_PATIENCE, _MOMENT = 2000, 0.005
"""How often, and after how many seconds, a step that moves files is looked at by somebody who wants to read."""
_PATHS, _READ_AHEAD = 256, 8 << 20
"""Paths, and bytes of their files, that are read at once."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state(id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS files(path BLOB PRIMARY KEY, hash BLOB NOT NULL, kind BLOB NOT NULL, size INTEGER NOT NULL,
    mtime INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal(path BLOB PRIMARY KEY, action INTEGER NOT NULL, staged INTEGER, hash BLOB, kind BLOB,
    size INTEGER, mtime INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS next(id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL);
"""


class FolderTarget:
    """Keeps a folder equal to a dataset of kind `files`; paths that the dataset never named are left alone."""

    kinds: tuple[str, ...] = ("files",)
    gives_values = True

    def __init__(self, path: str, where: str | None = None, *, read_only: bool = False, lasting: bool = False) -> None:
        """`where` is what messages call it. `read_only`: nobody is to write to its files, which other folders share.

        `lasting`: it stays as it is, so that what is read of it need not be checked for having moved on.
        """
        self.where = where or path
        self.read_only = read_only
        self.lasting = lasting
        self.root = os.fsencode(path)
        self.disk = Disk(self.root)
        self._data = os.path.join(self.root, DATA.encode())
        self.partial = os.path.join(path, DATA, "partial")
        self._db: sqlite3.Connection | None = None
        self._lock = -1
        self._connections = Connections(os.path.join(self._data, b"state.db"), _is_ours)

    def state(self) -> State | None:
        try:
            os.stat(os.path.join(self._data, b"state.db"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed(self.where, error) from error
        self._open()
        return self._stored("state")

    def is_there(self) -> bool:
        state = self.state()
        return state is None or state.records == 0 or self._foreign()

    def remember(self, state: State, was: State) -> None:
        with self._errors():
            db = self._own()
            db.execute("BEGIN IMMEDIATE")  # another puller may commit a step between the look and the write
            try:
                held = self._stored("state")
                if held is not None and held.mark == was.mark:
                    db.execute("REPLACE INTO state VALUES (1, ?)", (msgspec.msgpack.encode(state),))
            finally:
                db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _failed(self.where, error) from error
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        self._connections.close()
        self._connections = Connections(os.path.join(self._data, b"state.db"), _is_ours)
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @contextmanager
    def reading(self) -> Iterator[_Reading]:
        """What lies in the folder, until a step begins to move files. Raises TargetError if one does not end."""
        with self._errors():
            for _ in range(_PATIENCE):
                state, moving = self.settled()
                if not moving:
                    break
                time.sleep(_MOMENT)
            else:
                raise TargetError(f"a pull into {self.where} has not ended; nothing was read. Pull again to finish it")
        yield _Reading(self, state)

    def settled(self) -> tuple[State | None, bool]:
        """The state that is held, and whether a step is on its way from it; seen from a connection of its own."""
        if not os.path.exists(os.path.join(self._data, b"state.db")):
            return None, False
        with self._connections.snapshot() as db:
            if not _is_ours(db):
                return None, False
            row = db.execute("SELECT value FROM state").fetchone()
            moving = db.execute("SELECT 1 FROM next").fetchone() is not None
        return None if row is None else msgspec.msgpack.decode(row[0], type=State), moving

    def index(self, lower: bytes, upper: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """The first paths in [lower, upper) that were pulled, with their types."""
        end, values = ("", [lower]) if upper is None else ("AND path < ?", [lower, upper])
        query = f"SELECT path, kind FROM files WHERE path >= ? {end} ORDER BY path LIMIT {limit}"
        with self._errors(), self._connections.snapshot() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def writer(self, opening: Opening) -> Iterator[StepWriter | NewWriter]:
        with self._errors():
            created = not os.path.lexists(self.root)
            ours = self.state() is not None
            if not created and not os.path.isdir(self.root):
                raise TargetError(f"{self.where} is not a folder; nothing was written")
            fresh = not ours and opening.replace and (created or not self._foreign())
            if not ours and not fresh and not opening.adopt:
                raise self._not_ours()
            db = self._own()
            check_held(self._stored("state"), opening, self.where)
            staging = os.path.join(self._data, b"staging")
            self.disk.forget()
            try:
                remove_tree(staging)
                os.mkdir(staging)
                db.execute("BEGIN IMMEDIATE")
                yield NewWriter(self, db, opening) if fresh else StepWriter(self, db, opening)
            except BaseException:
                with suppress(HeadwaterError, OSError, sqlite3.Error):  # what went wrong first is what is reported
                    self._drop_staged(db, ours, created)
                raise
            self._drop_staged(db, ours, created)

    def _drop_staged(self, db: sqlite3.Connection, ours: bool, created: bool) -> None:
        """Undo what was not decided; where nothing is held, leave no trace."""
        if db.in_transaction:
            db.execute("ROLLBACK")
        if self._stored("next") is None:
            remove_tree(os.path.join(self._data, b"staging"))
            if not ours and self._stored("state") is None:
                self._forget(created)

    def check_empty(self) -> None:
        """Raise NotOurs if somebody put something into the folder that was empty."""
        if self._foreign():
            raise self._not_ours()

    def _not_ours(self) -> NotOurs:
        return NotOurs(
            f"{self.where} is not empty and was not made by headwater; nothing was written. "
            "Use an empty folder, or --adopt to keep its other files and overwrite those the dataset names "
            "(`puller pull --adopt --dry-run` only names them)"
        )

    def records(self) -> Iterator[Run]:
        db = self._open()
        for path, kind in db.execute("SELECT path, kind FROM files ORDER BY path"):
            value = self.disk.read(path)
            if value is not None and value[:1] == kind:
                yield [path], [value]

    def check(self) -> Check:
        check = Check(0, 0)
        self.disk.forget()
        for path, expected, kind, *_ in self._open().execute("SELECT * FROM files ORDER BY path"):
            name = os.fsdecode(path)
            found = self.disk.hash_of(path, kind)
            if found is None:
                check.missing.append(name)
                continue
            check.records += 1
            check.checksum = (check.checksum + int.from_bytes(found, "big")) % MODULUS
            if found != expected:
                check.differing.append(name)
        return check

    def _foreign(self) -> bool:
        with os.scandir(self.root) as entries:
            return any(entry.name != DATA.encode() for entry in entries)

    def _open(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        try:
            os.makedirs(self._data, exist_ok=True)
            if os.path.islink(self._data):
                raise TargetError(f"{os.fsdecode(self._data)} is a symbolic link; nothing was written")
            path = os.path.join(self._data, b"state.db")
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)  # for threads that read pieces
            db.executescript("PRAGMA synchronous=FULL; PRAGMA cache_size=-16000;" + _SCHEMA + held.SCHEMA)
        except OSError as error:
            raise _failed(self.where, error) from error
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        self._db = db
        if self._stored("next") is not None:
            self._own()
        return db

    def _own(self) -> sqlite3.Connection:
        """The database, locked against other pullers, with no step left half done."""
        db = self._open()
        if self._lock < 0:
            try:
                lock = os.open(os.path.join(self._data, b"lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._lock = lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TargetError(f"another puller is at work on {self.where}; nothing was written") from error
            except OSError as error:
                raise _failed(self.where, error) from error
            if self._stored("next") is not None:
                self._finish()
        return db

    def _unusable(self, error: Exception) -> TargetError:
        return TargetError(f"the bookkeeping of {self.where} cannot be used: {error}; what was there was kept")

    def _damaged(self, error: Exception) -> TargetError:
        return TargetError(
            f"the bookkeeping of {self.where} is damaged ({error}); delete {DATA}/ in it and run `puller pull --adopt`"
        )

    def _stored(self, table: str) -> State | None:
        assert self._db is not None
        try:
            row = self._db.execute(f"SELECT value FROM {table}").fetchone()
            return None if row is None else msgspec.msgpack.decode(row[0], type=State)
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except (sqlite3.Error, msgspec.DecodeError, TypeError) as error:
            raise self._damaged(error) from error

    def _forget(self, created: bool) -> None:
        self.close()
        kept = [name for name in _names_in(self._data) if name == b"partial" or name.startswith(b"follow")]
        if kept:  # files of a pull under way, and the lock of who follows the target
            for name in {*_names_in(self._data)} - {*kept}:
                _discard(os.path.join(self._data, name))
            return
        remove_tree(self._data)
        if created:
            try:
                os.rmdir(self.root)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                    raise

    def decide(self, state: State) -> None:
        """Commit the step under way, with the state it leads to, and carry it out."""
        sync_files(self.root)
        db = self._open()
        db.execute("REPLACE INTO next VALUES (1, ?)", (msgspec.msgpack.encode(state),))
        db.execute("COMMIT")
        self._finish()

    def _finish(self) -> None:
        """Carry out a step that was decided. Raises TargetError where that fails; the next command goes on with it."""
        state = self._stored("next")
        try:
            self._carry_out()
        except (OSError, sqlite3.Error) as error:
            version = "its next version" if state is None else f"version {state.version}"
            reason = error.strerror if isinstance(error, OSError) else error
            raise TargetError(
                f"{self.where} is on its way to {version}, which lies complete in {DATA}/, but it cannot be moved into place: "
                f"{reason}. Until the next `puller` command goes on with it, files of both versions are there"
            ) from error

    def _carry_out(self) -> None:
        """Move what was staged into place; each part of it may have been done already."""
        db = self._open()
        staging = os.path.join(self._data, b"staging")
        self.disk.forget()
        emptied: set[bytes] = set()
        for (path,) in db.execute("SELECT path FROM journal WHERE action = ? ORDER BY path DESC", (DELETE,)):
            self._remove(path, emptied)
        for folder in sorted(emptied, reverse=True):
            if self.disk.blocker(folder + b"/") is None:
                remove_folder(self.disk.full(folder))
        made: set[bytes] = set()
        rows = db.execute(
            "SELECT path, action, staged FROM journal WHERE action IN (?, ?) ORDER BY path", (PLACE, FOLDER)
        )
        for path, action, staged in rows:
            make_parents(self.root, path, made)
            if action == FOLDER:
                place_folder(self.disk.full(path))
            else:
                place_file(os.path.join(staging, b"%d" % staged), self.disk.full(path))
        new = os.path.join(staging, NEW)
        for name in _names_in(new):
            os.rename(os.path.join(new, name), os.path.join(self.root, name))
        sync_files(self.root)
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM files WHERE path IN (SELECT path FROM journal WHERE action = ?)", (DELETE,))
        db.execute(
            "REPLACE INTO files SELECT path, hash, kind, size, mtime FROM journal WHERE action IN (?, ?)",
            (PLACE, FOLDER),
        )
        held.place(db)
        db.execute("REPLACE INTO state SELECT id, value FROM next")
        db.execute("DELETE FROM next")
        db.execute("DELETE FROM journal")
        db.execute("COMMIT")
        remove_tree(staging)

    def _remove(self, path: bytes, emptied: set[bytes]) -> None:
        """Remove what is ours at `path`; nothing of ours lies behind a symbolic link. It may be gone already."""
        emptied.update(files.parents(path))
        stat = self.disk.stat(path)
        if stat is None:
            return
        if stats.S_ISDIR(stat.st_mode):
            remove_folder(self.disk.full(path))
        else:
            os.unlink(self.disk.full(path))


class _Reading:
    """What lies in the folder while it holds one state. A step that moves files ends it: then reading raises Moved."""

    def __init__(self, target: FolderTarget, state: State | None) -> None:
        self.state = state
        self.lasting = target.lasting
        self._target = target

    def get(self, key: bytes) -> bytes | None:
        return next((values[0] for _, values in self.runs(key, key + b"\0")), None)

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[tuple[list[bytes], list[bytes]]]:
        if self.state is None:
            return
        at: bytes | None = lower
        while at is not None:
            index = self._target.index(at, upper, _PATHS)
            at = index[-1][0] + b"\0" if len(index) == _PATHS else None
            for keys, values in self._read(index):
                self._check()
                yield keys, values

    def _read(self, index: list[tuple[bytes, bytes]]) -> Iterator[tuple[list[bytes], list[bytes]]]:
        disk = Disk(self._target.root)
        keys: list[bytes] = []
        values: list[bytes] = []
        size = 0
        for path, kind in index:
            value = self._value(disk, path)
            if value is not None and value[:1] == kind:
                keys.append(path)
                values.append(value)
                size += len(value)
            if size > _READ_AHEAD:
                yield keys, values
                keys, values, size = [], [], 0
        self._check()
        if keys:
            yield keys, values

    def _value(self, disk: Disk, path: bytes) -> bytes | None:
        try:
            return disk.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed(self._target.where, error) from error

    def _check(self) -> None:
        assert self.state is not None
        if self.lasting:
            return
        state, moving = self._target.settled()
        if moving or state is None or state.position != self.state.position:
            raise Moved(f"{self._target.where} moved on while it was read; read it again")


def _is_ours(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'next'").fetchone() is not None


def _names_in(folder: bytes) -> list[bytes]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _discard(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path)
    else:
        os.unlink(path)


def _failed(where: str, error: OSError) -> TargetError:
    name = os.fsdecode(error.filename or where)
    return TargetError(f"{where} cannot be used: {error.strerror} ({name}); what was there was kept")

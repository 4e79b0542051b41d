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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import msgspec

from puller.durable import sync_files
from puller.errors import HeadwaterError, Invalid, LocalEdits, Moved, NotOurs, TargetError
from puller.targets import held
from puller.targets.base import Changes, Check, Opening, State, check_held
from puller.targets.disk import Disk, remove_tree
from puller.targets.edits import DELETE, FOLDER, KEEP, PLACE, Edits
from puller.targets.reading import Connections
from puller.targets.staging import Stager, make_parents, place_file, place_folder, remove_folder
from puller.wire import files
from puller.wire.checksum import MODULUS, Hash
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Large, Run, Value

DATA = ".headwater"
NEW = b"new"
_PATIENCE, _MOMENT = 2000, 0.005
"""How often, and after how many seconds, a step that moves files is looked at by somebody who wants to read."""
_PATHS, _READ_AHEAD = 256, 8 << 20
"""Paths, and bytes of their files, that are read at once."""
_BATCH = 4096
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

    def __init__(self, path: str) -> None:
        self.where = path
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
    def writer(self, opening: Opening) -> Iterator[_Writer | _NewWriter]:
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
                yield _NewWriter(self, db, opening) if fresh else _Writer(self, db, opening)
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
            "(with --dry-run it only names them)"
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
            db.executescript("PRAGMA synchronous=FULL;" + _SCHEMA + held.SCHEMA)
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
            f"the bookkeeping of {self.where} is damaged ({error}); delete {DATA}/ in it and pull with --adopt"
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

    lasting = False

    def __init__(self, target: FolderTarget, state: State | None) -> None:
        self.state = state
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
        state, moving = self._target.settled()
        if moving or state is None or state.position != self.state.position:
            raise Moved(f"{self._target.where} moved on while it was read; read it again")


class _NewWriter:
    """Fills an empty folder: everything is built in its place below the staging area, then moved at once."""

    def __init__(self, target: FolderTarget, db: sqlite3.Connection, opening: Opening) -> None:
        self._target = target
        self._db = db
        self._stager = Stager(opening)
        self._mtime = opening.time * 1_000_000_000
        self._top = os.path.join(target.root, DATA.encode(), b"staging", NEW)
        self._made: set[bytes] = set()
        self._empty: set[bytes] = set()
        self._changes = Changes()
        os.mkdir(self._top)

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        files.check_records(keys, values)
        try:
            rows = list(map(self._write, keys, values, hashes))
        except (FileExistsError, NotADirectoryError) as error:
            name = os.fsdecode(error.filename)[len(self._top) + 1 :]
            raise Invalid(f"the dataset has both {name} and paths below it; nothing was written") from error
        self._db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)
        self._changes.written += len(rows)
        return [None] * len(keys)

    def _write(self, key: bytes, value: Value, digest: Hash | None) -> tuple[Any, ...]:
        assert value is not None
        assert digest is not None
        if self._empty and not self._empty.isdisjoint(files.parents(key)):
            raise Invalid(
                f"the dataset has both an empty folder and paths below it ({os.fsdecode(key)}); nothing was written"
            )
        make_parents(self._top, key, self._made)
        path = self._top + b"/" + key
        if isinstance(value, Large):
            kind, parts = self._stager.write_large(path, key, value)
            held.stage(self._db, key, parts)
            return key, digest, kind, value.size - 1, self._mtime
        kind = value[:1]
        if kind == files.FOLDER:
            self._empty.add(key)
        self._stager.write(path, kind, value)
        return key, digest, kind, len(value) - 1, self._mtime

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        return iter(())

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        return [None] * len(keys)

    def overwrites(self) -> list[str]:
        return []

    def commit(self, state: State) -> Changes:
        self._target.check_empty()
        self._target.decide(state)
        return self._changes


class _Writer:
    def __init__(self, target: FolderTarget, db: sqlite3.Connection, opening: Opening) -> None:
        self._target = target
        self._db = db
        self._opening = opening
        self._edits = Edits(target.disk, db, exact=opening.overwrite)
        self._pieces = held.HeldPieces(target.disk, db)
        self._stager = Stager(opening)
        self._staging = os.path.join(target.root, DATA.encode(), b"staging")
        self._number = 0
        self._changes = Changes()
        self._differing: dict[bytes, bytes | None] = {}
        """The hash of what lies at paths that hold something else than was noted; None: nothing."""

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        files.check_records(keys, values)
        mtime = self._opening.time * 1_000_000_000
        rows: list[tuple[Any, ...]] = []
        for key, value, digest in zip(keys, values, hashes, strict=True):
            if value is None or digest is None:
                rows.append((key, DELETE, None, None, None, None, None))
                continue
            if isinstance(value, Large):
                rows.append(self._put_large(key, value, digest))
                continue
            kind = value[:1]
            if self._opening.replace and self._held(key, value, digest):
                rows.append((key, KEEP, None, digest, kind, len(value) - 1, mtime))
            elif kind == files.FOLDER:
                rows.append((key, FOLDER, None, digest, kind, 0, mtime))
            else:
                self._stager.write(self._next(), kind, value)
                rows.append((key, PLACE, self._number, digest, kind, len(value) - 1, mtime))
        self._db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return [None] * len(keys) if self._opening.replace else list(map(self._before, keys))

    def _put_large(self, key: bytes, value: Large, digest: bytes) -> tuple[Any, ...]:
        size, mtime = value.size - 1, self._opening.time * 1_000_000_000
        if self._opening.replace:
            row = self._db.execute("SELECT kind FROM files WHERE path = ? AND hash = ?", (key, digest)).fetchone()
            if row is not None and self._target.disk.hash_of(key, row[0]) == digest:
                return key, KEEP, None, digest, row[0], size, mtime
        old = partial(self._pieces.range, key)
        kind, parts = self._stager.write_large(self._next(), key, value, self._pieces.get, old)
        held.stage(self._db, key, parts)
        return key, PLACE, self._number, digest, kind, size, mtime

    def _before(self, key: bytes) -> Hash | None:
        row = self._db.execute("SELECT path, hash, kind FROM files WHERE path = ?", (key,)).fetchone()
        return None if row is None else self._hash(*row)

    def _hash(self, path: bytes, noted: bytes, kind: bytes) -> bytes | None:
        """The hash of what is held at a path: as noted, or of what lies there now if that may be lost."""
        return self._target.disk.hash_of(path, kind) if self._opening.overwrite else noted

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        rows = self._db.execute("SELECT path, hash, kind FROM files ORDER BY path")
        while batch := rows.fetchmany(_BATCH):
            found = [(row[0], self._hash(*row)) for row in batch]
            self._differing.update(one for one, row in zip(found, batch, strict=True) if one[1] != row[1])
            there = [(path, digest) for path, digest in found if digest is not None]
            yield [path for path, _ in there], [digest for _, digest in there]

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        return [self._small(files.check_path(key)) for key in keys]

    def _small(self, key: bytes) -> bytes | None:
        """The value of a path that is ours, unless it is large."""
        row = self._db.execute("SELECT size FROM files WHERE path = ?", (key,)).fetchone()
        return self._target.disk.read(key) if row is not None and row[0] < MAX_INLINE else None

    def overwrites(self) -> list[str]:
        self._complete()
        self._edits.find()
        return sorted({*self._edits.edited, *self._edits.foreign})

    def commit(self, state: State) -> Changes:
        self._complete()
        self._check_edits()
        db = self._db
        count = dict(db.execute("SELECT action, count(*) FROM journal GROUP BY action").fetchall())
        self._changes.written = count.get(PLACE, 0) + count.get(FOLDER, 0)
        self._changes.deleted = count.get(DELETE, 0)
        self._note_differing()
        self._target.decide(state)
        return self._changes

    def _note_differing(self) -> None:
        """Note what was made here by hand and is what the new version has: the journal does not name it."""
        for path, number in self._differing.items():
            if self._db.execute("SELECT 1 FROM journal WHERE path = ?", (path,)).fetchone() is not None:
                continue
            look = None if number is None else self._target.disk.look(path)
            if look is None:
                self._db.execute("DELETE FROM files WHERE path = ?", (path,))
            else:
                self._db.execute("REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (path, number, *look))

    def _complete(self) -> None:
        db = self._db
        if self._opening.replace:
            db.execute(
                f"INSERT INTO journal SELECT path, {DELETE}, NULL, NULL, NULL, NULL, NULL FROM files "
                "WHERE path NOT IN (SELECT path FROM journal)"
            )
        self._check_shape()

    def _held(self, key: bytes, value: bytes, digest: bytes) -> bool:
        row = self._db.execute("SELECT hash FROM files WHERE path = ?", (key,)).fetchone()
        return row is not None and row[0] == digest and self._target.disk.read(key) == value

    def _next(self) -> bytes:
        self._number += 1
        return b"%b/%d" % (self._staging, self._number)

    def _check_shape(self) -> None:
        """A path may not lie below another that is a file, a symlink or an empty folder (SPEC 8.1)."""
        db = self._db
        get = "SELECT kind FROM journal WHERE path = ? AND action != ?"
        if not self._opening.replace:
            get += (
                " UNION ALL SELECT kind FROM files WHERE path = ? AND path NOT IN"
                " (SELECT path FROM journal WHERE path = ?)"
            )
        checked: set[bytes] = set()
        for (path,) in db.execute("SELECT path FROM journal WHERE action != ?", (DELETE,)):
            for parent in files.parents(path):
                if parent in checked:
                    continue
                checked.add(parent)
                arguments = (parent, DELETE) if self._opening.replace else (parent, DELETE, parent, parent)
                if db.execute(get, arguments).fetchone() is not None:
                    raise Invalid(f"the dataset has both {os.fsdecode(parent)} and paths below it; nothing was written")
        if not self._opening.replace:
            self._check_below()

    def _check_below(self) -> None:
        db = self._db
        for (path,) in db.execute("SELECT path FROM journal WHERE action IN (?, ?)", (PLACE, FOLDER)):
            below = db.execute(
                "SELECT 1 FROM files WHERE path > ? AND path < ? AND path NOT IN"
                " (SELECT path FROM journal WHERE action = ?) LIMIT 1",
                (path + b"/", path + b"0", DELETE),
            ).fetchone()
            if below is not None:
                raise Invalid(f"the dataset has both {os.fsdecode(path)} and paths below it; nothing was written")

    def _check_edits(self) -> None:
        self._edits.find()
        edited, foreign = self._edits.edited, self._edits.foreign
        if edited and not self._opening.overwrite:
            raise LocalEdits(
                f"{len(edited)} of the files to be replaced were changed here since they were pulled "
                f"({_names(edited)}); nothing was written. Move your changes away, or pull with --overwrite",
                edited,
            )
        replaced = [name for name in self._edits.blockers if self._holds_below(os.fsencode(name))]
        if replaced and not (self._opening.replace and self._opening.overwrite):
            raise LocalEdits(
                f"folders of the dataset were replaced here by something else ({_names(replaced)}); nothing was "
                "written. Move that away, or pull with --overwrite",
                replaced,
            )
        if foreign and not (self._opening.adopt or self._opening.overwrite):
            raise NotOurs(
                f"{len(foreign)} paths of the dataset are taken by files that headwater did not write "
                f"({_names(foreign)}); nothing was written. Move them away, or pull with --adopt to overwrite them"
            )
        self._clear(foreign + edited)
        self._changes.overwritten = sorted({*edited, *foreign})

    def _holds_below(self, path: bytes) -> bool:
        query = "SELECT 1 FROM files WHERE path > ? AND path < ? LIMIT 1"
        return self._db.execute(query, (path + b"/", path + b"0")).fetchone() is not None

    def _clear(self, names: list[str]) -> None:
        """Let the journal remove what the user agreed to lose, where a rename would not replace it."""
        for name in names:
            path = os.fsencode(name)
            full = os.path.join(self._target.root, path)
            taken = self._db.execute("SELECT action FROM journal WHERE path = ?", (path,)).fetchone()
            if taken is None or taken[0] == DELETE:
                self._db.execute(
                    "INSERT OR IGNORE INTO journal VALUES (?, ?, NULL, NULL, NULL, NULL, NULL)", (path, DELETE)
                )
            elif os.path.isdir(full) and not os.path.islink(full):
                raise NotOurs(f"{name} is a folder with other files where the dataset has a file; move it away")


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


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _failed(where: str, error: OSError) -> TargetError:
    name = os.fsdecode(error.filename or where)
    return TargetError(f"{where} cannot be used: {error.strerror} ({name}); what was there was kept")

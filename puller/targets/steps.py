"""The steps of a folder target: what comes is staged and journalled beside the data; what is in the way is found first."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from puller.errors import Invalid, LocalEdits, NotOurs
from puller.targets import held
from puller.targets.base import Changes, Opening, State
from puller.targets.disk import Disk
from puller.targets.edits import DELETE, FOLDER, KEEP, PLACE, Edits
from puller.targets.staging import Stager, make_parents
from puller.wire import files
from puller.wire.checksum import Hash
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Large, Value

DATA = ".headwater"
"""The folder in a folder target with its bookkeeping."""
NEW = b"new"
"""Where in the staging area the files of an empty folder are built."""
_BATCH = 4096


class Place(Protocol):
    """The part of a folder target that its steps need."""

    root: bytes
    disk: Disk
    read_only: bool
    """Whether nobody is to write to its files."""

    def check_empty(self) -> None:
        """Raise NotOurs if somebody put something into the folder that was empty."""
        ...

    def decide(self, state: State) -> None:
        """Commit the step under way, with the state it leads to, and carry it out."""
        ...


class NewWriter:
    """Fills an empty folder: everything is built in its place below the staging area, then moved at once."""

    def __init__(self, target: Place, db: sqlite3.Connection, opening: Opening) -> None:
        self._target = target
        self._db = db
        self._stager = Stager(opening, read_only=target.read_only)
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


class StepWriter:
    """Changes a folder: what comes is staged and journalled, and moved into place once the step is decided."""

    def __init__(self, target: Place, db: sqlite3.Connection, opening: Opening) -> None:
        self._target = target
        self._db = db
        self._opening = opening
        self._edits = Edits(target.disk, db, exact=opening.overwrite)
        self._pieces = held.HeldPieces(target.disk, db)
        self._stager = Stager(opening, read_only=target.read_only)
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
        staged = "SELECT kind FROM journal WHERE path = ? AND action != ?"
        kept = (
            " UNION ALL SELECT kind FROM files WHERE path = ? AND path NOT IN (SELECT path FROM journal WHERE path = ?)"
        )
        checked: set[bytes] = set()
        for (path,) in db.execute("SELECT path FROM journal WHERE action != ?", (DELETE,)):
            for parent in files.parents(path):
                if parent in checked:
                    continue
                checked.add(parent)
                gone = self._opening.replace or self._differing.get(parent, b"") is None
                query = (staged, (parent, DELETE)) if gone else (staged + kept, (parent, DELETE, parent, parent))
                if db.execute(*query).fetchone() is not None:
                    raise Invalid(f"the dataset has both {os.fsdecode(parent)} and paths below it; nothing was written")
        if not self._opening.replace:
            self._check_below()

    def _check_below(self) -> None:
        db = self._db
        for (path,) in db.execute("SELECT path FROM journal WHERE action IN (?, ?)", (PLACE, FOLDER)):
            below = db.execute(
                "SELECT path FROM files WHERE path > ? AND path < ? AND path NOT IN"
                " (SELECT path FROM journal WHERE action = ?)",
                (path + b"/", path + b"0", DELETE),
            )
            if any(self._differing.get(inner, b"") is not None for (inner,) in below):
                raise Invalid(f"the dataset has both {os.fsdecode(path)} and paths below it; nothing was written")

    def _check_edits(self) -> None:
        self._edits.find()
        edited, foreign = self._edits.edited, self._edits.foreign
        if edited and not self._opening.overwrite:
            raise LocalEdits(
                f"{len(edited)} of the files to be replaced were changed here since they were pulled "
                f"({_names(edited)}); nothing was written. Move your changes away, or run `puller pull --overwrite`",
                edited,
            )
        replaced = [name for name in self._edits.blockers if self._holds_below(os.fsencode(name))]
        if replaced and not (self._opening.replace and self._opening.overwrite):
            raise LocalEdits(
                f"folders of the dataset were replaced here by something else ({_names(replaced)}); nothing was "
                "written. Move that away, or run `puller pull --overwrite`",
                replaced,
            )
        if foreign and not (self._opening.adopt or self._opening.overwrite):
            raise NotOurs(
                f"{len(foreign)} paths of the dataset are taken by files that headwater did not write "
                f"({_names(foreign)}); nothing was written. Move them away, or run `puller pull --adopt` to overwrite them"
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


def _names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

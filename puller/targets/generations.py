"""A folder that changes all at once (kind `files`): a symbolic link, switched from one generation folder to the next.

    TARGET -> .TARGET.headwater/000002-v42
    .TARGET.headwater/000001-v41    a folder target of its own: the files, and `.headwater/` with its bookkeeping
    .TARGET.headwater/000002-v42

A step builds the next generation beside the others: what stays is hard-linked, and only what changes is written. The
rename of the link is the step; whatever is cut short before it leaves folders that nobody sees, which the next command
removes. A generation never changes once the link led to it, so what is open stays whole; some old ones are kept.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import sqlite3
import stat as stats
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

from puller.durable import sync_folder
from puller.errors import TargetError
from puller.targets.base import Changes, Check, Opening, Reading, State, Writer
from puller.targets.disk import remove_tree
from puller.targets.folder import FolderTarget
from puller.targets.steps import DATA
from puller.wire.checksum import Hash
from puller.wire.nodes import Run, Value

KEEP = 2
"""Old generations that are kept for programs that still read them."""
_LINK = re.compile(r"(\.[^/]+\.headwater)/([0-9]{6,}-v[0-9]+)")
_NAME = re.compile(r"([0-9]{6,})-v[0-9]+")
_NEW, _SWITCH, _GONE, _PROBE = "new", "switch", "gone", "probe"
_LEFT = (_NEW, _SWITCH, _GONE, _PROBE)
_DATABASE = os.path.join(DATA, "state.db")
_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_AT_FDCWD = -100
_IMPOSSIBLE = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTSUP, errno.ENOSYS)
"""Why a symbolic link cannot be made, ever."""
_UNLINKABLE = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EACCES)
"""Why a file cannot be hard-linked, though it may be copied."""


def generation_of(path: str) -> str | None:
    """The generation folder that the link at `path` leads to; None where it is no link of ours."""
    path = _absolute(path)
    try:
        found = _LINK.fullmatch(os.readlink(path))
    except OSError:
        return None
    return None if found is None else os.path.join(os.path.dirname(path), *found.groups())


def why_not(path: str) -> str | None:
    """Why a folder at `path` cannot be switched all at once, and is to be updated in place; None: it can.

    Tries whether a symbolic link can be made beside it.
    """
    path = _absolute(path)
    if generation_of(path) is not None:
        return None
    if os.path.islink(path):
        return "it is a symbolic link of somebody else's"
    if os.path.ismount(path):
        return "something is mounted there"
    home = _home_of(path)
    probe = os.path.join(home, _PROBE)
    try:
        with _lock(home, path):
            _remove_litter(home, None)
            os.symlink(_PROBE, probe)
            os.unlink(probe)
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise TargetError(f"{path} cannot be used: {error.strerror} ({probe}); what was there was kept") from error
        return f"no symbolic link can be made in {home}: {error.strerror}"
    return None


def arrange(path: str, *, atomic: bool) -> str | None:
    """Let the folder target at `path` be switched as a whole from now on, or be updated in place; at once, where it is there.

    Returns why it is updated in place though it is to be switched. Raises TargetError, and changes nothing.
    """
    path = _absolute(path)
    generation = generation_of(path)
    if not atomic:
        if generation is not None:
            _switch_back(path)
        elif os.path.isdir(_home_of(path)):  # a process was killed when it had just switched back
            with _errors(path), _lock(_home_of(path), path):
                _remove_litter(_home_of(path), None)
        return None
    reason = why_not(path)
    if reason is None and generation is None and _version_in(path):
        _switch_to(path)
    return reason


def _switch_to(path: str) -> None:
    """Make the folder target at `path` the first of its generations."""
    home = _home_of(path)
    with _errors(path), _lock(home, path):
        _remove_litter(home, None)
        name = f"{_newest(home) + 1:06d}-v{_version_in(path)}"
        place = os.path.join(home, name)
        os.symlink(os.path.join(os.path.basename(home), name), place)
        try:
            _exchange(place, path)
        except BaseException:
            os.unlink(place)
            raise
        sync_folder(home)
        sync_folder(os.path.dirname(path))


def _switch_back(path: str) -> None:
    """Put the newest generation in the place of the link to it, and drop all others."""
    place = generation_of(path)
    assert place is not None
    home = os.path.dirname(place)
    with _errors(path), _lock(home, path):
        place = generation_of(path)
        if place is None or not os.path.isdir(place):
            raise TargetError(f"{path} leads to no generation any more; nothing was done")
        for other in os.listdir(home):  # first: once the folder is in its place, nobody looks for them
            if os.path.join(home, other) != place and other != "lock":
                _remove(os.path.join(home, other))
        _exchange(place, path)
        sync_folder(os.path.dirname(path))
        os.unlink(place)


def _version_in(folder: str) -> int:
    """The version that a folder target holds, 0 for none; a step that was cut short is finished first."""
    target = FolderTarget(folder)
    try:
        state = target.state()
        return 0 if state is None else state.version
    finally:
        target.close()


class _Held:
    """A generation that is not to be removed as long as somebody uses it."""

    def __init__(self, path: str | None, descriptor: int, target: FolderTarget) -> None:
        self.path = path
        self.target = target
        self.users = 0
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | None, where: str) -> Self | None:
        """None where it is not there, or is removed right now."""
        if path is None:
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return cls(path, descriptor, FolderTarget(path, where, lasting=True))
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None

    def close(self) -> None:
        self.target.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class GenerationsTarget:
    """Keeps the folder that a link leads to equal to a dataset of kind `files`, and switches the link.

    Files that somebody added to the newest generation are linked into the next one. `keep`: how many older ones are
    left alone; one that a reader of this package holds stays for as long as it does.
    """

    kinds: tuple[str, ...] = ("files",)
    gives_values = True

    def __init__(self, path: str, keep: int = KEEP) -> None:
        self.where = path
        self._path = _absolute(path)
        self._keep = keep
        self._held: tuple[str, FolderTarget] | None = None
        self._lock = threading.Lock()
        self._shared: _Held | None = None
        """What readers of this process use."""

    @property
    def _home(self) -> str:
        generation = generation_of(self._path)
        return _home_of(self._path) if generation is None else os.path.dirname(generation)

    @property
    def partial(self) -> str:
        return os.path.join(self._home, "partial")

    def _current(self) -> FolderTarget | None:
        """The folder that the link leads to."""
        generation = generation_of(self._path)
        if generation is None or not os.path.isdir(generation):
            return None
        if self._held is None or self._held[0] != generation:
            self._close_current()
            self._held = generation, FolderTarget(generation, self.where)
        return self._held[1]

    def state(self) -> State | None:
        with _errors(self.where):
            self._tidy()
            current = self._current()
            return None if current is None else current.state()

    def is_there(self) -> bool:
        current = self._current()
        return current is None or current.is_there()

    def remember(self, state: State, was: State) -> None:
        current = self._current()
        if current is not None:
            current.remember(state, was)

    def records(self) -> Iterator[Run]:
        current = self._current()
        if current is not None:
            yield from current.records()

    def check(self) -> Check:
        current = self._current()
        return Check(0, 0) if current is None else current.check()

    def close(self) -> None:
        self._close_current()
        with self._lock:
            self._drop_shared()

    def _close_current(self) -> None:
        if self._held is not None:
            self._held[1].close()
            self._held = None

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """The generation that the link leads to, which stays until the end."""
        with _errors(self.where):
            held = self._hold()
        try:
            with held.target.reading() as reading:
                yield reading
        finally:
            self._let_go(held)

    def _hold(self) -> _Held:
        """The newest generation, kept from being removed; where there is none, what lies there is no target yet."""
        with self._lock:
            while True:
                generation = generation_of(self._path)
                if self._shared is None or self._shared.path != generation:
                    held = _Held.open(generation, self.where)
                    if held is None and generation == generation_of(self._path):
                        held = _Held(None, -1, FolderTarget(self._path, self.where))
                    if held is None:
                        continue  # it went before we had it: the link has moved on
                    self._drop_shared()
                    self._shared = held
                self._shared.users += 1
                return self._shared

    def _let_go(self, held: _Held) -> None:
        with self._lock:
            held.users -= 1
            if not held.users and held is not self._shared:
                held.close()

    def _drop_shared(self) -> None:
        if self._shared is not None and not self._shared.users:
            self._shared.close()
        self._shared = None

    @contextmanager
    def writer(self, opening: Opening) -> Iterator[_Writer]:
        home = self._home
        new = os.path.join(home, _NEW)
        if os.path.lexists(self._path) and generation_of(self._path) is None:
            self._check_foreign(opening)
        with _errors(self.where), _lock(home, self.where), ExitStack() as stack:
            _remove_litter(home, generation_of(self._path))
            stack.callback(remove_tree, os.fsencode(new))
            clone(generation_of(self._path) or self._path, new)
            inner = FolderTarget(new, self.where, read_only=True)
            stack.callback(inner.close)
            writing = stack.enter_context(ExitStack())
            yield _Writer(self, inner, writing.enter_context(inner.writer(opening)), writing)

    def _check_foreign(self, opening: Opening) -> None:
        """Raise NotOurs before anything is linked where a folder of somebody else's is not to be taken over."""
        if not os.path.isdir(self._path) or os.path.islink(self._path):
            raise TargetError(f"{self.where} is not a folder; nothing was written")
        if not opening.adopt:
            FolderTarget(self._path, self.where).check_empty()

    def switch(self, version: int) -> None:
        """Let the link lead to the generation that was built, and remove those that are too old."""
        self._close_current()
        home = self._home
        name = f"{_newest(home) + 1:06d}-v{version}"
        place, link = os.path.join(home, name), os.path.join(home, _SWITCH)
        os.symlink(os.path.join(os.path.basename(home), name), link)  # first: it says what was never switched to
        os.rename(os.path.join(home, _NEW), place)
        sync_folder(home)
        if os.path.isdir(self._path) and not os.path.islink(self._path):
            self._take_place(link)
        else:
            os.rename(link, self._path)
        try:
            sync_folder(os.path.dirname(self._path))
        except OSError as error:
            raise TargetError(
                f"{self.where} leads to version {version} now, but that may not outlive a power cut: {error.strerror}"
            ) from error
        with suppress(OSError):  # what cannot be removed now is removed by the next step
            _prune(home, self._keep)

    def _take_place(self, link: str) -> None:
        """Put the link in the place of a folder: an empty one, or one whose files were linked into the generation."""
        try:
            os.rmdir(self._path)
        except OSError:
            _exchange(link, self._path)
            remove_tree(os.fsencode(link))
        else:
            os.rename(link, self._path)

    def _tidy(self) -> None:
        """Remove what a killed process left, unless another one is at work."""
        home, current = self._home, generation_of(self._path)
        if not _litter(home, current):
            return
        with suppress(OSError, TargetError), _lock(home, self.where):
            _remove_litter(home, generation_of(self._path))


class _Writer:
    """A step of the folder target that the next generation is, and the switch to it."""

    def __init__(self, target: GenerationsTarget, inner: FolderTarget, writer: Writer, writing: ExitStack) -> None:
        self._target = target
        self._inner = inner
        self._writer = writer
        self._writing = writing

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        return self._writer.put(keys, values, hashes)

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        return self._writer.held()

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        return self._writer.values(keys)

    def overwrites(self) -> list[str]:
        return self._writer.overwrites()

    def commit(self, state: State) -> Changes:
        changes = self._writer.commit(state)
        self._writing.close()
        self._inner.close()
        self._target.switch(state.version)
        return changes


def clone(folder: str, new: str) -> None:
    """Build a folder with hard links to the files of another one, and a copy of its bookkeeping; it need not be there."""
    if not os.path.isdir(folder):
        return
    os.mkdir(new)
    pending = [(os.fsencode(folder), os.fsencode(new))]
    while pending:
        here, there = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                path = there + b"/" + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if here == os.fsencode(folder) and entry.name == DATA.encode():
                        continue
                    os.mkdir(path)
                    os.chmod(path, stats.S_IMODE(entry.stat(follow_symlinks=False).st_mode))
                    pending.append((entry.path, path))
                else:
                    _link(entry.path, path)
    if os.path.exists(os.path.join(folder, _DATABASE)):
        os.mkdir(os.path.join(new, DATA))
        with _database(folder) as held, _database(new) as copy:
            held.backup(copy)


@contextmanager
def _database(folder: str) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(os.path.join(folder, _DATABASE))
    try:
        yield db
    finally:
        db.close()


def _link(path: bytes, new: bytes) -> None:
    try:
        os.link(path, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _UNLINKABLE:
            raise
        shutil.copy2(path, new, follow_symlinks=False)


def _litter(home: str, current: str | None) -> list[str]:
    """What is left of steps that were cut short: a folder half built, or one that the link was never switched to."""
    try:
        names = os.listdir(home)
        found = [name for name in names if name in _LEFT or (_NAME.fullmatch(name) and _is_link(home, name))]
        if _SWITCH in found and _is_link(home, _SWITCH):
            built = os.path.basename(os.readlink(os.path.join(home, _SWITCH)))
            found += [built] if built in names and os.path.join(home, built) != current else []
    except OSError:
        return []
    return found


def _is_link(home: str, name: str) -> bool:
    return os.path.islink(os.path.join(home, name))


def _remove_litter(home: str, current: str | None) -> None:
    for name in sorted(_litter(home, current)):  # the link that says what else there is comes last
        _remove(os.path.join(home, name))


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(os.fsencode(path))
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _prune(home: str, keep: int) -> None:
    """Remove the oldest generations but for `keep` and those that a link leads to, or that somebody reads."""
    with os.scandir(os.path.dirname(home)) as entries:  # a link may have been renamed, or copied
        links = [os.readlink(entry.path) for entry in entries if entry.is_symlink()]
    linked = {os.path.basename(link) for link in links if os.path.dirname(link) == os.path.basename(home)}
    names = sorted((name for name in os.listdir(home) if _NAME.fullmatch(name)), key=_number)
    old = [name for name in names if name not in linked]
    for name in old[: max(0, len(old) - keep)]:
        path = os.path.join(home, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            os.rename(path, os.path.join(home, _GONE))
            remove_tree(os.fsencode(os.path.join(home, _GONE)))
        finally:
            os.close(descriptor)


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    return 0 if found is None else int(found[1])


def _newest(home: str) -> int:
    """The number of the newest generation; 0 where there is none."""
    try:
        return max(map(_number, os.listdir(home)), default=0)
    except FileNotFoundError:
        return 0


def _absolute(path: str) -> str:
    return os.path.abspath(path)


def _home_of(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.headwater")


@contextmanager
def _lock(home: str, where: str) -> Iterator[None]:
    """Keep other pullers from the generations. The folder for them is made, and goes if it stays empty."""
    path = os.path.join(home, "lock")
    lock = _locked(home, path, where)
    try:
        yield
    finally:
        with suppress(OSError):
            if os.listdir(home) == ["lock"]:
                os.unlink(path)
                os.rmdir(home)
        os.close(lock)


def _locked(home: str, path: str, where: str) -> int:
    while True:
        os.makedirs(home, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass  # whoever had it removed it: nothing was held there
        except BlockingIOError as error:
            os.close(lock)
            raise TargetError(f"another puller is at work on {where}; nothing was written") from error
        os.close(lock)


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename or where)
        raise TargetError(f"{where} cannot be used: {error.strerror} ({name}); what was there was kept") from error
    except sqlite3.Error as error:
        raise TargetError(f"the bookkeeping of {where} cannot be used: {error}; what was there was kept") from error


def _exchange(one: str, other: str) -> None:
    """Let two paths change places, at once. Raises TargetError where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise TargetError(f"this system cannot put a link in the place of a folder at once; move {other} away first")
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise TargetError(
                f"this file system cannot put a link in the place of a folder at once; move {other} away first"
            )
        raise OSError(number, os.strerror(number), other)

"""A local folder as store: files appear whole by rename, HEAD is swapped under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from puller.durable import sync_files, sync_folder
from puller.errors import Conflict, FetchError, NotFound, Unavailable
from puller.stores.base import ABSENT, OURS, TEMPORARY, Listed, StoreError, Token
from puller.wire.head import HEAD

if TYPE_CHECKING:
    from puller.doctor import Finding

_OURS = OURS | {"lost+found"}


class FolderStore:
    """Keeps a dataset in a folder that any web server can serve as it is."""

    threads = 0

    def __init__(self, root: str) -> None:
        self.where = root
        self.written = 0
        self._made: set[str] = set()
        self._lock = threading.Lock()

    def get(self, path: str) -> bytes:
        try:
            with open(os.path.join(self.where, path), "rb") as file:
                return file.read()
        except OSError as error:
            raise self._unread(path, error) from error

    def size_of(self, path: str) -> int | None:
        try:
            return os.stat(os.path.join(self.where, path)).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unread(path, error) from error

    def put(self, path: str, data: bytes) -> None:
        full = os.path.join(self.where, path)
        try:
            temporary = self._write(full, data)
            with _or_discard(temporary), self._locked(fcntl.LOCK_SH):
                os.replace(temporary, full)
        except OSError as error:
            raise self._unwritten(path, error) from error
        with self._lock:
            self.written += len(data)

    def create(self, path: str, data: bytes) -> bool:
        full = os.path.join(self.where, path)
        try:
            temporary = self._write(full, data, durable=True)
            try:
                os.link(temporary, full)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
            sync_folder(os.path.dirname(full))
        except OSError as error:
            raise self._unwritten(path, error) from error
        return True

    def flush(self) -> None:
        try:
            sync_files(os.fsencode(self.where))
        except OSError as error:
            raise self._unwritten("the new files", error) from error

    def read_head(self) -> tuple[bytes, Token]:
        data = self.get(HEAD)
        return data, _token(data)

    def swap_head(self, expected: Token, data: bytes, time: int) -> Token:
        full = os.path.join(self.where, HEAD)
        swapped = False
        try:
            folder = os.open(self._folder(full), os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                if self._current() != expected:
                    raise Conflict(f"somebody else wrote to {self.where} in the meantime")
                temporary = self._write(full, data, durable=True)
                with _or_discard(temporary):
                    os.utime(temporary, (time, time))
                    os.replace(temporary, full)
                swapped = True
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if swapped:
                raise StoreError(
                    f"the new HEAD is in its place in {self.where}, and pullers see the new version, but it could not be made "
                    f"durable: {error.strerror}. A power cut may bring the old HEAD back; check the disk, then publish again"
                ) from error
            raise self._unwritten(HEAD, error) from error
        return _token(data)

    def list(self, prefix: str) -> Iterator[str]:
        return (path for path in self._walk(prefix) if not os.path.basename(path).startswith(TEMPORARY))

    def files(self, prefix: str) -> Iterator[Listed]:
        for path in self._walk(prefix):
            full = os.path.join(self.where, path)
            try:
                status = os.lstat(full)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._unread(path, error) from error
            yield Listed(path, status.st_size, self._written(status))

    def clock(self) -> float:
        probe = os.path.join(self.where, f"{TEMPORARY}clock-{uuid.uuid4().hex}")
        try:
            with open(probe, "xb") as file:
                os.unlink(probe)
                return os.fstat(file.fileno()).st_ctime
        except OSError as error:
            raise self._unwritten("a file that tells the time", error) from error

    def delete(self, path: str) -> None:
        try:
            os.unlink(os.path.join(self.where, path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unwritten(path, error) from error

    def collect(self, paths: Sequence[str], before: float, unless: Callable[[], bool] | None = None) -> set[str]:
        gone: set[str] = set()
        try:
            with self._locked(fcntl.LOCK_EX):  # what is put takes its place under a shared lock
                if unless is not None and unless():
                    return gone
                for path in paths:
                    full = os.path.join(self.where, path)
                    with suppress(FileNotFoundError):
                        if self._written(os.lstat(full)) < before:
                            os.unlink(full)
                            gone.add(path)
        except OSError as error:
            raise self._unwritten("the list of what is to be removed", error) from error
        return gone

    def foreign(self) -> str | None:
        try:
            with os.scandir(self.where) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(TEMPORARY)]
                return next((name for name in names if name not in _OURS), None)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unread("the folder", error) from error

    def _written(self, status: os.stat_result) -> float:
        """When a file was last written: no copying tool can set its change time."""
        return status.st_ctime

    def _walk(self, prefix: str) -> Iterator[str]:
        """The paths of all files that begin with `prefix`."""
        top = os.path.join(self.where, os.path.dirname(prefix))

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise self._unread(prefix, error)

        for folder, folders, names in os.walk(top, onerror=fail):
            base = os.path.relpath(folder, self.where)
            base = "" if base == "." else base + "/"
            folders[:] = [n for n in folders if f"{base}{n}/".startswith(prefix) or prefix.startswith(f"{base}{n}/")]
            yield from (base + name for name in names if (base + name).startswith(prefix))

    @contextmanager
    def _locked(self, kind: int) -> Iterator[int]:
        """A lock on the folder, shared or exclusive, as its descriptor."""
        folder = os.open(self.where, os.O_RDONLY)
        try:
            fcntl.flock(folder, kind)
            yield folder
        finally:
            os.close(folder)

    def probe(self) -> None:
        pass  # a lock sees to it

    def findings(self) -> Iterator[Finding]:
        """Whether others, such as a web server, may read what is published."""
        from puller.doctor import NOTE, OK, Finding

        closed = []
        for name, needed in (("", 0o005), (HEAD, 0o004), ("chunks", 0o005), ("diffs", 0o005)):
            full = os.path.join(self.where, name)
            with suppress(FileNotFoundError):
                if os.stat(full).st_mode & needed != needed:
                    closed.append(full)
        if closed:
            text = f"only some users may read {', '.join(closed)}: a web server that runs as another gets nothing"
            yield Finding("rights", NOTE, text, f"chmod -R a+rX {self.where}, and publish with umask 022")
        else:
            yield Finding("rights", OK, "everybody on this machine may read what is published")

    def _current(self) -> Token:
        try:
            return _token(self.get(HEAD))
        except NotFound:
            return ABSENT

    def _folder(self, full: str) -> str:
        folder = os.path.dirname(full)
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        return folder

    def _write(self, full: str, data: bytes, *, durable: bool = False) -> str:
        folder = self._folder(full)
        name = f"{TEMPORARY}{os.path.basename(full)}-{os.getpid()}-{threading.get_ident()}"
        temporary = os.path.join(folder, name)
        with _or_discard(temporary), open(temporary, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            if durable:
                os.fsync(file.fileno())
        return temporary

    def _unread(self, path: str, error: OSError) -> FetchError:
        if isinstance(error, FileNotFoundError):
            return NotFound(f"there is no {path} in {self.where}")
        return Unavailable(f"{path} in {self.where} cannot be read: {error.strerror}")

    def _unwritten(self, path: str, error: OSError) -> StoreError:
        return StoreError(
            f"{path} cannot be written to {self.where}: {error.strerror}; what is published there stays as it was"
        )


@contextmanager
def _or_discard(temporary: str) -> Iterator[None]:
    """Remove a temporary file if what is done with it fails."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _token(data: bytes) -> Token:
    return hashlib.sha256(data).hexdigest()

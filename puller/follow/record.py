"""What is remembered of following a target, beside it: a small file, and a lock against a second follower."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress

import msgspec

from puller.errors import TargetError
from puller.service.process import write_atomically
from puller.targets.base import Target

Position = tuple[int, int]


class Record(msgspec.Struct):
    """What a follower tells `puller status` and the follower after it. Times are Unix seconds.

    `told` has, for each hook (`exec`, `webhook`), the position of which it was told with success. `rests` are addresses to
    be left alone, as in the target's state, which there is none of before a first pull.
    """

    url: str = ""
    pid: int = 0
    host: str = ""
    started: float = 0.0
    last_poll: float | None = None
    last_success: float | None = None
    last_error: str | None = None
    failures: int = 0
    told: dict[str, Position] = {}
    rests: dict[str, tuple[int, int]] = {}
    format: int = 1


def place_of(target: Target) -> str | None:
    """The record's path; None for a target that keeps nothing beside it."""
    return None if target.partial is None else target.partial.removesuffix("partial") + "follow"


def read(path: str) -> Record:
    """The record at a path; an empty one where there is none, or where it is damaged: hooks then run once more."""
    with suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
        return msgspec.json.decode(file.read(), type=Record)
    return Record()


def write(path: str, record: Record) -> None:
    """Store a record. Raises TargetError."""
    write_atomically(path, msgspec.json.encode(record).decode())


class Lock:
    """Held as long as a target is followed; the file says by whom."""

    def __init__(self, path: str, where: str) -> None:
        """Take the lock of the record at `path`. Raises TargetError where another follower has it."""
        self.path = f"{path}.lock"
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TargetError(f"{where} cannot be followed: {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}, since {_now()}".encode(), 0)
        except BlockingIOError as error:
            who = os.pread(self._file, 500, 0).decode(errors="replace")
            os.close(self._file)
            raise TargetError(
                f"{where} is followed already, by {who or 'another process'}; nothing was written"
            ) from error
        except OSError as error:
            os.close(self._file)
            raise TargetError(f"{where} cannot be followed: {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Let go."""
        os.close(self._file)


def is_followed(path: str) -> bool:
    """Whether a process holds the lock of the record at `path`."""
    try:
        file = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

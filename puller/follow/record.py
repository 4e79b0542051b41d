"""What is remembered of following a target, beside it: a small file, and a lock against a second follower."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from typing import Any

import msgspec

from puller.errors import TargetError
from puller.service.process import write_atomically
from puller.targets.base import FollowedTarget, FollowerLock, State, Target

Position = tuple[int, int]


class Record(msgspec.Struct):
    """What a follower tells `puller status` and the follower after it. Times are Unix seconds.

    `failures` counts those since the last success. `told` has, for each hook (`exec`, `webhook`), the position of which it
    was told with success. `rests` are addresses to be left alone, as in the target's state, which there is none of before
    a first pull.
    """

    url: str = ""
    pid: int = 0
    host: str = ""
    started: float = 0.0
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
            if not self.is_there():
                raise BlockingIOError  # whoever had it took the file away just now, and the next one will make another
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

    def is_there(self) -> bool:
        """Whether its file still lies where others look for it: the target may have been taken away."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        return False

    def close(self) -> None:
        """Let go."""
        os.close(self._file)


def lock_of(target: Target) -> FollowerLock | None:
    """Lock a target against other followers. Raises TargetError where there is one. None: it needs no lock."""
    place = place_of(target)
    if place is not None:
        return Lock(place, target.where)
    return target.lock_following() if isinstance(target, FollowedTarget) else None


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


def lag_versions(state: State) -> int | None:
    """Versions between what is held and the newest one that was seen; None where history was restarted in between."""
    return max(0, state.seen[1] - state.version) if state.seen[0] == state.epoch else None


def lag_seconds(state: State, now: float) -> float:
    """How old the newest version that was seen is, while it is not held; else 0."""
    return max(0.0, now - state.seen[2]) if state.seen[:2] > state.position else 0.0


def told(target: Target, state: State, now: float) -> dict[str, Any] | None:
    """How the following of a target goes, for `puller status`; None where it never was followed."""
    path = place_of(target)
    if path is None or not os.path.exists(path):
        return None
    record = read(path)
    polled = os.stat(path).st_mtime  # of the last poll, which is all that an unchanged one leaves
    return {
        "running": is_followed(path),
        "pid": record.pid,
        "host": record.host,
        "url": record.url,
        "since": int(record.started),
        "last_poll": int(polled),
        "last_success": record.last_success if record.failures or record.last_success is None else int(polled),
        "failures": record.failures,
        "last_error": record.last_error,
        "lag_versions": lag_versions(state),
        "lag_seconds": lag_seconds(state, now),
        "told": {name: {"epoch": epoch, "version": version} for name, (epoch, version) in record.told.items()},
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

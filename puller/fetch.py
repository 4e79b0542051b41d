"""Where files come from: what a fetcher is, the one for folders, retrying, and which one an address asks for."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from puller.errors import Corrupt, HeadwaterError, NotFound, Unavailable, UsageError, Withheld
from puller.wire.head import HEAD, MAX_HEAD

if TYPE_CHECKING:
    from puller.mirrors import Health

TIMEOUT = 30.0
"""Seconds that a host has for the headers of an answer, and to be silent."""
ATTEMPTS = 4
THREADS = 8
CONNECTIONS = 32
"""Files that are asked of a remote host at once: what is far away is waited for, not worked on."""
PATIENCE = 20.0
"""Seconds that a pull waits for files that are missing on the host."""


@dataclass(frozen=True)
class Answer:
    """What a host gave for HEAD: its bytes (None: not modified since `etag`), and the tag for the next time.

    `others` is what further places gave, the newest first: one of them may do where this one is refused.
    """

    data: bytes | None
    etag: str | None
    others: tuple[Answer, ...] = ()


Check = Callable[[bytes], object]
"""Raises Corrupt for bytes that are not the file's."""


class Fetcher(Protocol):
    """Gives the bytes of a dataset's files. Methods may be called from several threads at once.

    `fetch` and `fetch_head` raise NotFound only when the host says that a file is absent, Withheld when it gives
    something else than the file, Unavailable when asking again may help, FetchError otherwise. `requests` counts what
    was asked of the host, and `received` the bytes of the bodies it gave. A tag means nothing to fetchers of another
    address, which ignore it.
    """

    @property
    def is_local(self) -> bool:
        """Whether fetching again costs next to nothing."""
        ...

    @property
    def requests(self) -> int: ...

    @property
    def received(self) -> int: ...

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        """The file at `path`; at most `size` + 1 bytes of it, so that a longer file shows.

        Bytes that do not pass `check` are not returned: they are asked for again, or elsewhere, where the fetcher can,
        and Corrupt is raised in the end.
        """
        ...

    def fetch_head(self, etag: str | None) -> Answer:
        """HEAD, if it is another than the one that came with `etag`."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


class FolderFetcher:
    """Files of a local folder. HEAD's tag is made from its inode, size and times."""

    is_local = True

    def __init__(self, root: str) -> None:
        self.root = root
        self.requests = 0
        self.received = 0

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        self.requests += 1
        data = self._read(path, size + 1)
        self.received += len(data)
        if check is not None:
            check(data)
        return data

    def fetch_head(self, etag: str | None) -> Answer:
        self.requests += 1
        try:
            stat = os.stat(os.path.join(self.root, HEAD))
        except OSError as error:
            raise self._error(HEAD, error) from error
        tag = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
        if tag == etag:
            return Answer(None, etag)
        data = self._read(HEAD, MAX_HEAD + 1)
        self.received += len(data)
        return Answer(data, tag)

    def close(self) -> None:
        pass

    def _read(self, path: str, limit: int) -> bytes:
        try:
            with open(os.path.join(self.root, path), "rb", buffering=0) as file:
                parts = []
                while limit and (part := file.read(limit)):
                    parts.append(part)
                    limit -= len(part)
                return parts[0] if len(parts) == 1 else b"".join(parts)
        except OSError as error:
            raise self._error(path, error) from error

    def _error(self, path: str, error: OSError) -> HeadwaterError:
        if isinstance(error, FileNotFoundError):
            if os.path.isdir(os.path.join(self.root, ".headwater")):
                return UsageError(f"{self.root} is a copy that was pulled, not a dataset; are the arguments swapped?")
            hint = (
                ""
                if os.path.lexists(self.root)
                else "; is http:// missing?"
                if ":" in self.root
                else ", nor such a folder"
            )
            return NotFound(f"there is no {path} in {self.root}{hint}")
        if os.path.isfile(self.root):
            return UsageError(f"{self.root} is a file, not the folder of a dataset; are the arguments swapped?")
        return Unavailable(f"{path} in {self.root} cannot be read: {error.strerror}")


class Retrying:
    """Wraps a fetcher: what is Unavailable is asked for again, after growing, jittered pauses; what is Corrupt, once."""

    def __init__(
        self,
        inner: Fetcher,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._attempts = attempts
        self._sleep = sleep
        self._jitter = jitter

    @property
    def is_local(self) -> bool:
        return self._inner.is_local

    @property
    def requests(self) -> int:
        return self._inner.requests

    @property
    def received(self) -> int:
        return self._inner.received

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        return self._again(lambda: self._inner.fetch(path, size, check))  # type: ignore[no-any-return]

    def fetch_head(self, etag: str | None) -> Answer:
        return self._again(lambda: self._inner.fetch_head(etag))  # type: ignore[no-any-return]

    def close(self) -> None:
        self._inner.close()

    def _again(self, ask: Callable[[], Any]) -> Any:
        return again(lambda: self._whole(ask), self._attempts, self._sleep, self._jitter)

    def _whole(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Corrupt:
            self._sleep(0.2 * (0.5 + self._jitter()))
            return ask()


T = TypeVar("T")


def again(
    ask: Callable[[], T],
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], object] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> T:
    """What `ask` gives; while it is Unavailable, it is asked again after growing, jittered pauses."""
    for attempt in range(attempts):
        try:
            return ask()
        except Unavailable as error:
            if attempt + 1 == attempts or (error.retry_after or 0) > TIMEOUT:
                raise
            sleep(max(error.retry_after or 0.0, 0.2 * 2**attempt * (0.5 + jitter())))
    raise AssertionError("unreachable")


class Patience:
    """How long a pull waits for files that are missing, all in all: a cache may be behind the host, or hold a "not found"."""

    def __init__(
        self,
        seconds: float = PATIENCE,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._end = clock() + seconds

    def wait(self, attempt: int) -> bool:
        """Pause, longer with each attempt; False at once if there is no time left."""
        pause = min(8.0, 2.0**attempt) * (0.5 + self._jitter())
        if self._clock() + pause > self._end:
            return False
        self._sleep(pause)
        return True

    def until_there(self, ask: Callable[[], T]) -> T:
        """What `ask` gives; while the file is missing or withheld, it is asked again, as long as there is time left."""
        attempt = 0
        while True:
            try:
                return ask()
            except (NotFound, Withheld):
                if not self.wait(attempt):
                    raise
            attempt += 1


def split(address: str) -> SplitResult:
    """The parts of an address. Raises UsageError where it has none, or its port is no number."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{address} is not a proper address: {error}") from error
    return parts


def origin(url: str) -> tuple[str, int, bool]:
    """Host and port of an http or https address, and whether it is reached by TLS. Raises UsageError for any other."""
    parts = split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url} is not a proper address: it names no host that is reached by http or https")
    secure = parts.scheme == "https"
    return parts.hostname, parts.port or (443 if secure else 80), secure


def shown(address: str) -> str:
    """An address without the user and the password in it."""
    parts = split(address)
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def where(address: str) -> str:
    """An address that means the same from every folder, without a password."""
    return shown(address) if "://" in address else os.path.abspath(address)


def open_fetcher(address: str, mirrors: Sequence[str] = (), health: Health | None = None) -> Fetcher:
    """The fetcher for an address: http(s)://, s3://, file://, or a path. Raises UsageError for another scheme.

    `mirrors` are further addresses with the same dataset; `health` is what is known of all of them.
    """
    if not mirrors and _is_local(address):
        return _open(address)
    from puller.mirrors import Mirrors

    fetchers = {where(one): _open(one) for one in (address, *mirrors)}
    return Retrying(Mirrors(fetchers, health))


def _is_local(address: str) -> bool:
    return split(address).scheme not in ("http", "https")


def _open(address: str) -> Fetcher:
    parts = split(address)
    if parts.scheme in ("http", "https"):
        if not parts.netloc or parts.query or parts.fragment:
            raise UsageError(f"{address} is not the address of a dataset: give it without query and fragment")
        from puller.http import HttpFetcher

        return HttpFetcher(address)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{address} names another machine; file:// reads local folders only")
        return FolderFetcher(unquote(parts.path))
    if parts.scheme == "s3":
        from puller.s3 import S3Fetcher

        return Retrying(S3Fetcher(address))
    if "://" in address:
        raise UsageError(f"{address}: {parts.scheme}:// is not supported; use http(s)://, s3://, file:// or a path")
    return FolderFetcher(address)

"""Where files come from: a folder, or a host over HTTP. Fetchers say what they got; they verify nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from puller.errors import FetchError, HeadwaterError, NotFound, Unavailable, UsageError
from puller.wire.head import HEAD, MAX_HEAD

if TYPE_CHECKING:
    import urllib3

TIMEOUT = 30.0
ATTEMPTS = 4
THREADS = 8


@dataclass(frozen=True)
class Answer:
    """What a host gave for HEAD: its bytes (None: not modified since `etag`), and the tag for the next time."""

    data: bytes | None
    etag: str | None


class Fetcher(Protocol):
    """Gives the bytes of a dataset's files. Methods may be called from several threads at once.

    `fetch` and `fetch_head` raise NotFound only when the host says that a file is absent, Unavailable when
    asking again may help, FetchError otherwise. `requests` counts what was asked of the host, and `received`
    the bytes of the bodies it gave.
    """

    @property
    def is_local(self) -> bool:
        """Whether fetching again costs next to nothing."""
        ...

    @property
    def requests(self) -> int: ...

    @property
    def received(self) -> int: ...

    def fetch(self, path: str, size: int) -> bytes:
        """The file at `path`; at most `size` + 1 bytes of it, so that a longer file shows."""
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

    def fetch(self, path: str, size: int) -> bytes:
        self.requests += 1
        data = self._read(path, size + 1)
        self.received += len(data)
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


class HttpFetcher:
    """Files of an HTTP host, over pooled connections, without redirects to another origin."""

    is_local = False

    def __init__(self, base: str) -> None:
        import urllib3

        self.base = base.rstrip("/") + "/"
        self.requests = 0
        self.received = 0
        self._errors = urllib3.exceptions
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "headwater"}
        user = urlsplit(base).netloc.rpartition("@")[0]
        if user:
            self._headers |= urllib3.make_headers(basic_auth=unquote(user))
            self.base = shown(self.base)
        options: dict[str, Any] = {
            "maxsize": THREADS,
            "block": True,
            "retries": False,
            "timeout": urllib3.Timeout(connect=10.0, read=TIMEOUT),
        }
        proxy = _proxy(base)
        self._pool: urllib3.PoolManager = (
            urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        )

    def fetch(self, path: str, size: int) -> bytes:
        _, data, _ = self._get(path, size + 1, {})
        return data

    def fetch_head(self, etag: str | None) -> Answer:
        headers = {"If-None-Match": etag} if etag else {"Cache-Control": "no-cache"}
        status, data, tag = self._get(HEAD, MAX_HEAD + 1, headers)
        return Answer(None, etag) if status == 304 else Answer(data, tag)

    def close(self) -> None:
        self._pool.clear()

    def _get(self, path: str, limit: int, headers: dict[str, str]) -> tuple[int, bytes, str | None]:
        url = urljoin(self.base, path)
        for _ in range(4):
            self.requests += 1
            try:
                response = self._pool.request(
                    "GET", url, headers=self._headers | headers, redirect=False, preload_content=False
                )
                whole = False
                try:
                    if response.status in (301, 302, 303, 307, 308):
                        url = self._redirect(url, response)
                        continue
                    self._check(url, response, "If-None-Match" in headers)
                    data = self._body(url, response, limit)
                    whole = len(data) < limit
                    return response.status, data, response.headers.get("ETag")
                finally:
                    if not whole:
                        response.close()
                    response.release_conn()
            except self._errors.LocationParseError as error:
                raise UsageError(f"{url} is not a proper address: {error}") from error
            except ValueError as error:
                raise Unavailable(f"{shown(url)}: the host's answer makes no sense ({error})") from error
            except (self._errors.HTTPError, OSError) as error:
                raise Unavailable(f"{url}: {_reason(error)}") from error
        raise FetchError(f"{url}: too many redirects")

    def _redirect(self, url: str, response: urllib3.BaseHTTPResponse) -> str:
        to = urljoin(url, response.headers.get("Location", ""))
        if urlsplit(to)[:2] != urlsplit(url)[:2]:
            raise FetchError(f"{url} redirects to another origin, {to}; use that address if you trust it")
        return to

    def _check(self, url: str, response: urllib3.BaseHTTPResponse, conditional: bool) -> None:
        status = response.status
        if status == 200 or (status == 304 and conditional):
            return
        if status in (404, 410):
            raise NotFound(f"{url}: the host answers {status}, not found")
        if status in (401, 403):
            raise FetchError(f"{url}: the host answers {status}: reading is denied, or the file is missing")
        if status in (408, 425, 429) or status >= 500:
            raise Unavailable(f"{url}: the host answers {status}", _retry_after(response.headers.get("Retry-After")))
        raise FetchError(f"{url}: the host answers {status}")

    def _body(self, url: str, response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
        deadline = time.monotonic() + max(TIMEOUT, limit / 10_000)
        parts = []
        left = limit
        while left and (part := response.read1(min(left, 1 << 20), decode_content=False)):
            parts.append(part)
            left -= len(part)
            if time.monotonic() > deadline:
                raise Unavailable(f"{url}: the body came too slowly")
        self.received += limit - left
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        reason = getattr(cause, "reason", None)
        cause = reason if isinstance(reason, BaseException) else cause.__cause__ or cause.__context__
    names = {type(e).__name__ for e in seen}
    for name, words in _WORDS.items():
        if name in names:
            return words
    texts = [e.strerror for e in seen if isinstance(e, OSError) and e.strerror]
    return texts[-1] if texts else str(error)


_WORDS = {
    "ConnectionRefusedError": "the connection was refused",
    "NameResolutionError": "the host's name is unknown",
    "gaierror": "the host's name is unknown",
    "ConnectTimeoutError": "the host did not answer in time",
    "ReadTimeoutError": "the host went silent",
    "IncompleteRead": "the connection broke off in the middle of a file",
    "ProtocolError": "the connection broke off",
    "ProxyError": "the proxy does not let it through",
    "SSLCertVerificationError": "the host's certificate cannot be verified",
    "SSLError": "no secure connection could be made",
}


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), as curl has it."""
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies_environment()
    if proxy_bypass(parts.netloc):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def _retry_after(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() else None


class Retrying:
    """Wraps a fetcher: what is Unavailable is asked for again, after growing, jittered pauses."""

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

    def fetch(self, path: str, size: int) -> bytes:
        return self._again(lambda: self._inner.fetch(path, size))  # type: ignore[no-any-return]

    def fetch_head(self, etag: str | None) -> Answer:
        return self._again(lambda: self._inner.fetch_head(etag))  # type: ignore[no-any-return]

    def close(self) -> None:
        self._inner.close()

    def _again(self, ask: Callable[[], Any]) -> Any:
        return again(ask, self._attempts, self._sleep, self._jitter)


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


def shown(address: str) -> str:
    """An address without the user and the password in it."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def where(address: str) -> str:
    """An address that means the same from every folder, without a password."""
    return shown(address) if "://" in address else os.path.abspath(address)


def open_fetcher(address: str) -> Fetcher:
    """The fetcher for an address: http(s)://, s3://, file://, or a path. Raises UsageError for another scheme."""
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        if not parts.netloc or parts.query or parts.fragment:
            raise UsageError(f"{address} is not the address of a dataset: give it without query and fragment")
        return Retrying(HttpFetcher(address))
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

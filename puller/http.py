"""Files of an HTTP host: what hosts and the caches before them get wrong is told apart here."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from puller.errors import Corrupt, FetchError, NotFound, Unavailable, UsageError, Withheld
from puller.fetch import CONNECTIONS, TIMEOUT, Answer, Check, shown
from puller.wire.head import HEAD, MAX_HEAD

LONGEST_REST = 86_400
"""Seconds of a Retry-After that are honoured; more counts as this."""
REDIRECTS = (301, 302, 303, 307, 308)
_GZIP = b"\x1f\x8b"
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|script|meta|title|\?xml|!--)", re.I)


class _Time(threading.local):
    """When the request that a thread is making must be over, by the monotonic clock."""

    end = float("inf")


_time = _Time()


class _Bounded:
    """A socket whose reads end when the whole request must: a host that sends a byte now and then is given up on."""

    def recv_into(self, *arguments: Any) -> int:
        left = _time.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the host was too slow")
        timeout = self.gettimeout()  # type: ignore[attr-defined]
        if timeout is None or timeout > left:
            self.settimeout(left)  # type: ignore[attr-defined]
        return super().recv_into(*arguments)  # type: ignore[misc, no-any-return]


class _Socket(_Bounded, socket.socket):
    pass


class _TlsSocket(_Bounded, ssl.SSLSocket):
    pass


class _Bounding:
    def _new_conn(self) -> socket.socket:
        plain: socket.socket = super()._new_conn()  # type: ignore[misc]
        timeout = plain.gettimeout()
        bounded = _Socket(plain.family, plain.type, plain.proto, plain.detach())
        bounded.settimeout(timeout)
        return bounded


class _Connection(_Bounding, HTTPConnection):
    pass


class _TlsConnection(_Bounding, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class HttpFetcher:
    """Files of an HTTP host, over pooled connections, without redirects to another origin.

    An answer must be complete within `timeout` seconds for its headers and as much again for its body, more for large
    ones. What was missing or damaged is asked for past the caches the next time.
    """

    is_local = False

    def __init__(self, base: str, timeout: float = TIMEOUT) -> None:
        self.base = base.rstrip("/") + "/"
        self.requests = 0
        self.received = 0
        self._timeout = timeout
        self._doubted: set[str] = set()
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "headwater"}
        user = urlsplit(base).netloc.rpartition("@")[0]
        if user:
            self._headers |= urllib3.make_headers(basic_auth=unquote(user))
            self.base = shown(self.base)
        self._pool = _manager(base, timeout)
        self._direct: urllib3.HTTPConnectionPool | None = None

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        doubted = path in self._doubted
        try:
            data = self._checked(path, size, check, {"Cache-Control": "no-cache"} if doubted else {})
        except (NotFound, Withheld, Corrupt):
            self._doubted.add(path)
            raise
        if doubted:
            self._doubted.discard(path)
        return data

    def _checked(self, path: str, size: int, check: Check | None, headers: dict[str, str]) -> bytes:
        got = self._get(path, size + 1, headers)
        if check is None:
            if _PAGE.match(got.data):
                raise _withheld(got)
            return got.data
        try:
            check(got.data)
        except Corrupt as error:
            if _PAGE.match(got.data):
                raise _withheld(got) from error
            if got.encoding:
                raise Corrupt(f"{error}: {_compressed(got)}") from error
            raise
        return got.data

    def fetch_head(self, etag: str | None) -> Answer:
        known = etag is not None and etag.startswith(f"{self.base} ")
        headers = {"If-None-Match": etag[len(self.base) + 1 :]} if etag and known else {"Cache-Control": "no-cache"}
        got = self._get(HEAD, MAX_HEAD + 1, headers)
        if got.status == 304:
            return Answer(None, etag)
        if _PAGE.match(got.data):
            raise _withheld(got)
        if got.encoding and not got.data.startswith(b"headwater/"):
            raise FetchError(f"{got.url}: {_compressed(got)}")
        return Answer(got.data, None if got.etag is None else f"{self.base} {got.etag}")

    def close(self) -> None:
        self._pool.clear()

    def look(self, path: str, headers: dict[str, str], limit: int) -> Look:
        """What the host answers, not judged: redirects are not followed and the body is as it came, up to `limit` bytes."""
        url = urljoin(self.base, path)
        with self._asking(url, headers) as response:
            return Look(response.status, response.headers, response.read(limit, decode_content=False))

    def _get(self, path: str, limit: int, headers: dict[str, str]) -> _Got:
        url = urljoin(self.base, path)
        for _ in range(4):
            with self._asking(url, headers) as response:
                if response.status in REDIRECTS:
                    url = _redirect(url, response)
                    continue
                _check(url, response, "If-None-Match" in headers)
                got = _Got(url, response)
                self._read(response, limit, got)
                return got
        raise FetchError(f"{url}: too many redirects")

    @contextmanager
    def _asking(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer, whose connection can be used again if its body was read to the end."""
        self.requests += 1
        _time.end = time.monotonic() + self._timeout
        try:
            response = self._ask(url, self._headers | headers)
            try:
                yield response
            finally:
                if not response.closed:
                    response.close()
                response.release_conn()
        except urllib3.exceptions.LocationParseError as error:
            raise UsageError(f"{url} is not a proper address: {error}") from error
        except ValueError as error:
            raise Unavailable(f"{shown(url)}: the host's answer makes no sense ({error})") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"{url}: {_reason(error)}") from error
        finally:
            _time.end = float("inf")

    def _ask(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Straight from the pool of the one origin that is asked; finding it anew costs as much as the rest of a poll."""
        if self._pool.proxy is not None:
            return self._pool.request("GET", url, headers=headers, redirect=False, preload_content=False)
        pool = self._pool.connection_from_url(self.base) if self._direct is None else self._direct
        self._direct = pool
        target = url.partition("://")[2]
        return pool.urlopen(
            "GET", f"/{target.partition('/')[2]}", headers=headers, redirect=False, preload_content=False
        )

    def _read(self, response: urllib3.BaseHTTPResponse, limit: int, got: _Got) -> None:
        """Read a body of at most `limit` bytes; one that was compressed on the way, though nobody asked, is undone."""
        _time.end = time.monotonic() + max(self._timeout, limit / 10_000)
        parts: list[bytes] = []
        left = limit
        while left > 0 and (part := response.read1(min(left, 1 << 20), decode_content=False)):
            if not parts and part.startswith(_GZIP):
                left += limit // 512 + 128
            parts.append(part)
            left -= len(part)
            if time.monotonic() > _time.end:
                raise Unavailable(f"{got.url}: the body came too slowly")
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.received += len(data)
        plain = _gunzip(data, limit) if data.startswith(_GZIP) else None
        got.data = data[:limit] if plain is None else plain


class Look(NamedTuple):
    """An answer that is not judged."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Got:
    """An answer: its body, and what its headers say of it."""

    def __init__(self, url: str, response: urllib3.BaseHTTPResponse) -> None:
        self.url = url
        self.status = response.status
        self.etag = response.headers.get("ETag")
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        self.encoding = "" if encoding == "identity" else encoding
        self.data = b""


def _manager(base: str, timeout: float) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "maxsize": CONNECTIONS,
        "block": True,
        "retries": False,
        "timeout": urllib3.Timeout(connect=min(10.0, timeout), read=timeout),
    }
    proxy = _proxy(base)
    if urlsplit(base).scheme == "https":
        context = create_urllib3_context()
        context.load_default_certs()
        context.sslsocket_class = _TlsSocket
        options["ssl_context"] = context
    manager = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return manager


def _gunzip(data: bytes, limit: int) -> bytes | None:
    """At most `limit` bytes of what a gzip stream holds; None if it is none, or cut off: no stored file is one."""
    stream = zlib.decompressobj(31)
    try:
        plain = stream.decompress(data, limit)
    except zlib.error:
        return None
    return plain if stream.eof or len(plain) == limit else None


def _redirect(url: str, response: urllib3.BaseHTTPResponse) -> str:
    to = urljoin(url, response.headers.get("Location", ""))
    if urlsplit(to)[:2] != urlsplit(url)[:2]:
        raise FetchError(f"{url} redirects to another origin, {shown(to)}; use that address if you trust it")
    return to


def _check(url: str, response: urllib3.BaseHTTPResponse, conditional: bool) -> None:
    status = response.status
    if status == 200 or (status == 304 and conditional):
        return
    if status == 206:
        if _is_whole(response.headers.get("Content-Range", "")):
            return
        raise Unavailable(
            f"{url}: the host gives a part of the file, though all was asked for; a cache there is broken"
        )
    if status in (404, 410):
        raise NotFound(f"{url}: the host answers {status}, not found")
    if status == 403:
        raise Withheld(f"{url}: the host answers 403: reading is denied, or the file is missing")
    if status == 401:
        raise FetchError(f"{url}: the host answers 401: it wants a user and a password (https://user:password@…)")
    if status in (408, 425, 429) or status >= 500:
        raise Unavailable(f"{url}: the host answers {status}", retry_after(response.headers))
    raise FetchError(f"{url}: the host answers {status}")


def _is_whole(content_range: str) -> bool:
    match = re.fullmatch(r"bytes 0-(\d{1,12})/(\d{1,12})", content_range)
    return match is not None and int(match[1]) + 1 == int(match[2])


def _withheld(got: _Got) -> Withheld:
    return Withheld(
        f"{got.url}: the host answers with a web page in place of the file: the file is missing and a page for visitors "
        "stands in for it, or a login or a captive portal is in the way"
    )


def _compressed(got: _Got) -> str:
    return (
        f"the host sends it with Content-Encoding {got.encoding!r:.40}, which was not asked for; turn compression off there "
        "for datasets (Cache-Control: no-transform says so to caches)"
    )


def retry_after(headers: Any) -> float | None:
    """The seconds that Retry-After asks for, given as a number or as a date; None without one that makes sense."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), LONGEST_REST))
    until, now = date_of(value), date_of(headers.get("Date", ""))
    if until is None:
        return None
    return min(max(0.0, until - (time.time() if now is None else now)), LONGEST_REST)


def date_of(value: str) -> float | None:
    """An HTTP date in Unix seconds."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


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
    "ReadTimeoutError": "the host was silent or too slow",
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

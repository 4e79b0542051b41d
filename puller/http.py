"""Files of an HTTP host: what hosts and the caches before them get wrong is told apart here."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from puller.connections import Pool, authorization, reason
from puller.errors import Corrupt, FetchError, NotFound, Unavailable, Withheld
from puller.fetch import CONNECTIONS, TIMEOUT, Answer, Check, shown
from puller.wire.head import HEAD, MAX_HEAD

LONGEST_REST = 86_400
"""Seconds of a Retry-After that are honoured; more counts as this."""
REDIRECTS = (301, 302, 303, 307, 308)
_GZIP = b"\x1f\x8b"
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|script|meta|title|\?xml|!--)", re.I)


class HttpFetcher:
    """Files of an HTTP host, over pooled connections, without redirects to another origin.

    An answer must be complete within `timeout` seconds for its headers and as much again for its body, more for large
    ones. What was missing or damaged is asked for past the caches the next time.
    """

    is_local = False

    def __init__(self, base: str, timeout: float = TIMEOUT) -> None:
        self.base = shown(base.rstrip("/") + "/")
        self.requests = 0
        self.received = 0
        self._timeout = timeout
        self._doubted: set[str] = set()
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "headwater"} | authorization(base)
        self._pool = Pool(base, CONNECTIONS, timeout)

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
        self._pool.close()

    def look(self, path: str, headers: dict[str, str], limit: int) -> Look:
        """What the host answers, not judged: redirects are not followed and the body is as it came, up to `limit` bytes."""
        url = urljoin(self.base, path)
        with self._asking(url, headers) as response:
            return Look(response.status, Fields.of(response), self._pool.read(response, limit, self._timeout))

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
    def _asking(self, url: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """An answer, whose connection can be used again if its body was read to the end."""
        self.requests += 1
        try:
            with self._pool.get(url, self._headers | headers) as response:
                yield response
        except ValueError as error:
            raise Unavailable(f"{url}: the host's answer makes no sense ({error})") from error
        except (HTTPException, OSError) as error:
            raise Unavailable(f"{url}: {reason(error)}") from error

    def _read(self, response: HTTPResponse, limit: int, got: _Got) -> None:
        """Read a body of at most `limit` bytes; one that was compressed on the way, though nobody asked, is undone."""
        seconds = max(self._timeout, limit / 10_000)
        data = self._pool.read(response, limit, seconds)
        is_zipped = data.startswith(_GZIP)
        if is_zipped and len(data) == limit:
            data += self._pool.read(response, limit // 512 + 128, seconds)
        self.received += len(data)
        plain = _gunzip(data, limit) if is_zipped else None
        got.data = data[:limit] if plain is None else plain


class Fields(dict[str, str]):
    """Headers, whatever case their names are written in; what is given several times is joined by commas."""

    @classmethod
    def of(cls, response: HTTPResponse) -> Fields:
        """Those of an answer."""
        found = cls()
        for name, value in response.getheaders():
            before = found.get(name)
            found[name.lower()] = value if before is None else f"{before}, {value}"
        return found

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class Look(NamedTuple):
    """An answer that is not judged."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Got:
    """An answer: its body, and what its headers say of it."""

    def __init__(self, url: str, response: HTTPResponse) -> None:
        self.url = url
        self.status = response.status
        self.etag = response.headers.get("ETag")
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        self.encoding = "" if encoding == "identity" else encoding
        self.data = b""


def _gunzip(data: bytes, limit: int) -> bytes | None:
    """At most `limit` bytes of what a gzip stream holds; None if it is none, or cut off: no stored file is one."""
    stream = zlib.decompressobj(31)
    try:
        plain = stream.decompress(data, limit)
    except zlib.error:
        return None
    return plain if stream.eof or len(plain) == limit else None


def _redirect(url: str, response: HTTPResponse) -> str:
    to = urljoin(url, response.headers.get("Location", ""))
    if urlsplit(to)[:2] != urlsplit(url)[:2]:
        raise FetchError(f"{url} redirects to another origin, {shown(to)}; use that address if you trust it")
    return to


def _check(url: str, response: HTTPResponse, conditional: bool) -> None:
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

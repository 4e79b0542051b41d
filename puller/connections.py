"""Connections to one HTTP origin: kept open between requests, bounded in number and in time, through a proxy where one is set."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead, InvalidURL
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from puller.errors import UsageError
from puller.fetch import origin
from puller.passwords import masked

CONNECTING = 10.0
"""Seconds that a host has, at most, to take a connection."""


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


class _Unreached(TimeoutError):
    """A host, or the proxy before it, that did not take a connection in time."""


def _connect(address: tuple[str, int], timeout: float, _source: None) -> socket.socket:
    try:
        plain = socket.create_connection(address, timeout)
    except TimeoutError as error:
        raise _Unreached(str(error)) from error
    bounded = _Socket(plain.family, plain.type, plain.proto, plain.detach())
    bounded.settimeout(timeout)
    return bounded


class Pool:
    """Up to `most` connections to the origin of an address; who wants another one waits.

    `timeout` (seconds) is how long the host has for the headers of an answer, and may be silent.
    """

    def __init__(self, address: str, most: int, timeout: float) -> None:
        """Raises UsageError where the address, or that of the proxy, makes no sense. Nothing is sent yet."""
        self._timeout = timeout
        self._host, self._port, self._secure = origin(address)
        self._proxy = _proxy(address)
        self._through = None if self._proxy is None else _through(self._proxy, self._secure)
        self._to_proxy = {} if self._proxy is None else authorization(self._proxy, "Proxy-Authorization")
        self._context = _context() if self._secure or (self._through is not None and self._through[2]) else None
        self._idle: list[HTTPConnection] = []
        self._room = threading.BoundedSemaphore(most)

    @contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """The answer to GET, its body not read yet: it must have begun in time. Read with `read`; redirects are not followed.

        The connection is used again if the body was read to its end. Raises UsageError, HTTPException, ValueError, OSError:
        see `reason`.
        """
        with self._room:
            connection, response, over = self._connection(), None, False
            try:
                _time.end = time.monotonic() + self._timeout
                response = self._ask(connection, url, headers)
                yield response
                over = response.isclosed()
            finally:
                _time.end = float("inf")
                if response is not None:
                    response.close()
                if over and connection.sock is not None:
                    self._idle.append(connection)
                else:
                    connection.close()

    def read(self, response: HTTPResponse, limit: int, seconds: float) -> bytes:
        """Up to `limit` further bytes of a body, within so many seconds from now. Raises IncompleteRead if it was cut off."""
        _time.end = time.monotonic() + seconds
        data = response.read(limit)
        if response.length and len(data) < limit:
            raise IncompleteRead(data, response.length)
        return data

    def close(self) -> None:
        """Let go of the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    def _ask(self, connection: HTTPConnection, url: str, headers: dict[str, str]) -> HTTPResponse:
        parts = urlsplit(url)
        path = quote(f"{parts.path or '/'}{parts.query and '?'}{parts.query}", safe="/%:@!$&'()*+,;=~?")
        absolute = self._through is not None and not self._secure
        try:
            if connection.sock is None:
                connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(self._timeout)
            if absolute:
                path, headers = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}", headers | self._to_proxy
            connection.request("GET", path, headers=headers)
        except (UnicodeError, InvalidURL) as error:
            raise UsageError(f"{url} is not a proper address: {error}") from error
        response = connection.getresponse()
        lengths = {
            length.strip() for value in response.headers.get_all("Content-Length", ()) for length in value.split(",")
        }
        if len(lengths) > 1 or not all(length.isascii() and length.isdigit() for length in lengths):
            raise ValueError(f"its Content-Length is {', '.join(sorted(lengths))!r:.60}")
        return response

    def _connection(self) -> HTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            if not _is_dropped(connection):
                return connection
            connection.close()
        host, port, secure = self._through or (self._host, self._port, self._secure)
        timeout = min(CONNECTING, self._timeout)
        if secure or self._secure:
            made: HTTPConnection = HTTPSConnection(host, port, timeout=timeout, context=self._context)
        else:
            made = HTTPConnection(host, port, timeout=timeout)
        made._create_connection = _connect  # type: ignore[attr-defined]
        if self._secure and self._through is not None:
            made.set_tunnel(self._host, self._port, headers=self._to_proxy)
        return made


def _is_dropped(connection: HTTPConnection) -> bool:
    """Whether the host has closed a connection meanwhile, or sent what was not asked for."""
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _through(proxy: str, secure: bool) -> tuple[str, int, bool]:
    """Host, port and TLS of a proxy. Raises UsageError for one that an address, reached by TLS or not, cannot be reached by."""
    scheme = proxy.partition("://")[0].lower()
    if scheme == "http" or (scheme == "https" and not secure):
        return origin(proxy)
    what = (
        "https addresses are not reached through a proxy that is itself reached by https"
        if scheme == "https"
        else (f"proxies of the kind {scheme}:// are not supported")
    )
    raise UsageError(
        f"the proxy {masked(proxy)} cannot be used: {what}. Name one with http:// (HTTPS_PROXY, HTTP_PROXY), or the host "
        "in NO_PROXY"
    )


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.sslsocket_class = _TlsSocket
    context.set_alpn_protocols(["http/1.1"])
    return context


def authorization(url: str, header: str = "Authorization") -> dict[str, str]:
    """The header that a user and a password in a URL stand for."""
    user = urlsplit(url).netloc.rpartition("@")[0]
    return {header: f"Basic {b64encode(unquote(user).encode()).decode()}"} if user else {}


def reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    for kinds, words in _WORDS:
        if isinstance(error, kinds):
            return words
    if isinstance(error, OSError):
        if str(error).startswith("Tunnel connection failed"):
            return "the proxy does not let it through"
        return error.strerror or str(error)
    return str(error)


_WORDS: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
    (ssl.SSLCertVerificationError, "the host's certificate cannot be verified"),
    (ssl.SSLError, "no secure connection could be made"),
    (socket.gaierror, "the host's name is unknown"),
    (ConnectionRefusedError, "the connection was refused"),
    (_Unreached, "the host did not answer in time"),
    (TimeoutError, "the host was silent or too slow"),
    (IncompleteRead, "the connection broke off in the middle of a file"),
    ((ConnectionError, HTTPException), "the connection broke off"),
]


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), as curl has it."""
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies_environment()
    if proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    found = proxies.get(parts.scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"

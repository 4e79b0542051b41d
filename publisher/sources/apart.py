"""A large source is read by a process of its own: parsing and encoding hold the interpreter's lock, which hashing and
cutting need as well.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any, Protocol

import msgspec

from publisher.sources.base import Report, Source, Unsorted, lazily
from publisher.sources.sorting import Rows
from puller.errors import HeadwaterError, SourceError
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Run

LARGE = 32 << 20
"""Bytes of a source from which a process is worth its start."""
_PIPE = 1 << 20
_RUN, _END = b"r", b"e"
_SCRIPT = """
import pickle, sys
sys.path[:], source = pickle.load(sys.stdin.buffer)
from publisher.sources.apart import serve
serve(source)
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Rows).decode


class Table(Source, Protocol):
    """A source whose values are bytes or rows over 1 MiB, and that can be pickled."""

    where: str

    def size(self) -> int:
        """Bytes of all that is read. Raises OSError."""
        ...

    def recall(self, state: bytes) -> list[bytes] | None: ...

    def remember(self, state: bytes) -> None: ...


class Apart:
    """A source that reads in another process, and is in the state it came to there afterwards.

    The process ends with the iteration, however that ends; a process without a reader ends by itself.
    """

    kind = "table"

    def __init__(self, source: Table) -> None:
        self.where = source.where
        self._source = source
        self._is_read = False
        self.report: Report = source.report

    def recall(self, state: bytes) -> list[bytes] | None:
        touched = self._source.recall(state)
        self._is_read = touched is not None
        return touched

    @property
    def expected(self) -> set[bytes] | None:
        """As the source's own (publisher.sources.base.Tracked)."""
        return getattr(self._source, "expected", None)

    def remember(self, state: bytes) -> None:
        self._source.remember(state)

    def lead(self) -> Run:
        return self._source.lead()

    def runs(self) -> Iterator[Run]:
        """As the source's own; raises its errors."""
        if self._is_read:
            yield from self._source.runs()
            self.report = self._source.report
            return
        self.report = Report()
        with self._process() as pipe:
            while head := pipe.read(9):
                data = pipe.read(int.from_bytes(head[1:], "little"))
                if head[:1] == _END:
                    self._source, error = pickle.loads(data)  # noqa: S301 - from our own process
                    self.report = self._source.report
                    if error is not None:
                        raise error
                    return
                self.report.bytes_read += len(data)
                keys, values = _decode(data)
                yield keys, values if len(data) <= MAX_INLINE else lazily(values)
        raise SourceError(f"the process that read {self.where} ended early; nothing was published. Try again")

    @contextlib.contextmanager
    def _process(self) -> Iterator[IO[bytes]]:
        command = [sys.executable, "-c", _SCRIPT]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # noqa: S603
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                _widen(child.stdout)
                with contextlib.suppress(BrokenPipeError), child.stdin:
                    pickle.dump((sys.path, self._source), child.stdin)
                yield child.stdout
            finally:
                child.kill()


def apart(source: Table) -> Source:
    """The source, in a process of its own where it is large and there are cores for two."""
    with contextlib.suppress(OSError):
        if sys.executable and (os.cpu_count() or 1) > 1 and source.size() >= LARGE:
            return Apart(source)
    return source


def serve(source: Table) -> None:
    """Read a source for the process that waits at standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    gc.disable()  # rows are no cycles, and looking for some among them takes a twentieth of the time
    out = os.fdopen(os.dup(1), "wb", buffering=_PIPE)
    error: Exception | None = None
    try:
        for keys, values in source.runs():
            _send(out, _RUN, _encode((keys, _whole(values))))
    except (HeadwaterError, Unsorted) as caught:
        error = caught
    except BrokenPipeError:
        os._exit(1)
    _send(out, _END, pickle.dumps((source, error)))
    out.flush()


def _send(out: IO[bytes], kind: bytes, data: bytes) -> None:
    out.write(kind + len(data).to_bytes(8, "little"))
    out.write(data)


def _whole(values: list[Any]) -> list[bytes]:
    if set(map(type, values)) == {bytes}:
        return values
    return [value if isinstance(value, bytes) else value.open().read() for value in values]


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold a few runs, where the system can."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)

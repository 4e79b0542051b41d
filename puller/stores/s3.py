"""A place in an S3 bucket as store: HEAD is swapped by conditional writes, every request is safe to repeat or told as unclear."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from puller.clock import uptime
from puller.errors import Conflict, FetchError, NotFound, Refused, Unavailable
from puller.fetch import again
from puller.s3 import Place, Refusal, date_of
from puller.stores.base import ABSENT, OURS, TEMPORARY, Listed, StoreError, Token, Unclear
from puller.stores.headers import MAX_AGE, cache_control, content_type, max_age_of
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import HEAD

ATTEMPTS = 6
"""How often what may be repeated is sent; the pauses between come to some six seconds."""
PROBE = ".probe-"
COLLECTING = ".collecting"
"""Says whether files are being removed, and by its own time when that ended: what publishers look at before they swap."""
LEFT = (PROBE, COLLECTING, TEMPORARY)
HOLD = 120
"""Seconds after which a collection that did not end counts as ended; it sends nothing more after half of them."""
SKEW = 10
"""Seconds by which the clocks of a service's machines may differ."""
MOST_REMOVED = 1000
"""Files that one request deletes."""
_MARK = "headwater-writers"
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})

T = TypeVar("T")


class S3Store:
    """Keeps a dataset in a bucket of S3, or of a service like it.

    With `single_writer`, the service need not know conditional writes: HEAD is compared, then written, and nobody else
    may publish meanwhile. This is noted with HEAD, so that a publisher without it probes the service first. `max_age`
    (seconds) is what HEAD's Cache-Control says; without it, what it said before.
    """

    threads = 16

    def __init__(
        self, address: str, *, connections: int, single_writer: bool = False, max_age: int | None = None
    ) -> None:
        self._place = Place(address, connections)
        self.where = self._place.where
        self.written = 0
        self._single = single_writer
        self._max_age = max_age
        self._noted_age = MAX_AGE
        self._noted_single = False
        self._takes_checksums = True
        self._lock = threading.Lock()
        self._began: float | None = None
        self._old: set[str] = set()
        """What was put since HEAD was read though it was there, or may have been, and could be collected as an old file."""

    def get(self, path: str) -> bytes:
        data = self._read(path)
        name = path.rpartition("/")[2].removesuffix(".zst")
        if len(name) == 64 and hashlib.sha256(data).hexdigest() != name:
            return self._read(path)  # damaged on the way, or where it lies: the reader will see
        return data

    def _read(self, path: str) -> bytes:
        return again(lambda: self._place.read(path)[0], ATTEMPTS)

    def size_of(self, path: str) -> int | None:
        try:
            return int(again(lambda: self._place.send("head_object", path)["ContentLength"], ATTEMPTS))
        except NotFound:
            return None

    def put(self, path: str, data: bytes) -> None:
        lasting = path.startswith((f"{CHUNKS}/", f"{DIFFS}/"))
        if self._single or not lasting or not self._kept(lambda: self._created(path, data)):
            if lasting:
                with self._lock:
                    self._old.add(path)
            self._kept(lambda: self._send(path, data))
        with self._lock:
            self.written += len(data)

    def create(self, path: str, data: bytes) -> bool:
        if self._single:
            try:
                self.get(path)
            except NotFound:
                self.put(path, data)
                return True
            return False
        return self._kept(lambda: self._created(path, data))

    def flush(self) -> None:
        """See that nothing of what was put over an old file was collected since.

        That is too young for a collection that begins later. What was not there before is safe from all: no collection
        sends the deletion of a file twice. Raises Conflict: all is to be put again.
        """
        if self._began is None or not self._old:
            return
        if self._last_collected() < self._began - SKEW:
            return
        with ThreadPoolExecutor(self.threads) as pool:
            if None in pool.map(self.size_of, self._old):
                raise Conflict(f"files were collected in {self.where} that are needed again")

    def read_head(self) -> tuple[bytes, Token]:
        with self._lock:
            self._old = set()
        data, answer = again(lambda: self._place.read(HEAD), ATTEMPTS)
        self._began = date_of(answer)
        noted = max_age_of(answer.get("CacheControl") or "")
        self._noted_age = MAX_AGE if noted is None else noted
        self._noted_single = _MARK in {name.lower() for name in answer.get("Metadata") or ()}
        return data, self._tag(answer)

    def swap_head(self, expected: Token, data: bytes, time: int) -> Token:
        condition = {"IfNoneMatch": "*"} if expected == ABSENT else {"IfMatch": expected}
        if self._single:
            self._compare(expected)
            condition = {}
        elif self._noted_single:
            self.probe()
        try:
            return self._send(HEAD, data, **condition)
        except (NotFound, Unavailable) as error:
            raise Unclear(str(error)) from error
        except Refusal as error:
            if error.status in (409, 412):
                raise Unclear(str(error)) from error
            raise self._unwritten(error) from error
        except FetchError as error:
            raise self._unwritten(error) from error

    def list(self, prefix: str) -> Iterator[str]:
        return self._place.list(prefix)

    def files(self, prefix: str) -> Iterator[Listed]:
        return (Listed(*found) for found in self._place.objects(prefix))

    def clock(self) -> float:
        return again(self._place.date, ATTEMPTS)

    def delete(self, path: str) -> None:
        self._kept(lambda: self._remove_one(path))

    def collect(self, paths: Sequence[str], before: float, unless: Callable[[], bool] | None = None) -> set[str]:
        gone: set[str] = set()
        if not paths:
            return gone
        with self._collecting() as check_in_time:
            if unless is not None and unless():
                return gone
            old = self._written_before(set(paths), before)
            for start in range(0, len(old), MOST_REMOVED):
                part = old[start : start + MOST_REMOVED]
                gone.update(set(part).difference(self._remove(part, check_in_time)))
        return gone

    def _written_before(self, wanted: set[str], before: float) -> Sequence[str]:
        """Those of some files that were last written before a time, as a listing of what lies between them has it now."""
        least, most = min(wanted), max(wanted)
        area = least.partition("/")[0]
        old = []
        for path, _, written in self._place.objects(area if most.startswith(area) else "", least[:-1]):
            if path > most:
                break
            if path in wanted and written < before:
                old.append(path)
        return old

    def _remove(self, paths: Sequence[str], check_in_time: Callable[[], None]) -> set[str]:
        """Delete files; return those that could not be. `check_in_time` raises where nothing may be sent any more.

        It is sent once: what is sent again may meet a file that was put in between, and that `flush` does not look for.
        """
        check_in_time()
        try:
            return self._place.remove(paths)
        except Refusal as error:
            if error.status not in (400, 405, 501):
                raise self._unwritten(error) from error

        def remove_in_time(path: str) -> None:
            check_in_time()
            self._remove_one(path)

        with ThreadPoolExecutor(self.threads) as pool:  # the service deletes one at a time only
            list(pool.map(remove_in_time, paths))
        return set()

    def _remove_one(self, path: str) -> None:
        with contextlib.suppress(NotFound):
            self._place.send("delete_object", path)

    @contextmanager
    def _collecting(self) -> Iterator[Callable[[], None]]:
        """Tell publishers meanwhile that files are being removed. Raises StoreError if somebody else does that."""
        state, _, token = self._collection()
        if state == b"running":
            raise StoreError(f"somebody else removes files in {self.where} at this time; run this again later")
        began = uptime()

        def check_in_time() -> None:
            if uptime() - began > HOLD / 2:
                raise StoreError(f"removing files in {self.where} took too long; what is left is for the next run")

        token = self._note(b"running", token)
        yield check_in_time
        self._note(b"ended", token)  # not after an error: what was sent may still arrive

    def _note(self, state: bytes, token: Token) -> Token:
        condition = {"IfNoneMatch": "*"} if token == ABSENT else {"IfMatch": token}
        data = state + b" " + os.urandom(8).hex().encode() + b"\n"
        more = {} if self._single else condition
        return self._kept(lambda: self._say(data, more))

    def _say(self, data: bytes, condition: dict[str, str]) -> Token:
        """Write `.collecting`. A refusal may be due to an earlier attempt whose answer got lost: `data` is like no other."""
        try:
            return self._send(COLLECTING, data, CacheControl="no-store", **condition)
        except Refusal as error:
            if error.status not in (409, 412):
                raise
            found, answer = self._place.read(COLLECTING)
            if found == data:
                return self._tag(answer)
            if error.status == 409:
                raise Unavailable(str(error)) from error
            raise

    def _collection(self) -> tuple[bytes, float, Token]:
        """Whether files are being removed (`running`), until when they may have been, or since when they are, and the token.

        What a collector that was killed had sent may arrive for as long as it is waited for.
        """
        try:
            data, answer = again(lambda: self._place.read(COLLECTING), ATTEMPTS)
        except NotFound:
            return b"", 0.0, ABSENT
        said = answer["LastModified"].timestamp()
        state = data.partition(b" ")[0]
        if state == b"running" and date_of(answer) - said > HOLD:
            return b"ended", said + HOLD, self._tag(answer)
        return state, said, self._tag(answer)

    def _last_collected(self) -> float:
        """When files were removed last; waits while they are."""
        while True:
            state, said, _ = self._collection()
            if state != b"running":
                return said
            time.sleep(0.2)

    def foreign(self) -> str | None:
        names = (path.rstrip("/") for path in self._place.list("", "/"))
        return next((name for name in names if name not in OURS and not name.startswith(LEFT)), None)

    def probe(self) -> None:
        if self._single:
            return
        from puller.stores.probe import find_fault

        fault = self._kept(lambda: find_fault(self._place, PROBE))
        if fault is not None:
            raise Refused(
                f"the service behind {self.where} does not keep to conditional writes ({fault}), so that publishers could "
                "overwrite each other's versions; nothing was written. If only one ever publishes there at a time: "
                "--single-writer"
            )

    def _send(self, path: str, data: bytes, **condition: str) -> str:
        """Put a file once; return its ETag."""
        parameters: dict[str, Any] = {
            "Body": data,
            "CacheControl": cache_control(path, self._noted_age if self._max_age is None else self._max_age),
            "ContentType": content_type(path),
            **condition,
        }
        if path == HEAD and self._single:
            parameters["Metadata"] = {_MARK: "single"}
        if not self._takes_checksums:
            return self._tag(self._place.send("put_object", path, **parameters))
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        try:
            return self._tag(self._place.send("put_object", path, ChecksumSHA256=digest, **parameters))
        except Refusal as error:
            if error.code in _DAMAGED:
                raise Unavailable(f"{error}: it was damaged on the way") from error
            if error.status not in (400, 501):
                raise
            tag = self._tag(self._place.send("put_object", path, **parameters))  # refused, so nothing was written
            self._takes_checksums = False
            return tag

    def _tag(self, answer: dict[str, Any]) -> Token:
        tag = answer.get("ETag")
        if not tag:
            raise FetchError(f"the service behind {self.where} gives files no ETag, so HEAD cannot be swapped there")
        return str(tag)

    def _created(self, path: str, data: bytes) -> bool:
        try:
            self._send(path, data, IfNoneMatch="*")
        except Refusal as error:
            if error.status == 412:
                return False
            if error.status == 409:
                raise Unavailable(str(error)) from error
            raise
        return True

    def _compare(self, expected: Token) -> None:
        """Raise Conflict if `expected` does not stand for HEAD."""
        try:
            current = self.read_head()[1]
        except NotFound:
            current = ABSENT
        if current != expected:
            raise Conflict(f"another publisher wrote to {self.where} in the meantime")

    def _kept(self, write: Callable[[], T]) -> T:
        """Do what may be repeated, until it is done."""
        try:
            return again(write, ATTEMPTS)
        except Unavailable:
            raise
        except FetchError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: FetchError) -> StoreError:
        hint = ""
        if isinstance(error, Refusal) and error.status == 501:
            hint = ". If the service has no conditional writes and only one ever publishes there at a time: --single-writer"
        return StoreError(f"{error}; what is published there stays as it was{hint}")

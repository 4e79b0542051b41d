"""The change feed: what changes in a dataset, transition by transition, for programs that keep something up to date by it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from random import random
from typing import NamedTuple, Self

import msgspec

from puller.durable import sync_folder
from puller.errors import FetchError, NotFound, NotOurs, TargetError, Unavailable, UsageError
from puller.fetch import open_fetcher
from puller.mirrors import Health
from puller.parts import WHOLE, Parts
from puller.transitions import Again, Event, Host, Memory, Position, Transition, Trusting, Values
from puller.trust import parse_given

LONGEST = 600.0
"""Seconds between two tries, at most, while the host cannot be reached."""
JITTER = 0.1
"""Polls come earlier or later by up to this part of the interval."""

_OURS = re.compile(rb'\{\s*"format":\s*([0-9]{1,9}),\s*"dataset":')
"""How a state file begins, also one that was cut off or damaged further on."""


def _silent(_text: str) -> None:
    pass


class StateFile:
    """Keeps what a consumer is remembered by in a file, replaced at once and durably. One process has it at a time."""

    def __init__(self, path: str) -> None:
        """Raises NotOurs for what we did not write, TargetError where it is in use, or cannot be read."""
        self._path = os.path.abspath(path)
        self._lock = -1
        self.load()  # what is not ours gets no lock beside it
        try:
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise TargetError(f"another process tells changes from {path} on; nothing was told") from error
        except OSError as error:
            raise TargetError(f"{path} cannot be used: {error.strerror}; nothing was told") from error

    def load(self) -> Memory:
        """What was stored last. Raises NotOurs for what we did not write, TargetError where it is damaged."""
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return Memory()
        except IsADirectoryError as error:
            raise self._not_ours() from error
        except OSError as error:
            raise TargetError(f"{self._path} cannot be read: {error.strerror}; nothing was told") from error
        found = _OURS.match(data)
        if found is None:
            raise self._not_ours()
        if int(found[1]) != Memory().format:
            raise TargetError(
                f"{self._path} was written by a newer release of headwater; nothing was told. Upgrade, or name another file"
            )
        try:
            return msgspec.json.decode(data, type=Memory)
        except msgspec.MsgspecError as error:
            raise TargetError(
                f"{self._path} is damaged ({error}); nothing was told. Delete it, and all records are told anew"
            ) from error

    def _not_ours(self) -> NotOurs:
        return NotOurs(f"{self._path} is no state file of `puller changes`; nothing was told. Name another file")

    def store(self, memory: Memory) -> None:
        """Store it. Raises TargetError, and what was stored stays."""
        temporary = f"{self._path}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(memory), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            sync_folder(os.path.dirname(self._path))
        except OSError as error:
            raise TargetError(
                f"{self._path} cannot be written: {error.strerror}; what was told last will be told again"
            ) from error

    def close(self) -> None:
        """Let another process have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _Commits(NamedTuple):
    """Commits that were told one after the other, at which schema and parts were the same."""

    first: Position
    last: Position
    schema: bytes
    parts: Parts


class Feed:
    """The changes of a published dataset, in order: an iterator, and an asynchronous iterator, over `Event`.

    >>> import puller
    >>> with puller.Feed("https://data.example.org/prices", state="feed.json") as feed:  # doctest: +SKIP
    ...     for event in feed:
    ...         if event.type == "reset":
    ...             cache.clear()
    ...         elif event.type == "change":
    ...             cache.update({event.key: event.new}) if event.new is not None else cache.pop(event.key, None)
    ...         else:
    ...             feed.ack()

    Events come in transitions, each from the position `event.since` to `event.position`, as (epoch, version): changes in
    key order, then "commit". Versions ascend. What a dict holds that a program applies all changes to is, at each
    commit, exactly the dataset at that version. A key may be told though its value is what it was.

    A transition begins with "reset", and tells all records, where no changes lead on: at first, in another epoch, where
    the host no longer has the diffs, and where the columns of a table changed other than by new ones at the end. (Such
    new columns change no row: absent and None are the same.) Later transitions tell what changed. Versions that were
    published between two polls come as one transition with their net changes, so a program that is slow is told
    less, and nothing piles up: the next poll is made once the transition before it was consumed.

    `ack` remembers how far a program got. `state` names a file to keep that in, with whom to trust: the next process goes
    on from there. A transition that was told and not acknowledged is told again, perhaps as part of a longer one;
    applying it again does no harm. In one process each transition is told once, unless the host fails in the middle: then
    it begins again. Without `state`, or with a new one, it begins after version `since` of the dataset's epoch, or with
    "reset".

    `old` is `UNKNOWN`, except after a reset (None): nobody here holds the old state. `Replica.feed` tells it.
    `values`: "all"; "small", where those over 1 MiB come as `Omitted` and are not fetched; "none", where all do.
    At most some 64 MiB of values, or one that is larger, are in memory at a time.

    Iteration goes on for ever and waits for news between polls: `interval` seconds, or those that the publisher suggests.
    While the host cannot be reached it waits longer each time, up to ten minutes, and `warn` is told. `follow=False` ends it
    where all was told. Any other error is raised; iterating on then begins the transition anew. `stop`, from any thread, ends
    a wait. Threads may share a feed; each event goes to one of them. Every file is verified, and after a reset the
    checksum of all records is; changes alone cannot be checked against it.
    """

    def __init__(
        self,
        url: str,
        *,
        since: int | None = None,
        state: str | None = None,
        follow: bool = True,
        interval: float | None = None,
        values: Values = "all",
        trust: str | Iterable[str] = (),
        secret: str | None = None,
        mirrors: Sequence[str] = (),
        allow_expired: bool = False,
        warn: Callable[[str], object] = _silent,
        jitter: Callable[[], float] = random,
    ) -> None:
        """`trust`, `secret`, `mirrors` and `allow_expired` are as for `Replica`. Raises UsageError, NotOurs, TargetError."""
        given = parse_given([trust] if isinstance(trust, str) else trust)
        self._since = since
        self._follow = follow
        self._interval = interval
        self._warn = warn
        self._jitter = jitter
        self._file = None if state is None else StateFile(state)
        self._health = Health()
        self._fetcher = open_fetcher(url, mirrors, self._health)
        self._host = Host(url, self._fetcher, Trusting(given, secret, allow_expired), values, time.time, warn)
        self._memory = Memory() if self._file is None else self._file.load()
        self._health.load(self._memory.rests)
        self._told: Position | None = None
        """The position up to which all was told."""
        self._schema = b""
        """The schema of a table at that position, where it is known."""
        self._next_schema = b""
        self._parts = WHOLE
        """The parts that were told of up to that position."""
        self._next_parts = WHOLE
        self._unacknowledged: list[_Commits] = []
        """What was told since the position that was acknowledged last, and that; as many as schema and parts changed."""
        if self._memory.position is not None:
            self._note_told(self._memory.position, self._memory.schema, self._memory.parts)
        self._over = False
        """All was told that HEAD led to, and nothing is to be waited for."""
        self._pace = 30.0
        self._failures = 0
        self._transition: Transition | None = None
        self._batches: Iterator[list[Event]] | None = None
        self._events: deque[Event] = deque()
        self._stepping = threading.Lock()
        self._remembering = threading.Lock()
        self._closed = threading.Event()
        self._wakers: set[Callable[[], object]] = set()
        self._starting = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: Future[float | None] | None = None

    @property
    def kind(self) -> str:
        """The dataset's kind, `bytes`, `table` or `files`; empty until HEAD was read."""
        return self._memory.kind

    @property
    def position(self) -> Position | None:
        """The position that was acknowledged last, as (epoch, version)."""
        return self._memory.position

    def ack(self, position: Position | None = None) -> None:
        """Remember that everything up to `position` was dealt with: that of a "commit"; without it, of the last one.

        Durable once it returns, where there is a state file. Raises UsageError for what was not committed yet.
        """
        with self._remembering:
            told = self._told
            if told is None or (position is not None and tuple(position) > told):
                raise UsageError("only what was committed can be acknowledged")
            position = told if position is None else (position[0], position[1])
            if self._memory.position is None or position > self._memory.position:
                left = [n for n, commits in enumerate(self._unacknowledged) if commits.first <= position]
                if not left:
                    raise UsageError("only what was committed can be acknowledged")
                at = self._unacknowledged[left[-1]]
                schema = at.schema if position <= at.last else b""  # between two commits, it is not known
                self._remember(msgspec.structs.replace(self._memory, position=position, schema=schema, parts=at.parts))
                del self._unacknowledged[: left[-1]]

    def _note_told(self, position: Position, schema: bytes, parts: Parts) -> None:
        """All was told up to a position, at which these are the schema and the parts."""
        self._told, self._schema, self._parts = position, schema, parts
        known = self._unacknowledged
        if known and (known[-1].schema, known[-1].parts) == (schema, parts):
            known[-1] = known[-1]._replace(last=position)
        else:
            known.append(_Commits(position, position, schema, parts))

    def _remember(self, memory: Memory) -> None:
        if memory != self._memory:
            if self._file is not None:
                self._file.store(memory)
            self._memory = memory

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        with self._stepping:
            while True:
                if self._events:
                    return self._taken()
                pause = self._step()
                if pause is None:
                    raise StopIteration
                if pause:
                    self._closed.wait(pause)

    def _taken(self) -> Event:
        event = self._events.popleft()
        if event.type == "commit":
            with self._remembering:
                self._note_told(event.position, self._next_schema, self._next_parts)
        return event

    def _step(self) -> float | None:
        """Get some events, or say for how many seconds to wait; None: it is over."""
        if self._closed.is_set():
            self._drop()
            return None
        if self._over:
            self._over = False
            return None
        try:
            found = self._more()
        except Again:
            return 0.0
        except FetchError as error:
            if not self._follow or (isinstance(error, NotFound) and self._memory.seen is None):
                raise
            return self._back_off(error)
        self._failures = 0
        if found:
            return 0.0
        return self._pace * (1 + JITTER * (2 * self._jitter() - 1)) if self._follow else None

    def _back_off(self, error: FetchError) -> float:
        self._failures += 1
        pause = min(LONGEST, self._pace * 2.0 ** min(self._failures - 1, 16)) * (1 - JITTER * self._jitter())
        with self._remembering:
            self._remember(msgspec.structs.replace(self._memory, rests=self._health.dump()))
        asked = error.retry_after if isinstance(error, Unavailable) else None
        pause = max(pause, asked or 0.0)
        self._warn(f"{error}; asked again in {pause:.0f} s")
        return pause

    def _more(self) -> bool:
        """Take the next batch of the transition under way, or begin one; False: there is nothing new."""
        try:
            if self._batches is None:
                self._batches = self._begin()
                if self._batches is None:
                    return False
            self._events.extend(next(self._batches))
            if self._events and self._events[-1].type == "commit":
                self._end()
        except BaseException:
            self._drop()
            raise
        return True

    def _begin(self) -> Iterator[list[Event]] | None:
        """Look whether there is something new, and begin to tell it."""
        head = self._look()
        if head is None:
            return None
        self._transition = self._host.transition(self._told if self._parts == WHOLE else None, self._schema)
        self._next_parts = WHOLE
        return self._transition.batches()

    def _look(self) -> Position | None:
        """The position of HEAD, where it is not what was told already."""
        head, memory = self._host.look(self._memory)
        self._pass_on()
        with self._remembering:
            known = self._memory
            memory = msgspec.structs.replace(memory, position=known.position, schema=known.schema, parts=known.parts)
            self._remember(msgspec.structs.replace(memory, rests=self._health.dump()))
        if head is None:
            return None
        self._pace = float(head.interval) if self._interval is None else self._interval
        if self._told is None and self._since:
            if self._since > head.version:
                raise UsageError(f"there is no version {self._since} yet; the newest is {head.version}")
            with self._remembering:
                self._note_told((head.epoch, self._since), b"", WHOLE)
        behind = self._told is not None and self._told[0] == head.epoch and self._told[1] >= head.version
        return None if behind else (head.epoch, head.version)

    def _pass_on(self) -> None:
        for note in dict.fromkeys(self._health.notes):
            self._warn(note)
        self._health.notes.clear()

    def _end(self) -> None:
        """The transition was taken to its end."""
        self._over = not self._follow
        if self._transition is not None:
            self._next_schema = self._transition.schema
        self._drop()

    def _drop(self) -> None:
        """Let go of the transition under way."""
        batches, self._batches = self._batches, None
        close = getattr(batches, "close", None)
        if close is not None:
            close()
        if self._transition is not None:
            self._transition.close()
            self._transition = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; what takes time is done in a thread of its own. A task may be cancelled here: nothing is lost."""
        while not self._events:
            pause = await self._in_thread()
            if pause is None:
                raise StopAsyncIteration
            if pause:
                await self._asleep(pause)
        return self._taken()

    async def _in_thread(self) -> float | None:
        with self._starting:
            if self._closed.is_set():
                return None
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="headwater-feed")
            if self._under_way is None:
                self._under_way = self._thread.submit(self._locked_step)
        mine = self._under_way
        try:
            return await asyncio.shield(asyncio.wrap_future(mine))
        finally:
            if mine.done() and self._under_way is mine:
                self._under_way = None

    def _locked_step(self) -> float | None:
        with self._stepping:
            return 0.0 if self._events else self._step()

    async def _asleep(self, seconds: float) -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(closed.set)

        self._wakers.add(wake)
        try:
            if not self._closed.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(closed.wait(), seconds)
        finally:
            self._wakers.discard(wake)

    def stop(self) -> None:
        """End the iteration where it waits, or after the events at hand; from any thread, or a signal handler."""
        self._closed.set()
        for wake in list(self._wakers):
            wake()

    def close(self) -> None:
        """Stop, and let go of everything. What was not acknowledged will be told again."""
        self.stop()
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
        with self._stepping:
            self._drop()
            self._fetcher.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it, in a thread: a request may be under way."""
        self.stop()
        await asyncio.to_thread(self.close)

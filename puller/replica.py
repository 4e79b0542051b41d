"""Datasets for Python programs that read: a mapping that is pulled into memory, a SQLite database or a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar

from puller.errors import Moved, UsageError
from puller.events import Change, Watch, form_at
from puller.fetch import open_fetcher
from puller.forms import Form
from puller.mirrors import Health
from puller.passwords import masked
from puller.pull import Options, Outcome, pull
from puller.targets import open_target
from puller.targets.base import ReadableTarget, Reading, Target
from puller.targets.memory import Held, MemoryTarget
from puller.trust import parse_given
from puller.wire.head import Head

if TYPE_CHECKING:
    from puller.replicafeed import ReplicaFeed

_TRIES = 100
T = TypeVar("T")


def _silent(_text: str) -> None:
    pass


class _Ranges(Mapping[Any, Any]):
    """A mapping whose records `_view` gives, and which knows ranges of itself."""

    def _view(self) -> AbstractContextManager[View]:
        raise NotImplementedError

    def _ask(self, question: Callable[[View], T]) -> T:
        """What a view answers; a folder that a pull moves on meanwhile is asked again."""
        for _ in range(_TRIES):
            try:
                with self._view() as view:
                    return question(view)
            except Moved as error:
                moved = error
        raise moved

    def __getitem__(self, key: Any) -> Any:
        return self._ask(lambda view: view.find(key))

    def __contains__(self, key: object) -> bool:
        return self._ask(lambda view: view.has(key))

    def __iter__(self) -> Iterator[Any]:
        with self._view() as view:
            yield from view.each_key()

    def __len__(self) -> int:
        return self._ask(lambda view: view.count())

    def keys(self, prefix: Any = None, *, start: Any = None, stop: Any = None) -> KeysView[Any]:
        """The keys in a range, in key order. See `items`."""
        return KeysView(_Range(self, prefix, start, stop))

    def values(self, prefix: Any = None, *, start: Any = None, stop: Any = None) -> ValuesView[Any]:
        """The values in a range of keys, in key order. See `items`."""
        return _Values(_Range(self, prefix, start, stop))

    def items(self, prefix: Any = None, *, start: Any = None, stop: Any = None) -> ItemsView[Any, Any]:
        """The pairs of key and value in a range of keys, in key order; without arguments, all of them.

        `prefix`: only keys that begin with it: the first bytes of a key, the first characters of a path, or the
        first elements of a tuple, so `("prices",)` for all rows of a table. `start` and `stop`: only keys from
        `start` on, and below `stop`; they need not exist, and of a tuple its first elements will do.

        An iteration sees the one state that was held when it began, whatever is pulled meanwhile, and takes some
        records at a time. Only from a folder, whose files a pull replaces, it raises Moved in that case.
        Raises UsageError for a bound of another type than the dataset's keys.

        >>> for (table, sku), row in replica.items(prefix=("prices",)):  # doctest: +SKIP
        ...     print(sku, row["price"])
        """
        return _Items(_Range(self, prefix, start, stop))


class View(_Ranges):
    """One state of a replica, held still: a read-only mapping in key order. `Replica.view` makes it.

    The attributes are None (`version` and `epoch`: 0) where nothing was pulled yet.
    """

    def __init__(self, reading: Reading, lower: bytes = b"", upper: bytes | None = None) -> None:
        self._reading = reading
        self._form: Form = form_at(reading)
        state = reading.state
        self.dataset: str | None = None if state is None else state.dataset
        """The dataset's name."""
        self.kind: str | None = None if state is None else state.kind
        """`bytes`, `table` or `files`."""
        self.epoch: int = 0 if state is None else state.epoch
        self.version: int = 0 if state is None else state.version
        self.time: int | None = None if state is None else state.time
        """When the version was published, in Unix seconds."""
        self.checksum: str | None = None if state is None else state.checksum
        """The checksum of the state (SPEC 6): 32 hexadecimal digits."""
        self._lower = max(lower, b"\0") if self.kind == "table" else lower
        self._upper = upper

    def _view(self) -> AbstractContextManager[View]:
        return nullcontext(self)

    def narrow(self, prefix: Any, start: Any, stop: Any) -> View:
        """The view of a range (`items`)."""
        if (prefix is None and start is None and stop is None) or self.kind is None:
            return self
        lower, upper = (b"", None) if prefix is None else self._form.prefix_range(prefix)
        if start is not None:
            lower = max(lower, self._form.encode_bound(start))
        if stop is not None:
            end = self._form.encode_bound(stop)
            upper = end if upper is None else min(upper, end)
        if self._upper is not None:
            upper = self._upper if upper is None else min(upper, self._upper)
        return View(self._reading, max(lower, self._lower), upper)

    def find(self, key: Any) -> Any:
        """The value under a key. Raises KeyError."""
        wire_key, value = self._record(key)
        if value is None:
            raise KeyError(key)
        return self._form.decode_values([wire_key], [value])[0]

    def has(self, key: Any) -> bool:
        """Whether there is a value under a key."""
        return self._record(key)[1] is not None

    def _record(self, key: Any) -> tuple[bytes, bytes | None]:
        try:
            wire_key = self._form.encode_key(key)
        except UsageError:
            return b"", None
        inside = wire_key >= self._lower and (self._upper is None or wire_key < self._upper)
        return wire_key, self._reading.get(wire_key) if inside else None

    def count(self) -> int:
        """The number of records; known for the whole, counted for a range."""
        state = self._reading.state
        if state is None:
            return 0
        if self._upper is None and self._lower <= b"\0" and (state.kind == "table" or not self._lower):
            return max(0, state.records - (state.kind == "table"))
        return sum(len(keys) for keys, _ in self._reading.runs(self._lower, self._upper))

    def each_key(self) -> Iterator[Any]:
        """The keys, in order."""
        for keys, _ in self._reading.runs(self._lower, self._upper):
            yield from self._form.decode_keys(keys)

    def each_pair(self) -> Iterator[tuple[Any, Any]]:
        """Keys and values, in key order."""
        for keys, values in self._reading.runs(self._lower, self._upper):
            yield from zip(self._form.decode_keys(keys), self._form.decode_values(keys, values), strict=True)


class _Range(_Ranges):
    """A range of a mapping, looked at anew each time."""

    def __init__(self, whole: _Ranges, prefix: Any, start: Any, stop: Any) -> None:
        self._whole = whole
        self._bounds = prefix, start, stop

    @contextmanager
    def _view(self) -> Iterator[View]:
        with self._whole._view() as view:
            yield view.narrow(*self._bounds)


class _Items(ItemsView[Any, Any]):
    _mapping: _Ranges

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        with self._mapping._view() as view:
            yield from view.each_pair()


class _Values(ValuesView[Any]):
    _mapping: _Ranges

    def __iter__(self) -> Iterator[Any]:
        with self._mapping._view() as view:
            for _, value in view.each_pair():
                yield value


def _readable(target: Target) -> ReadableTarget:
    if isinstance(target, ReadableTarget):
        return target
    raise UsageError(
        f"{target.where}: programs read from memory, a SQLite database (*.db), a PostgreSQL database or a folder"
    )


class Replica(_Ranges):
    """A copy of a published dataset, exact and verified, as a read-only mapping in key order.

    `url` is http://, https://, file:// or a path. Without `path` the copy lives in this process's memory. With one
    it is kept there, and what was pulled before can be read at once: a SQLite database (`*.db`, `*.sqlite`; kinds
    table and bytes), a PostgreSQL database (`postgresql://…`; the same) or a folder (kind files); `form`, "sqlite" or
    "folder", says so where the name does not.
    `mirrors` are further addresses of the same dataset: the newest HEAD of all wins, and files come from another one where
    the first fails. Nothing is fetched before `pull`; until the first one, the replica is empty.

    `secret` is the secret of an encrypted
    dataset, as its text or the file that it is in; without it, it is looked for in HEADWATER_SECRET in the environment and
    in the user's keys folder.

    `trust`: the publisher's public key, as `publisher key show` prints it, or several, one of which suffices. Without
    it, the key that is met first is trusted from then on; for a replica in memory that is each time anew.

    `parts` are those of the dataset to hold, and nothing else is fetched: paths' first characters (`"rules/eu/"`), keys'
    first bytes, tables by their names, or rows by a tuple of a table's name and first values of its primary key. An empty
    list means the whole dataset; None: what is held at `path`, or the whole. `checksum` and `len` are those of the parts.

    | kind | key | value |
    | --- | --- | --- |
    | `bytes` | bytes | bytes |
    | `files` | path, a str | `File`: `content` (bytes) and `type` |
    | `table` | tuple: table, primary key | dict: column to value, absent values None, JSON parsed |

    1, 1.0 and True are different keys. A key of a form that the kind does not have is absent: KeyError.

    All methods may be called from several threads. Readers see the state before a pull or the one after it, never
    a mixture; a lookup sees the newest one, an iteration the one it began with, and `view` holds one for several
    lookups. One pull runs at a time, others wait. A database is switched to write-ahead logging for this, so two
    more files lie beside it while it is open. Do not share a replica over a fork.

    >>> import puller
    >>> with puller.Replica("https://data.example.org/prices", "prices.db") as replica:  # doctest: +SKIP
    ...     replica.pull()
    ...     print(replica.version, len(replica), replica["prices", "a1"]["price"])
    """

    def __init__(
        self,
        url: str,
        path: str | None = None,
        *,
        form: str | None = None,
        trust: str | Iterable[str] = (),
        secret: str | None = None,
        mirrors: Sequence[str] = (),
        parts: Sequence[Any] | None = None,
    ) -> None:
        """Raises UsageError for what is no public key, and as pulling does for `path`."""
        self._trust = parse_given([trust] if isinstance(trust, str) else trust)
        self.url = url
        self._secret = secret
        self.mirrors = tuple(mirrors)
        self._parts = parts
        self._health = Health()
        self.path = path
        self._form = form
        self._memory = MemoryTarget() if path is None else None
        self._opened: ReadableTarget | None = None
        self._lock = threading.Lock()
        self._pulling = threading.Lock()
        self._puller: int | None = None
        self._first = False
        """A first pull is under way: its target is not looked at."""
        self._closed = False
        self._is_empty()

    def _is_empty(self) -> bool:
        """Whether nothing is held on disk; what a killed pull left half done is finished first."""
        target = self._find()
        if target is None:
            return self.path is not None
        try:
            return target.state() is None
        finally:
            target.close()

    def _find(self) -> ReadableTarget | None:
        """The target on disk; None where its name does not tell what it is, and nothing is there."""
        if self.path is None:
            return None
        try:
            target = open_target(self.path, None, self._form)
        except UsageError:
            if self._form is not None:
                raise
            return None
        return _readable(target)

    def pull(
        self,
        on_change: Callable[[Change], object] | None = None,
        *,
        overwrite: bool = False,
        adopt: bool = False,
        allow_expired: bool = False,
        max_staleness: int | None = None,
    ) -> Outcome:
        """Bring the replica to the newest version; fetch only what it is missing.

        Returns what was done: the way (`outcome.plan.way`), the positions `before` and `after` as (epoch,
        version), whether it `changed`, and the `requests` and bytes `received` it took. Raises a HeadwaterError
        and leaves the replica as it was, if anything is wrong. `overwrite`: over local edits; `adopt`: into a
        folder or database that holds other data; `allow_expired`: take an expired HEAD though nothing is held yet.
        `outcome.stale` says whether what is held may be old, also where the newest HEAD is older than `max_staleness`
        seconds: "expired", "stale" or "older-head"; None: it is not.

        `on_change` is called with a `Change` (key, old value, new value; None: absent) for each key whose value
        differs, in key order, once the step is committed: applying all of them to a dict of the old state gives the
        new state. The first pull adds every key. Changes wait in a temporary file where they are many. If
        `on_change` raises, the error goes to the caller; the replica has moved all the same, and the changes after
        that one are not told: read anew. Moved is raised in that place if another process pulled in between.

        >>> replica.pull(on_change=lambda change: cache.pop(change.key, None))  # doctest: +SKIP
        """
        if self._puller == threading.get_ident():
            raise UsageError("on_change must not pull the replica that calls it")
        with self._pulling:
            self._for_reading()
            self._puller = threading.get_ident()
            try:
                options = Options(
                    overwrite=overwrite,
                    adopt=adopt,
                    allow_expired=allow_expired,
                    max_staleness=max_staleness,
                    trust=self._trust,
                    secret=self._secret,
                    parts=self._parts,
                )
                return self._pull(on_change, options)
            finally:
                self._puller = None

    def _pull(self, on_change: Callable[[Change], object] | None, options: Options) -> Outcome:
        with ExitStack() as opened, self._pulled(options, opened, watched=on_change is not None) as (outcome, watch):
            if watch is not None and on_change is not None:
                try:
                    for change in watch.changes(outcome.after):
                        on_change(change)
                except BaseException as error:
                    error.add_note(f"The replica is at version {outcome.after[1]}; not all of its changes were told.")
                    raise
            return outcome

    @contextmanager
    def _pulled(self, options: Options, opened: ExitStack, *, watched: bool) -> Iterator[tuple[Outcome, Watch | None]]:
        """Pull; what it changed can be told until the end, where that was watched. `opened` closes the target."""
        with ExitStack() as stack:
            self._health.notes.clear()
            fetcher = open_fetcher(self.url, self.mirrors, self._health)
            stack.callback(fetcher.close)
            watch = stack.enter_context(Watch(self._reading)) if watched else None
            self._first = self._is_empty()
            try:
                outcome = pull(
                    self.url,
                    fetcher,
                    lambda head: self._target(opened, head),
                    options,
                    watch=watch,
                    health=self._health,
                )
            finally:
                self._first = False
            yield outcome, watch

    @contextmanager
    def pulled(self, *, watched: bool, allow_expired: bool = False) -> Iterator[tuple[Outcome, Watch | None]]:
        """For `puller.replicafeed`: pull, while other pulls of this replica wait; they go on while changes are told.

        So do those of other processes: the target is let go, though a folder's changes can no more be told once it moved.
        """
        with ExitStack() as stack:
            with self._pulling, ExitStack() as opened:
                self._for_reading()
                options = Options(
                    trust=self._trust, secret=self._secret, allow_expired=allow_expired, parts=self._parts
                )
                found = stack.enter_context(self._pulled(options, opened, watched=watched))
            yield found

    def feed(
        self,
        state: str | None = None,
        *,
        anew: bool = True,
        follow: bool = True,
        interval: float | None = None,
        allow_expired: bool = False,
        warn: Callable[[str], object] = _silent,
    ) -> ReplicaFeed:
        """The changes of the dataset, in order, with old values: pulls the replica, and tells what that changed.

        As `puller.Feed`, which says what events and the other arguments are; it begins with all records of the replica, or
        with `anew=False` with what the next pull changes. Where somebody else pulled the replica, or a transition was cut
        short and an earlier process is gone, old values are `puller.UNKNOWN`, once.

        >>> with replica.feed("index.json") as feed:  # doctest: +SKIP
        ...     async for event in feed:
        ...         await index.apply(event)
        """
        from puller.replicafeed import ReplicaFeed

        return ReplicaFeed(
            self,
            state,
            anew=anew,
            follow=follow,
            interval=interval,
            trust=list(map(str, self._trust)),
            secret=self._secret,
            allow_expired=allow_expired,
            warn=warn,
        )

    def _target(self, stack: ExitStack, head: Head | None) -> Target:
        """The target for one pull, with connections of this thread's own."""
        if self.path is None:
            assert self._memory is not None
            return self._memory
        target = open_target(self.path, None if head is None else head.kind, self._form)
        stack.callback(target.close)
        return _readable(target)

    @contextmanager
    def _reading(self) -> Iterator[Reading]:
        target = self._for_reading()
        if target is None or self._first:
            yield Held()
        else:
            with target.reading() as reading:
                yield reading

    def _for_reading(self) -> ReadableTarget | None:
        with self._lock:
            if self._closed:
                raise UsageError("the replica was closed")
            if self._opened is None:
                self._opened = self._memory or self._find()
            return self._opened

    @contextmanager
    def _view(self) -> Iterator[View]:
        with self._reading() as reading:
            yield View(reading)

    def view(self) -> AbstractContextManager[View]:
        """Hold the newest state still, for several lookups in one version.

        A view of a folder raises Moved once a pull replaces its files. End a view when it is no longer needed:
        while one is held, memory keeps its state, and the database's log grows.

        >>> with replica.view() as view:  # doctest: +SKIP
        ...     print(view.version, view["prices", "a1"]["price"] - view["prices", "b2"]["price"])
        """
        return self._view()

    @property
    def dataset(self) -> str | None:
        """The dataset's name; None before the first pull."""
        return self._ask(lambda view: view.dataset)

    @property
    def kind(self) -> str | None:
        """`bytes`, `table` or `files`; None before the first pull."""
        return self._ask(lambda view: view.kind)

    @property
    def epoch(self) -> int:
        """The epoch of the version that is held; 0 before the first pull."""
        return self._ask(lambda view: view.epoch)

    @property
    def version(self) -> int:
        """The version that is held; 0 before the first pull."""
        return self._ask(lambda view: view.version)

    @property
    def time(self) -> int | None:
        """When the version that is held was published, in Unix seconds; None before the first pull."""
        return self._ask(lambda view: view.time)

    @property
    def checksum(self) -> str | None:
        """The checksum of what is held (SPEC 6), 32 hexadecimal digits; None before the first pull."""
        return self._ask(lambda view: view.checksum)

    def __repr__(self) -> str:
        return f"Replica({self.url!r}, {self.path and masked(self.path)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and memory, after a pull that is under way. A database or a folder stays as it is."""
        if self._puller == threading.get_ident():
            raise UsageError("on_change must not close the replica that calls it")
        with self._pulling, self._lock:
            self._closed = True
            self._memory = None
            if self._opened is not None:
                self._opened.close()
                self._opened = None

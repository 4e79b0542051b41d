"""Several places with the same dataset: files from any of them, the newest HEAD of all, broken ones left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from queue import Empty, SimpleQueue
from typing import TypeVar

from puller.errors import Corrupt, FetchError, HeadwaterError, Invalid, NotFound, Unavailable, Withheld
from puller.fetch import Answer, Check, Fetcher
from puller.wire.head import parse_head

REST = 10.0
"""Seconds that a place is left alone after it failed; twice as long after each further time."""
LONGEST = 600.0
GRACE = 2.0
"""Seconds that other places have for their HEAD once one has answered."""
FORGET = 86_400
"""Seconds after which failures are forgotten."""

Order = tuple[int, int, int]
NO_HEAD: Order = (-1, -1, -1)
T = TypeVar("T")


class Health:
    """What is known of places: which are left alone, until when (Unix seconds), and what went wrong there.

    `rests` has for each place when its rest ends and how often it failed in a row; 0 where the place itself asked to be
    left alone (Retry-After). `notes` are for the user. Threads may share it.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.notes: list[str] = []
        self._rests: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def load(self, rests: Mapping[str, tuple[int, int]]) -> None:
        """Take over what an earlier process knew."""
        now = self.now()
        with self._lock:
            for place, (until, failures) in rests.items():
                if until > now - FORGET:
                    self._rests.setdefault(place, (min(until, now + FORGET), failures))

    def dump(self) -> dict[str, tuple[int, int]]:
        """What the next process should know."""
        now = self.now()
        with self._lock:
            return {place: (ceil(until), n) for place, (until, n) in self._rests.items() if until > now or n}

    def rest(self, place: str) -> tuple[float, bool]:
        """How many seconds a place is still to be left alone, and whether it asked for that itself."""
        until, failures = self._rests.get(place, (0.0, 0))
        return max(0.0, until - self.now()), failures == 0

    def asked(self, place: str, seconds: float) -> None:
        """A place asked to be left alone."""
        with self._lock:
            self._rests[place] = (self.now() + seconds, 0)

    def failed(self, place: str, reason: object) -> None:
        """A place failed; several threads may find out at the same time, and that counts once."""
        now = self.now()
        with self._lock:
            until, failures = self._rests.get(place, (0.0, 0))
            if until > now:
                return
            rest = min(LONGEST, REST * 2.0**failures)
            self._rests[place] = (now + rest, min(failures + 1, 16))
            self.notes.append(f"{reason}; {place} is left alone for {rest:.0f} s, other mirrors are asked")

    def worked(self, place: str) -> None:
        """A place gave what it was asked for."""
        if place in self._rests:
            with self._lock:
                self._rests.pop(place, None)


class Mirrors:
    """Wraps fetchers of the same dataset, by their addresses, the preferred one first.

    HEAD is asked of all places at once that are not left alone; the newest one comes first in the answer. A file is asked
    of one place: the first that is not left alone and had the newest HEAD, then, if it fails or lacks the file, the next;
    of those that are left alone only if all others fail.
    """

    def __init__(self, fetchers: Mapping[str, Fetcher], health: Health | None = None) -> None:
        self._fetchers = dict(fetchers)
        self._behind: frozenset[str] = frozenset()
        self.health = Health() if health is None else health

    @property
    def is_local(self) -> bool:
        return all(fetcher.is_local for fetcher in self._fetchers.values())

    @property
    def requests(self) -> int:
        return sum(fetcher.requests for fetcher in self._fetchers.values())

    @property
    def received(self) -> int:
        return sum(fetcher.received for fetcher in self._fetchers.values())

    def close(self) -> None:
        for fetcher in self._fetchers.values():
            fetcher.close()

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        return self._first(lambda fetcher: fetcher.fetch(path, size, check))

    def fetch_head(self, etag: str | None) -> Answer:
        if len(self._fetchers) == 1:
            return self._first(lambda fetcher: fetcher.fetch_head(etag))
        seen, tag = _split_tag(etag)
        answers = self._ask_all(self._heads_from(), tag)
        orders = self._orders_of(answers, seen)
        newest = max(orders.values())
        self._behind = frozenset(place for place, order in orders.items() if order < newest)
        ranked = sorted(orders, key=orders.__getitem__, reverse=True)
        first, *others = (_with_order(answers[place], orders[place]) for place in ranked)
        return replace(first, others=tuple(others))

    def _first(self, ask: Callable[[Fetcher], T]) -> T:
        """What the first place that can gives. Raises one error for all if none can."""
        errors: list[HeadwaterError] = []
        for place in self._in_turn():
            if any(isinstance(error, NotFound) for error in errors) and self.health.rest(place)[0]:
                break
            try:
                found = ask(self._fetchers[place])
            except (FetchError, Corrupt) as error:
                self._note(place, error)
                errors.append(error)
            else:
                self.health.worked(place)
                return found
        raise self._all_failed(errors)

    def _in_turn(self) -> list[str]:
        """The places to ask for a file: those that asked to be left alone are not among them, others at rest come last."""
        places = []
        for number, place in enumerate(self._fetchers):
            rest, asked = self.health.rest(place)
            if not rest or not asked:
                places.append((rest, place in self._behind, number, place))
        return [place for *_, place in sorted(places)]

    def _heads_from(self) -> list[str]:
        """The places to ask for HEAD: those at rest only if all are."""
        places = self._in_turn()
        return [place for place in places if not self.health.rest(place)[0]] or places

    def _ask_all(self, places: Sequence[str], tag: str | None) -> dict[str, Answer]:
        """HEAD of several places at once, in the order of preference; the slow ones are waited for a little."""
        results: SimpleQueue[tuple[str, Answer | HeadwaterError]] = SimpleQueue()

        def ask(place: str) -> None:
            try:
                results.put((place, self._fetchers[place].fetch_head(tag)))
            except HeadwaterError as error:
                results.put((place, error))

        for place in places:
            threading.Thread(target=ask, args=(place,), daemon=True).start()
        answers: dict[str, Answer] = {}
        errors: list[HeadwaterError] = []
        waiting = set(places)
        end: float | None = None
        while waiting:
            try:
                place, result = results.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except Empty:
                break
            waiting.discard(place)
            if isinstance(result, Answer):
                answers[place] = result
                self.health.worked(place)
                end = end or time.monotonic() + GRACE
            else:
                errors.append(result)
                self._note(place, result)
        if not answers:
            raise self._all_failed(errors)
        for place in waiting:
            self.health.failed(place, f"{place}: the host was far slower than another")
        return {place: answers[place] for place in self._fetchers if place in answers}

    def _orders_of(self, answers: Mapping[str, Answer], seen: Order) -> dict[str, Order]:
        """Where each answer stands; `seen` is that of "not modified", and NO_HEAD that of what is of no use."""
        orders: dict[str, Order] = {}
        name: str | None = None
        for place, answer in answers.items():
            if answer.data is None:
                orders[place] = seen
                continue
            try:
                head = parse_head(answer.data)
                name = name or head.name
                if head.name != name:
                    raise Invalid(f"the dataset {head.name!r} is there, not {name!r}")
                orders[place] = head.order
            except Invalid as error:
                orders[place] = NO_HEAD
                self.health.notes.append(f"{place}: {error}; its HEAD was passed over")
        return orders

    def _note(self, place: str, error: HeadwaterError) -> None:
        if isinstance(error, Unavailable) and error.retry_after:
            self.health.asked(place, error.retry_after)
        elif len(self._fetchers) > 1 and not isinstance(error, NotFound):
            self.health.failed(place, error)

    def _all_failed(self, errors: list[HeadwaterError]) -> HeadwaterError:
        """One error for those of all places: absence is proven only if all say so."""
        if not errors:
            rest, place = min((self.health.rest(place)[0], place) for place in self._fetchers)
            until = time.strftime("%H:%M:%S", time.localtime(self.health.now() + rest))
            return Unavailable(f"{place} asked to be left alone until {until}; it was not asked again", rest)
        if len(errors) == 1:
            return errors[0]
        text = "; ".join(map(str, errors))
        if all(isinstance(error, NotFound) for error in errors):
            return NotFound(text)
        if any(isinstance(error, (NotFound, Withheld)) for error in errors):
            return Withheld(text)
        outages = [error for error in errors if isinstance(error, Unavailable)]
        if outages:
            return Unavailable(text, min((e.retry_after for e in outages if e.retry_after), default=None))
        return (Corrupt if all(isinstance(error, Corrupt) for error in errors) else FetchError)(text)


def _with_order(answer: Answer, order: Order) -> Answer:
    """An answer whose tag says which HEAD it stands for: "not modified" can then be compared with other HEADs."""
    return replace(answer, etag=None if answer.etag is None or order == NO_HEAD else _tag(order, answer.etag))


def _tag(order: Order, tag: str) -> str:
    return f"{'.'.join(map(str, order))} {tag}"


def _split_tag(tag: str | None) -> tuple[Order, str | None]:
    """The order and the place's own tag in one that `_tag` made; another one is of no use here."""
    order, _, inner = (tag or "").partition(" ")
    numbers = order.split(".")
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers) or not inner:
        return NO_HEAD, None
    first, second, third = map(int, numbers)
    return (first, second, third), inner

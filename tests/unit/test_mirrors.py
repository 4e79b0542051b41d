"""Which places are asked, in which order, and which are left alone: with fetchers that do as they are told."""

from __future__ import annotations

import threading

import pytest

import puller.mirrors
from puller.errors import Corrupt, FetchError, NotFound, Unavailable, Withheld
from puller.fetch import Answer, Patience
from puller.http import LONGEST_REST, retry_after
from puller.mirrors import FORGET, LONGEST, REST, Health, Mirrors


class Place:
    """A fetcher that gives `result`, or raises it."""

    is_local = False
    received = 0

    def __init__(self, result):
        self.result = result
        self.requests = 0
        self.gate = threading.Event()
        self.gate.set()

    def _give(self):
        self.requests += 1
        self.gate.wait(10)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def fetch(self, path, size, check=None):
        data = self._give()
        if check:
            check(data)
        return data

    def fetch_head(self, etag):
        return Answer(self._give(), None)

    def close(self):
        pass


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def mirrors(clock, *results):
    places = {name: Place(result) for name, result in zip("abc", results, strict=False)}
    return Mirrors(places, Health(clock)), places


def asked(places):
    found = [place.requests for place in places.values()]
    for place in places.values():
        place.requests = 0
    return found


def test_a_failing_place_is_left_alone_longer_each_time_and_comes_back(clock):
    wrapped, places = mirrors(clock, Unavailable("down"), b"data")
    rest = REST
    for _ in range(9):
        assert wrapped.fetch("x", 9) == b"data"
        assert asked(places) == [1, 1]
        clock.now += rest - 1
        assert wrapped.fetch("x", 9) == b"data"
        assert asked(places) == [0, 1]
        clock.now += 1
        rest = min(2 * rest, LONGEST)
    places["a"].result = b"data"
    assert wrapped.fetch("x", 9) == b"data"
    assert asked(places) == [1, 0]
    assert wrapped.health.dump() == {}


def test_many_threads_that_fail_together_count_once(clock):
    health = Health(clock)
    for _ in range(30):
        health.failed("a", "down")
    assert health.dump() == {"a": (1000 + REST, 1)}
    assert len(health.notes) == 1


def test_who_asked_to_be_left_alone_is_not_asked_at_all(clock):
    wrapped, places = mirrors(clock, Unavailable("busy", 100.0), Unavailable("busy", 50.0))
    with pytest.raises(Unavailable) as caught:
        wrapped.fetch("x", 9)
    assert caught.value.retry_after == 50
    assert asked(places) == [1, 1]
    with pytest.raises(Unavailable, match="b asked to be left alone") as caught:
        wrapped.fetch("x", 9)
    assert (asked(places), caught.value.retry_after) == ([0, 0], 50)
    clock.now += 50
    places["b"].result = b"data"
    assert wrapped.fetch("x", 9) == b"data"
    assert asked(places) == [0, 1]


def test_what_is_known_is_handed_on_within_bounds(clock):
    health = Health(clock)
    health.asked("asked", 30.5)
    health.failed("failed", "down")
    known = health.dump()
    assert known == {"asked": (1031, 0), "failed": (1010, 1)}
    later = Health(clock)
    later.load(known | {"for ever": (10**12, 0), "long ago": (1000 - FORGET, 3)})
    assert later.rest("asked") == (31, True)
    assert later.rest("failed") == (10, False)
    assert later.rest("for ever")[0] == FORGET
    assert later.rest("long ago")[0] == 0
    assert "long ago" not in later.dump()


@pytest.mark.parametrize(
    ("results", "error"),
    [
        ((NotFound("1"), NotFound("2")), NotFound),
        ((NotFound("1"), Unavailable("2")), Withheld),
        ((Withheld("1"), Corrupt("2")), Withheld),
        ((Unavailable("1"), Corrupt("2")), Unavailable),
        ((Corrupt("1"), Corrupt("2")), Corrupt),
        ((FetchError("1"), Corrupt("2")), FetchError),
    ],
)
def test_absence_is_proven_only_if_all_say_so(clock, results, error):
    wrapped, _ = mirrors(clock, *results)
    with pytest.raises(error, match="1; 2") as caught:
        wrapped.fetch("x", 9)
    assert type(caught.value) is error


def test_places_at_rest_are_not_asked_for_what_another_says_is_missing(clock):
    wrapped, places = mirrors(clock, Unavailable("down"), NotFound("missing"))
    with pytest.raises(Withheld):
        wrapped.fetch("x", 9)
    asked(places)
    with pytest.raises(NotFound):
        wrapped.fetch("x", 9)
    assert asked(places) == [0, 1]


def test_a_slow_place_does_not_hold_up_head(clock, monkeypatch):
    monkeypatch.setattr(puller.mirrors, "GRACE", 0.05)
    wrapped, places = mirrors(clock, b"slow", b"quick")
    places["a"].gate.clear()
    assert wrapped.fetch_head(None).data == b"quick"
    assert wrapped.health.rest("a") == (REST, False)
    places["a"].gate.set()


def test_patience_has_an_end(clock):
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        clock.now += seconds

    patience = Patience(20.0, sleep, clock, lambda: 0.5)
    attempts = 0
    while patience.wait(attempts):
        attempts += 1
    assert pauses == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "9" * 400}, LONGEST_REST),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT", "Date": "Sun, 06 Nov 1994 08:49:07 GMT"}, 30),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0),
        ({"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"}, LONGEST_REST),
        ({"Retry-After": "Sun, 99 Nov 1994 08:49:37 GMT"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers, seconds):
    assert retry_after(headers) == seconds

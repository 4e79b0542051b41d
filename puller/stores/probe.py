"""Whether a bucket's service keeps to conditional writes: asked one after the other, and in a race."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from puller.errors import FetchError
from puller.fetch import again
from puller.s3 import Place, Refusal

RACERS = 8
ROUNDS = 3


def find_fault(place: Place, prefix: str) -> str | None:
    """What is wrong with the conditional writes, in a few words, or None. Leaves nothing behind where it may delete.

    Writes files whose names begin with `prefix` and a random number. Raises a FetchError where it cannot tell.
    """
    path = prefix + os.urandom(8).hex()
    try:
        return _in_turn(place, path) or _in_a_race(place, path)
    except Refusal as error:
        if error.status == 501:
            return "it says that it has none"
        raise
    finally:
        with contextlib.suppress(FetchError):
            place.send("delete_object", path)


def _in_turn(place: Place, path: str) -> str | None:
    first = _put(place, path, b"1", IfNoneMatch="*")
    if first is None:
        return "a file that is not there cannot be created with If-None-Match"
    if _put(place, path, b"2", IfNoneMatch="*") is not None:
        return "If-None-Match is ignored"
    if _put(place, path, b"3", IfMatch=first) is None:
        return "If-Match does not know the ETag that a file was written with"
    if _put(place, path, b"4", IfMatch=first) is not None:
        return "If-Match is ignored"
    return None if _content(place, path) == b"3" else "a refused write took effect"


def _in_a_race(place: Place, path: str) -> str | None:
    """Of several writes at the same time, one at most may come through, and that one must be there in the end."""
    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(ROUNDS):
            tag = again(lambda: place.read(path))[1]["ETag"]
            bodies = [b"%d %d" % (number, racer) for racer in range(RACERS)]
            race: Callable[[bytes], str | None] = lambda body, tag=tag: _put(place, path, body, IfMatch=tag)  # type: ignore[misc]  # noqa: E731
            won = [body for body, new in zip(bodies, pool.map(race, bodies), strict=True) if new is not None]
            if len(won) > 1:
                return f"{len(won)} of {RACERS} writes at the same time came through"
            if won and _content(place, path) != won[0]:
                return "a refused write took effect"
    return None


def _put(place: Place, path: str, body: bytes, **condition: Any) -> str | None:
    """The new ETag, or None where the condition did not hold."""
    try:
        return str(place.send("put_object", path, Body=body, **condition)["ETag"])
    except Refusal as error:
        if error.status in (409, 412):
            return None
        raise


def _content(place: Place, path: str) -> bytes:
    return again(lambda: place.read(path)[0])

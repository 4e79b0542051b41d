"""Following: when polls are due, which keys changed, and what is remembered beside a target."""

from __future__ import annotations

import random

import pytest

from puller.errors import TargetError
from puller.follow.noted import MOST, Changes, Noted
from puller.follow.record import Lock, Record, is_followed, place_of, read, write
from puller.follow.schedule import LONGEST, Schedule, good_for
from puller.targets.base import Opening
from puller.targets.folder import FolderTarget
from puller.targets.jsonl import JsonLinesTarget
from puller.targets.memory import MemoryTarget
from puller.targets.sqlite import SQLiteTarget
from puller.wire.keys import encode_key

PULLERS, CELLS = 10_000, 100
MOST_UNEVEN = 150.0
"""Chi-square of 99 degrees of freedom: one in a thousand even spreads exceeds 148."""


def unevenness(times: list[float], start: float, end: float) -> float:
    """Chi-square of how many of the times are in each of equal cells."""
    counts = [0] * CELLS
    for time in times:
        if start <= time < end:
            counts[int((time - start) / (end - start) * CELLS)] += 1
    expected = sum(counts) / CELLS
    return sum((count - expected) ** 2 / expected for count in counts)


def test_ten_thousand_pullers_that_restart_together_spread_evenly():
    interval = 30.0
    schedule = Schedule(random.Random(7).random)
    due = [schedule.first(interval, holds=True) for _ in range(PULLERS)]
    assert max(due) <= 1.1 * interval
    polls = list(due)
    for _ in range(12):
        due = [time + schedule.after_success(interval) for time in due]
        polls += due
    for n in (0, 0.5, 1, 1.5, 2, 3, 9):
        inside = [time / interval - n for time in polls if n <= time / interval < n + 1]
        assert abs(len(inside) - PULLERS) < PULLERS / 20
        assert unevenness(inside, 0, 1) < MOST_UNEVEN, n


def test_pullers_that_were_told_to_come_back_at_one_moment_spread_evenly():
    schedule = Schedule(random.Random(7).random)
    due = [schedule.after_failure(30.0, 1, rest=3600.0) for _ in range(PULLERS)]
    assert min(due) >= 3600
    assert unevenness(due, 3600, 3630) < MOST_UNEVEN


def test_an_empty_target_is_filled_at_once_and_failures_are_waited_for_longer_and_longer():
    schedule = Schedule(lambda: 0.5)
    assert schedule.first(30.0, holds=False) == 0
    assert [schedule.after_failure(30.0, n) for n in (1, 2, 3, 4, 5, 50)] == [30, 60, 120, 240, LONGEST, LONGEST]
    assert schedule.after_failure(3600.0, 9) == 3600
    assert (good_for(1.0), good_for(60.0)) == (300, 600)


def step(noted: Noted, *changes: tuple[bytes, bool, bool], replace: bool = False, kind: str = "bytes") -> None:
    noted.begin(Opening(kind, replace, 0, None))  # type: ignore[arg-type]
    hashes = [(1 if was else None, 2 if now else None) for _, was, now in changes]
    noted.note([key for key, _, _ in changes], [], [was for was, _ in hashes], [now for _, now in hashes])


def test_changes_of_several_steps_are_one():
    noted, changes = Noted(), Changes(known=True)
    step(noted, (b"added", False, True), (b"gone", True, False), (b"both", False, True), (b"again", True, False))
    changes.add(noted.keys)
    step(noted, (b"added", True, True), (b"both", True, False), (b"again", False, True))
    changes.add(noted.keys)
    found = {entry["key"]: entry["change"] for entry in changes.named("bytes") or []}
    assert found == {"YWRkZWQ=": "added", "Z29uZQ==": "deleted", "YWdhaW4=": "changed"}


def test_what_is_not_known_to_have_changed_is_not_guessed():
    noted, changes = Noted(), Changes(known=False)
    step(noted, (b"a", True, True))
    changes.add(noted.keys)
    assert changes.named("bytes") is None
    changes = Changes(known=True)
    step(noted, (b"a", False, True), replace=True)
    changes.add(noted.keys)
    assert changes.named("bytes") is None
    step(noted, *((b"%d" % n, True, True) for n in range(MOST + 1)))
    assert noted.keys is None


def test_a_step_that_failed_counts_not():
    noted, changes = Noted(), Changes(known=True)
    step(noted, (b"a", True, True))
    step(noted, (b"b", True, True))
    changes.add(noted.keys)
    assert changes.named("files") == [{"path": "b", "change": "changed"}]


def test_keys_of_tables_are_told_as_their_values():
    noted, changes = Noted(), Changes(known=True)
    step(noted, (b"", True, True), (encode_key("t", (1, "é", b"\xff")), False, True), kind="table")
    changes.add(noted.keys)
    assert changes.named("table") == [
        {"schema": True, "change": "changed"},
        {"table": "t", "key": [1, "é", "/w=="], "change": "added"},
    ]


def test_where_a_record_lies(tmp_path):
    assert place_of(FolderTarget(str(tmp_path))) == str(tmp_path / ".headwater" / "follow")
    assert place_of(SQLiteTarget("/x/a.db")) == "/x/a.db.headwater-follow"
    assert place_of(JsonLinesTarget("/x/a.jsonl")) == "/x/a.jsonl.headwater-follow"
    assert place_of(MemoryTarget()) is None


def test_a_record_is_read_back_and_a_damaged_one_is_an_empty_one(tmp_path):
    path = str(tmp_path / "follow")
    write(path, Record(url="u", told={"exec": (1, 2)}, rests={"a": (3, 4)}))
    assert read(path) == Record(url="u", told={"exec": (1, 2)}, rests={"a": (3, 4)})
    (tmp_path / "follow").write_text('{"told": 3')
    assert read(path) == Record()


def test_one_follower_at_a_time(tmp_path):
    path = str(tmp_path / "sub" / "follow")
    assert not is_followed(path)
    lock = Lock(path, "copy")
    assert is_followed(path)
    with pytest.raises(TargetError, match=r"copy is followed already, by process \d+ on .*, since 20"):
        Lock(path, "copy")
    lock.close()
    assert not is_followed(path)
    Lock(path, "copy").close()

"""When a watched source is published, with a clock and chance that are handed in."""

from __future__ import annotations

from publisher.watch.schedule import LONGEST_PAUSE, Chore, Schedule, Times, nears_expiry

TIMES = Times(settle=1.0, full=300.0, tick=0.25)


def middle():
    return 0.5


def started():
    """A schedule after its first attempt, which looked at everything, at time 0."""
    schedule = Schedule(TIMES, 0.0, middle)
    assert schedule.due_in(0.0) == 0
    assert schedule.begin(0.0) is None
    schedule.succeeded()
    return schedule


def test_a_change_is_published_once_it_is_quiet():
    schedule = started()
    assert schedule.due_in(10.0) == 290
    schedule.noticed(10.0, {b"a"})
    schedule.noticed(10.6, {b"b"})
    assert round(schedule.due_in(10.6), 3) == 1
    assert schedule.due_in(11.6) <= 0
    assert schedule.begin(11.6) == {b"a", b"b"}
    schedule.succeeded()
    assert not schedule.is_dirty
    assert schedule.due_in(11.6) > 200


def test_a_source_that_is_never_quiet_is_published_nevertheless():
    schedule = started()
    now = 10.0
    while schedule.due_in(now) > 0:
        schedule.noticed(now, {b"a"})
        now += 0.5
    assert 60 <= now - 10.0 <= 61


def test_everything_is_looked_at_now_and_then():
    schedule = started()
    assert schedule.due_in(300.0) == 0
    schedule.noticed(299.9, {b"a"})
    assert schedule.begin(300.0) is None  # which includes the path
    schedule.succeeded()
    assert 270 <= schedule.due_in(300.0) <= 330


def test_what_could_not_be_told_apart_is_everything():
    schedule = started()
    schedule.noticed(10.0, {b"a"})
    schedule.noticed(10.1, None)
    schedule.noticed(10.2, {b"b"})
    assert schedule.begin(12.0) is None


def test_a_failure_loses_nothing_and_waits_ever_longer():
    schedule = started()
    schedule.noticed(10.0, {b"a"})
    now, waits = 11.0, []
    for _ in range(10):
        paths = schedule.begin(now)
        assert paths == {b"a", b"b"} if waits else {b"a"}
        waits.append(schedule.failed(now, paths, source=False))
        schedule.noticed(now, {b"b"})  # does not hurry a store that is away
        assert round(schedule.due_in(now), 6) == round(waits[-1], 6)
        now += waits[-1]
        if now > 300:
            break
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) <= LONGEST_PAUSE
    assert schedule.begin(now) in (None, {b"a", b"b"})
    schedule.succeeded()
    assert schedule.failures == 0


def test_what_fails_for_the_source_is_tried_again_at_its_next_change():
    schedule = started()
    schedule.noticed(10.0, {b"a"})
    for _ in range(6):
        wait = schedule.failed(11.0, schedule.begin(11.0), source=True)
    assert round(schedule.due_in(11.0), 6) == round(wait, 6) == 32
    schedule.noticed(12.0, {b"b"})
    assert schedule.due_in(12.0) == 1  # a change has to settle, as always
    assert schedule.begin(13.0) == {b"a", b"b"}


def test_what_is_refused_waits_for_the_next_change():
    schedule = started()
    schedule.noticed(10.0, {b"a"})
    schedule.refused(schedule.begin(11.0))
    assert schedule.is_dirty
    assert schedule.due_in(11.0) > 200  # but for when everything is looked at
    schedule.noticed(20.0, {b"b"})
    assert schedule.due_in(20.0) == 1
    assert schedule.begin(21.0) == {b"a", b"b"}


def test_what_changes_during_an_attempt_is_not_held_back_with_it():
    schedule = started()
    schedule.noticed(10.0, {b"a"})
    paths = schedule.begin(11.0)
    schedule.noticed(11.5, {b"b"})
    schedule.refused(paths)
    assert schedule.due_in(11.5) == 1
    assert schedule.begin(12.5) == {b"a", b"b"}


def test_one_is_hurried():
    schedule = started()
    schedule.failed(5.0, schedule.begin(5.0), source=False)
    schedule.hurry(5.1)
    assert schedule.due_in(5.1) <= 0
    assert schedule.begin(5.1) is None


def test_chores_are_spread():
    first = [Chore(3600, 0.0, lambda n=n: n / 10) for n in range(10)]
    assert [chore.is_due(1800.0) for chore in first].count(True) == 6
    chore = Chore(3600, 0.0, middle)
    assert [now for now in range(0, 20_000, 100) if chore.is_due(now)] == [1800, 5400, 9000, 12600, 16200, 19800]


def test_expiry_nears_after_half_of_the_lifetime():
    assert not nears_expiry(1000, None, 10**10)
    assert not nears_expiry(1000, 2000, 1400)
    assert nears_expiry(1000, 2000, 1600)
    assert nears_expiry(1000, 2000, 9999)

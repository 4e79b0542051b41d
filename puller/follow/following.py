"""Following one dataset: polls and hooks in turn, for years. Serves old data for ever rather than none."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from puller.console import count, moment, size
from puller.errors import FetchError, HeadwaterError, NotOurs, TargetError, Unavailable, UsageError
from puller.fetch import shown, where
from puller.follow import record as records
from puller.follow.hooks import Event, Hook, HookFailed
from puller.follow.meters import Meters
from puller.follow.noted import Changes, Noted
from puller.follow.poller import Poller
from puller.follow.record import Record
from puller.follow.schedule import LONGEST, Schedule, good_for
from puller.passwords import masked
from puller.plan import Way
from puller.pull import Options, Outcome
from puller.service.backoff import Random, pause
from puller.service.job import Job
from puller.service.log import about
from puller.service.process import Service
from puller.targets import open_target
from puller.targets.base import FollowerLock, State, Target
from puller.trust import Staleness

INTERVAL = 30
"""Seconds between polls before HEAD suggests something."""
MOST_TOLD = 20
_FIRST_RETRY = 1.0
_ADVICE = re.compile(r"`(puller pull --[^`]+)`")


@dataclass(frozen=True)
class Follow:
    """What to follow, and how: as for a pull, and `interval` in seconds (None: what HEAD suggests)."""

    url: str
    target: str
    form: str | None = None
    mirrors: Sequence[str] = ()
    options: Options = field(default_factory=Options)
    interval: int | None = None
    hooks: Sequence[Hook] = ()
    atomic: bool = False
    keep: int | None = None

    @property
    def name(self) -> str:
        """The target, without a password."""
        return masked(self.target)


class _Told:
    """How far a hook is."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.changes = Changes(known=False)
        self.failures = 0
        self.due = float("-inf")
        """When it may be told again, by the monotonic clock."""


class Following:
    """One follower: `begin`, then `run` as a service's job, then `close`."""

    def __init__(
        self,
        follow: Follow,
        service: Service,
        meters: Meters,
        *,
        random_: Random = random.random,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.follow = follow
        self.job = Job(follow.name, self.run, now=now, clock=clock)
        self._service, self._log, self._meters = service, service.log, meters
        self._now, self._clock, self._random = now, clock, random_
        self._schedule = Schedule(random_)
        self._noted = Noted(lambda: service.busy.add(self.job.name), names=bool(follow.hooks))
        self._hooks = list(map(_Told, follow.hooks))
        self._lock: FollowerLock | None = None
        self._place: str | None = None
        self._record = Record()
        self._stale: Staleness | None = None
        """What the log told last."""
        self._saved = False
        """Whether the record that is stored is this process's."""
        self._poller = Poller(
            follow.url,
            follow.target,
            follow.mirrors,
            follow.options,
            partial(open_target, follow.target, form=follow.form, atomic=follow.atomic, keep=follow.keep),
            self._own,
            now,
        )
        meters.watch(follow.name, self._poller, self.job)

    @property
    def interval(self) -> float:
        """Seconds between polls."""
        state = self._poller.state
        return float(self.follow.interval or (INTERVAL if state is None else max(1, state.interval)))

    def begin(self) -> None:
        """Look at what is held. Raises TargetError where somebody else follows the target, or it cannot be read."""
        try:
            self._poller.look()
        except Unavailable as error:  # a database that starts with us, or later: polls ask again
            self._log.warning(f"{self.follow.name}: {error}", target=self.follow.name)
        state = self._poller.state
        if state is not None:
            for told in self._hooks:
                told.changes = Changes(known=not self._is_due(told))
            self.job.took_over(self._record.last_success, good_for(self.interval))
            self._show(state)

    def run(self, job: Job) -> None:
        """Poll and tell hooks until the job has to stop."""
        self._log.info(f"{self.follow.name}: follows {where(self.follow.url)}", target=self.follow.name)
        due = self._clock() + self._schedule.first(self.interval, holds=self._poller.state is not None)
        while True:
            self.tell_hooks()
            soonest = min([due, *(told.due for told in self._hooks if self._is_due(told))])
            hurried = job.wait(max(0.0, soonest - self._clock()))
            if hurried:
                for told in self._hooks:
                    told.due = float("-inf")
            if hurried or self._clock() >= due:
                try:
                    due = self._clock() + self.poll()
                except HeadwaterError as error:
                    self._give_up(error)
                    return

    def close(self) -> None:
        """Let go of the target and the host."""
        self._poller.close()
        if self._lock is not None:
            if self._poller.state is None and self._place is not None:
                self._leave_no_trace(self._place, f"{self._place}.lock")
            self._lock.close()

    def _leave_no_trace(self, *paths: str) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if os.path.basename(paths[0]) == "follow":  # in a folder of our own
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(paths[0]))

    def poll(self) -> float:
        """Poll once; the seconds until the next time.

        Raises UsageError or NotOurs where the follower never worked, and waiting changes nothing: somebody has to change
        what it was told, or move the target away. Every other failure is noted, and leads to the next attempt.
        """
        job, poller = self.job, self._poller
        before = poller.fetcher.requests, poller.fetcher.received
        try:
            outcome = poller.poll(self._noted, lambda *_: job.check())
        except (HeadwaterError, OSError, MemoryError) as error:
            if isinstance(error, UsageError | NotOurs) and not job.ready:
                raise
            return self._failed(error)
        finally:
            self._service.busy.discard(job.name)
        self._succeeded(outcome, before)
        return self._schedule.after_success(self.interval)

    def tell_hooks(self) -> None:
        """Tell hooks of what is held, those that do not know yet and were not told a moment ago."""
        for told in self._hooks:
            if self._is_due(told) and told.due <= self._clock():
                self._tell(told)

    def _own(self, target: Target) -> None:
        """Lock a target before it is used, and read what is remembered of it; again where it was taken away since."""
        if self._lock is None or not self._lock.is_there():
            if self._lock is not None:
                self._lock.close()
                self._lock = None
            self._lock, self._place = records.lock_of(target), records.place_of(target)
            if self._place is None:
                return
            self._record, self._saved = records.read(self._place), False
            self._poller.health.load(self._record.rests)
            record, record.started = self._record, self._now()
            record.url, record.pid, record.host = where(self.follow.url), os.getpid(), socket.gethostname()
        if self._record.told and target.state() is None:
            self._record.told = {}  # what will be held is new to all hooks, whatever a target before it held
            self._save()

    def _give_up(self, error: HeadwaterError) -> None:
        text = advised(error, self.follow)
        self.job.mark("refused", text)
        self._log.error(
            about(self.follow.name, f"{text}. Waiting would not help: nothing is followed"),
            target=self.follow.name, error=type(error).__name__, exit_code=error.exit_code,
        )  # fmt: skip
        self._service.give_up(error.exit_code)

    def _failed(self, error: Exception) -> float:
        text = advised(error, self.follow)
        failures = self.job.failed(text)
        if not isinstance(error, FetchError):  # a host that is away is no news, but this somebody has to look at
            self.job.mark("refused", text)
        target = self.follow.name
        self._meters.polls.add(target=target, result="failed")
        self._meters.failures.add(target=target, error=type(error).__name__)
        rest = float(getattr(error, "retry_after", None) or 0.0)
        wait = self._schedule.after_failure(self.interval, failures, rest)
        self._log.warning(
            about(target, f"{text}; the next attempt is in {wait:.0f} s"),
            target=target, error=type(error).__name__, failures=failures, wait=round(wait, 1),
        )  # fmt: skip
        self._record.last_error, self._record.failures = text, failures
        self._record.last_success = self.job.last_success or self._record.last_success
        self._save()
        self._show_staleness()
        return wait

    def _succeeded(self, outcome: Outcome | None, before: tuple[int, int]) -> None:
        failed, target = self.job.failure is not None or self._record.failures, self.follow.name
        self.job.succeeded(good_for(self.interval))
        self.job.mark("refused", None)
        changed = outcome is not None and outcome.plan.way is not Way.NOTHING
        self._meters.polls.add(target=target, result="changed" if changed else "unchanged")
        if failed:
            self._log.info(f"{target}: polls succeed again", target=target)
        for note in self._poller.health.notes if outcome is None else outcome.notes:
            self._log.warning(about(target, note), target=target)
        if outcome is not None:
            self._tell_of(outcome, before)
        if changed and outcome is not None:
            for told in self._hooks:
                told.changes.add(self._noted.keys)
            same = [name for name, position in self._record.told.items() if position == outcome.after]
            for name in same:  # brought back, not moved: hooks are to look again
                del self._record.told[name]
            self._meters.planned(target, outcome.plan)
        self._show_staleness()
        if failed or outcome is not None or not self._saved or self._record.rests != self._poller.health.dump():
            self._record.last_success = self._now()
            self._record.last_error, self._record.failures = None, 0
            self._save()
        elif self._place is not None:
            now = self._now()
            with contextlib.suppress(OSError):
                os.utime(self._place, (now, now))  # a poll that found nothing costs no write

    def _tell_of(self, outcome: Outcome, before: tuple[int, int]) -> None:
        target = self.follow.name
        names = outcome.changes.overwritten
        for name in names[:MOST_TOLD]:
            self._log.warning(f"{target}: overwrote {name}", target=target, path=name)
        if len(names) > MOST_TOLD:
            self._log.warning(f"{target}: overwrote {len(names) - MOST_TOLD:,} more", target=target)
        if outcome.met:
            self._log.info(_trusted(outcome, target), target=target)
        state = self._poller.state
        if state is not None:
            self._show(state)
        if outcome.plan.way is Way.NOTHING:
            return
        if outcome.holds_none:
            parts = ", ".join(outcome.parts)
            self._log.warning(f"{target}: no record is in the parts {parts}; the copy is empty", target=target)
        requests, received = (
            after - was
            for after, was in zip((self._poller.fetcher.requests, self._poller.fetcher.received), before, strict=True)
        )
        start = "nothing" if outcome.before is None else f"version {outcome.before[1]}"
        changes = outcome.changes
        self._log.info(
            f"{target}: from {start} to {outcome.dataset} version {outcome.after[1]} by {outcome.plan.way} "
            f"({outcome.plan.reason}): {changes.written:,} written, {changes.deleted:,} deleted, {size(received)} in "
            f"{count(requests, 'request')}",
            target=target, dataset=outcome.dataset, epoch=outcome.after[0], version=outcome.after[1],
            way=outcome.plan.way, reason=outcome.plan.reason, written=changes.written, deleted=changes.deleted,
            received=received, requests=requests,
        )  # fmt: skip

    def _show(self, state: State) -> None:
        self.job.status = f"{state.dataset} version {state.version}"

    def _show_staleness(self) -> None:
        state = self._poller.state
        if state is None:
            return
        found = state.staleness(int(self._now()), self.follow.options.max_staleness)
        if found is None:
            self.job.mark("stale", None)
            if self._stale is not None:
                self._log.info(f"{self.follow.name}: what is held is no longer stale", target=self.follow.name)
            self._stale = None
        else:
            stale, since = found
            text = f"what is held is stale since {moment(since)}: {stale.because}"
            self.job.mark("stale", text)
            if stale is not self._stale:
                self._log.warning(f"{self.follow.name}: {text}", target=self.follow.name, stale=stale)
            self._stale = stale

    def _is_due(self, told: _Told) -> bool:
        """Whether a hook does not know yet what is held."""
        state = self._poller.state
        return state is not None and self._record.told.get(told.hook.name) != state.position

    def _tell(self, told: _Told) -> None:
        state, hook, target = self._poller.state, told.hook, self.follow.name
        assert state is not None
        event = Event(
            dataset=state.dataset,
            kind=state.kind,
            url=shown(self.follow.url),
            target=target,
            position=state.position,
            previous=self._record.told.get(hook.name),
            changes=told.changes.named(state.kind),
        )
        try:
            hook.tell(event, self.job.check)
        except (HookFailed, OSError) as error:
            told.failures += 1
            wait = pause(told.failures, self._random, first=_FIRST_RETRY, longest=LONGEST)
            told.due = self._clock() + wait
            self._meters.hooks.add(target=target, hook=hook.name, result="failed")
            self.job.mark(hook.name, str(error))
            self._log.error(
                about(target, f"{error}, in {wait:.0f} s"),
                target=target,
                hook=hook.name,
                version=state.version,
                wait=round(wait, 1),
            )
            return
        told.failures, told.due, told.changes = 0, float("-inf"), Changes(known=True)
        self.job.mark(hook.name, None)
        self._meters.hooks.add(target=target, hook=hook.name, result="done")
        self._record.told[hook.name] = state.position
        self._save()

    def _save(self) -> None:
        self._saved, self._record.rests = True, self._poller.health.dump()
        if self._place is not None:
            try:
                records.write(self._place, self._record)
            except TargetError as error:
                self._log.warning(str(error), target=self.follow.name)


def advised(error: Exception, follow: Follow) -> str:
    """What an error says, with whole commands where it advises some: a log tells of many targets."""
    words = shlex.join([where(follow.url), follow.name])
    return _ADVICE.sub(lambda found: f"`{found[1]} {words}`", str(error) or type(error).__name__)


def _trusted(outcome: Outcome, target: str) -> str:
    from puller.wire.keyset import parse_key_set

    if not outcome.pins.key_set:
        return f"{target}: not signed: whoever can write to the host, or stands between, can change the data"
    roots = " ".join(map(str, parse_key_set(outcome.pins.key_set)[0].roots))
    how = "signed under the key given" if outcome.pins.given else "trusts from now on the key that it met first"
    return f"{target}: {how}: {roots}"

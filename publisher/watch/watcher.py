"""One watched source: waits for changes, publishes them, keeps HEAD from expiring and the store from growing."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from publisher.publish import COMMIT, Options, Outcome, publish
from publisher.sources.kept import Kept
from publisher.watch.schedule import Chore, Schedule, Times, nears_expiry
from puller.errors import HeadwaterError, Refused, SourceError, UsageError
from puller.service.job import Job, Stopped
from puller.service.log import about

if TYPE_CHECKING:
    from publisher.keys import Keyring
    from publisher.sources.base import Source
    from publisher.watch.meters import Meters
    from publisher.watch.notices import Notices
    from puller.service.log import Log
    from puller.service.process import Service
    from puller.stores.base import Store
    from puller.wire.head import Head
    from puller.wire.rows import Schema

QUICKEST = 0.01
"""Seconds that a turn takes at least."""
PATIENCE = 3
"""Attempts that may fail in a row before a source counts as broken."""
COLLECT_EVERY, REFRESH_EVERY = 3600.0, 30.0
"""Seconds between garbage collections, and between attempts to refresh a HEAD that nears its expiry."""


@dataclass(frozen=True)
class Task:
    """What is published where, and how.

    `open_source` is given the dataset's name, its schema, and what is kept of a folder; `notices` begins to follow the
    source's signs of change, and is given whom to warn. Both are called in the job's thread.
    """

    source: str
    dest: str
    name: str
    """The dataset's, where one is created."""
    options: Options
    times: Times
    open_source: Callable[[str, Schema, Kept], Source]
    open_store: Callable[[], Store]
    notices: Callable[[Callable[[str], None]], Notices]
    describe: Callable[[Outcome], tuple[dict[str, Any], str]]
    """What is logged of a version: fields, and a text."""
    keyring: Keyring | None


class Watcher:
    """Publishes one source for as long as its job runs. Whatever fails is told once, and tried again."""

    def __init__(
        self,
        task: Task,
        service: Service,
        meters: Meters,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.task = task
        self.job = Job(f"{task.source} -> {task.dest}", self._run)
        self._service = service
        self._log: Log = service.log
        self._meters = meters
        self._label: dict[str, Any] = {"job": self.job.name}
        self._clock, self._now = clock, now
        begun = clock()
        self._schedule = Schedule(task.times, begun, jitter)
        self._collects = Chore(COLLECT_EVERY, begun, jitter)
        self._refreshes = Chore(REFRESH_EVERY, begun - REFRESH_EVERY, jitter)
        self._collector: threading.Thread | None = None
        self._kept = Kept()
        self._head: Head | None = None
        self._store: Store | None = None
        self._told = ""
        self.error: UsageError | None = None
        """Why the job gave up: what it was told to do never worked, and never will."""

    def _run(self, _: Job) -> None:
        notices = self.task.notices(self._log.warning)
        try:
            while self.error is None:
                self._turn(notices)
        finally:
            notices.close()
            self._kept.flush()

    def _turn(self, notices: Notices) -> None:
        """Look for signs of change, do what is due, and wait a little."""
        noticed = notices.look()
        if noticed is not None:
            self._schedule.noticed(*noticed)
        if self._schedule.due_in(self._clock()) <= 0:
            self._attempt()
        elif self._head is not None:
            self._keep_fresh(self._head)
            self._collect(self._head)
        rest = min(max(self._schedule.due_in(self._clock()), QUICKEST), self.task.times.tick)
        if self.job.wait(rest):
            self._schedule.hurry(self._clock())

    def _attempt(self) -> None:
        """Publish what may have changed; what fails stays noted as such."""
        paths = self._kept.paths = self._schedule.begin(self._clock())
        self._meters.attempts.add(**self._label)
        try:
            outcome = self._publish()
        except Stopped:
            raise
        except UsageError as error:
            if self._head is None:
                self._give_up(error)
            else:
                self._failed(error, paths, source=True)
        except Refused as error:
            self._schedule.refused(paths)
            self._tell("refused", error)
            self.job.mark("source", str(error))
        except (SourceError, UnicodeError) as error:
            self._failed(error, paths, source=True)
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, other sources go on
            if not isinstance(error, HeadwaterError | OSError | MemoryError):
                self._log.debug(traceback.format_exc(), **self._label)
            self._failed(error, paths, source=False)
        else:
            self._succeeded(outcome, full=paths is None)

    def _publish(self) -> Outcome:
        task = self.task
        if self._store is None:
            self._store = task.open_store()
        before = self._store.written
        options = replace(task.options, existing=self._head is not None)
        with contextlib.ExitStack() as stack:

            def progress(what: str, _done: int, _total: int) -> None:
                self.job.check()  # nothing is published yet: the moment to stop, if that is asked for
                if what == COMMIT:
                    stack.enter_context(self._service.step(self.job))

            outcome = publish(
                self._store,
                lambda name, schema: task.open_source(name, schema, self._kept),
                task.name,
                options,
                progress=progress,
                now=self._now,
                keyring=task.keyring,
            )
        outcome.written -= before
        return outcome

    def _give_up(self, error: UsageError) -> None:
        self.error = error
        self.job.mark("usage", str(error))
        self._tell("gave up", error)

    def _failed(self, error: Exception, paths: set[bytes] | None, *, source: bool) -> None:
        wait = self._schedule.failed(self._clock(), paths, source=source)
        self._store = None
        self.job.failed(error)
        if source and self.job.failure is not None and self.job.failure.count >= PATIENCE:
            self.job.mark("source", str(error))
        self._tell("failed", error, f"; the next attempt is in {wait:.1f} s")

    def _tell(self, what: str, error: Exception, more: str = "") -> None:
        """Count a failure; say it once, until something else happens."""
        text = str(error) or type(error).__name__
        self._meters.failures.add(reason=type(error).__name__, **self._label)
        tell = self._log.debug if text == self._told else self._log.warning
        self._told = text
        tell(about(self.task.source, f"{text}{more}"), event=what, error=type(error).__name__, **self._label)

    def _succeeded(self, outcome: Outcome, *, full: bool) -> None:
        times, head = self.task.times, outcome.head
        if self._told:
            self._log.info(f"{self.task.source}: it works again", event="recovered", **self._label)
            self._told = ""
        self._schedule.succeeded()
        if self._head is None and not outcome.changed:
            text = (
                f"watches {self.task.source}, publishes to {self.task.dest}: nothing new since version {head.version}"
            )
            self._log.info(text, event="watching", version=head.version, **self._label)
        self._seen(head)
        if full:
            self._meters.looked_at_everything(self.job.name, self._clock)
        self._meters.last_success.set(self._now(), **self._label)
        if outcome.changed:
            self._published(outcome)
        elif outcome.settings_changed:
            fields, text = self.task.describe(outcome)
            self._log.info(text, event="settings", **self._label, **fields)
        self.job.mark("source", None)
        self.job.status = f"version {head.version}"
        self.job.succeeded(times.good_for)

    def _published(self, outcome: Outcome) -> None:
        self._meters.publishes.add(**self._label)
        self._meters.changes.add(outcome.added + outcome.updated + outcome.deleted, **self._label)
        self._meters.written.add(outcome.written, **self._label)
        fields, text = self.task.describe(outcome)
        self._log.info(text.replace("\n", ";"), event="published", **self._label, **fields)
        for warning in outcome.report.warnings:
            self._log.warning(about(self.task.source, warning), **self._label)
        for name, reason in outcome.report.skipped:
            self._log.warning(f"{self.task.source}: skipped {name}: {reason}", **self._label)

    def _seen(self, head: Head) -> None:
        self._head = head
        self._meters.version.set(head.version, **self._label)
        self._meters.epoch.set(head.epoch, **self._label)

    def _keep_fresh(self, head: Head) -> None:
        """Sign HEAD again where it nears its expiry, unless somebody else did."""
        if not nears_expiry(head.time, head.expires, self._now()) or not self._refreshes.is_due(self._clock()):
            return
        from publisher.epochs import refresh
        from publisher.keys import Keyring
        from publisher.published import read_head

        try:
            store = self.task.open_store()
            newest = read_head(store)[0]
            if newest is not None and nears_expiry(newest.time, newest.expires, self._now()):
                with self._service.step(self.job):
                    newest = refresh(store, self.task.keyring or Keyring(None), now=self._now).head
                self._meters.refreshes.add(**self._label)
                self._log.info(f"{self.task.dest}: HEAD was signed again", event="refreshed", expires=newest.expires)
            if newest is not None:
                self._seen(newest)
            self.job.mark("refresh", None)
        except (HeadwaterError, OSError) as error:
            self.job.mark("refresh", f"HEAD could not be signed again before it expires: {error}")
            self._tell("refresh failed", error)

    def _collect(self, head: Head) -> None:
        """Collect garbage now and then, if the dataset says what is kept: in a thread beside, whatever comes of it."""
        if head.keep is None or not self._collects.is_due(self._clock()):
            return
        if self._collector is None or not self._collector.is_alive():
            self._collector = threading.Thread(target=self._gather, name="collect", daemon=True)
            self._collector.start()

    def _gather(self) -> None:
        from publisher.build import make_pool
        from publisher.gc import collect

        try:
            store = self.task.open_store()
            with make_pool(store.threads) as pool:
                outcome = collect(store, pool, secret=self.task.options.secret, progress=lambda *_: self.job.check())
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - publishing goes on, whatever is wrong here
            self._meters.collections_failed.add(**self._label)
            self._log.warning(about(self.task.dest, f"garbage was not collected: {error}"), event="gc", **self._label)
        else:
            self._meters.collections.add(**self._label)
            self._meters.collected.add(outcome.bytes_removed, **self._label)
            self._log.info(
                f"{self.task.dest}: collected {outcome.heads_removed} versions and {outcome.files_removed} files",
                event="gc",
                bytes_removed=outcome.bytes_removed,
                **self._label,
            )

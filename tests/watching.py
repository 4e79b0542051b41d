"""`publisher watch` in this process, in a thread, with its clock and chance handed in; and as a process."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Self

from publisher.commands.watch import task_of, watch_command
from publisher.watch.meters import Meters
from publisher.watch.watcher import Watcher
from puller.service.job import Stopped
from puller.service.log import Log
from puller.service.notify import Notifier
from puller.service.process import Service
from puller.service.settings import Settings
from tests.states import read_head

PATIENCE = 30.0


def until(true: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until something is true."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


class Watching:
    """One source that is watched. `log` is what it said."""

    def __init__(self, *arguments: object, task: dict | None = None, **injected) -> None:
        context = watch_command.make_context("watch", [str(argument) for argument in arguments])
        (job,) = context.params["jobs"]
        self.service = Service("test", Settings(), Notifier({}))
        self._stream = io.StringIO()
        self.service.log = Log("text", "debug", self._stream)
        self.watcher = Watcher(
            replace(task_of(job), **(task or {})), self.service, Meters(self.service.registry), **injected
        )
        begin = self.watcher.task.notices
        self.watcher.task = replace(self.watcher.task, notices=lambda warn: self._noticing(begin(warn)))
        self._thread = threading.Thread(target=self._run)

    def _noticing(self, notices):
        self.notices = notices
        return notices

    def _run(self) -> None:
        with suppress(Stopped):
            self.watcher.job.run(self.watcher.job)

    @property
    def dest(self) -> str:
        return self.watcher.task.dest

    @property
    def log(self) -> str:
        return self._stream.getvalue()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.service.registry.text().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"headwater_{name}{{"))

    @property
    def version(self) -> int:
        return int(self.metric("version"))

    def published(self, version: int) -> None:
        """Wait until that version is published, as the watcher and HEAD have it."""
        until(lambda: self.version >= version or not self._thread.is_alive())
        assert self.version == version == read_head(self.dest).version, self.log

    def rested(self) -> None:
        """Wait until an attempt ended and nothing is waiting for one."""
        until(lambda: self.metric("attempts_total") and not self.watcher._schedule.is_dirty)

    def still(self, seconds: float = 0.2, patience: float = PATIENCE) -> None:
        """Wait until nothing was tried for so long."""
        end, attempts = time.monotonic() + patience, -1.0
        while attempts != (attempts := self.metric("attempts_total")) or self.watcher._schedule.is_dirty:
            assert time.monotonic() < end, self.log
            time.sleep(seconds)

    def stop(self) -> None:
        self.watcher.job.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def watching_process(*arguments: object, **options) -> Iterator[subprocess.Popen]:
    """The command as a process, which is killed in the end if it is still there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "publisher.cli", "watch", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()

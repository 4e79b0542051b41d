"""The process of a service: starts jobs, hears signals, answers probes, keeps systemd informed, and stops in time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from puller.errors import TargetError
from puller.service import metrics
from puller.service.job import Job, Stopped
from puller.service.log import Log, about
from puller.service.metrics import Registry
from puller.service.notify import Notifier
from puller.service.web import Server

if TYPE_CHECKING:
    from puller.service.settings import Settings

TICK = 60.0
"""Seconds between looks at the jobs where nothing turns: a job may become red by doing nothing."""
WRITTEN_EVERY = 15.0
"""Seconds between writings of the metrics file."""
GRACE = 0.8
"""Seconds that jobs have to end once they were asked to, unless they are in a step that must not be broken off."""
LONGEST_STEP = 60.0
"""Seconds that such a step is waited for. It may be killed at any time: the next start finishes it, or begins it anew."""
_TEXT = "text/plain; charset=utf-8"


class Service:
    """Runs jobs until it is stopped by SIGTERM or SIGINT; SIGHUP hurries them. Use it from the main thread.

    Make metrics in `registry` and write to `log` before and while it runs. A job that raises something else than
    Stopped ends the process with 1, after its traceback was logged: whoever started it starts it anew.
    """

    def __init__(self, name: str, settings: Settings, notifier: Notifier | None = None) -> None:
        self.name = name
        self.settings = settings
        self.log = Log(settings.log_format, settings.level)
        self.registry = Registry()
        self.jobs: list[Job] = []
        self.busy: set[str] = set()
        """Names of jobs in a step that is not to be broken off."""
        self._notifier = notifier or Notifier()
        self._reads, self._writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.abandoned = False
        """Whether a job was still at work when `run` returned: end the process at once then, it must not wait for it."""
        self._crashed = False
        self._gave_up: int | None = None
        self._ended, self._lock = 0, threading.Lock()
        self._told = ""
        self._ready = False
        from importlib.metadata import version

        self.registry.gauge("headwater_build_info", "Always 1; the version is a label.", ["version"]).set(
            1, version=version("headwater")
        )
        self.registry.gauge("headwater_start_time_seconds", "When the process began, in Unix seconds.").set(time.time())
        healthy = self.registry.gauge(
            "headwater_healthy", "1 if the job is well, 0 if /healthz is red because of it.", ["job"]
        )
        self._show_health: Callable[[Job], None] = lambda job: healthy.follow(
            lambda: int(not job.problems()), job=job.name
        )

    def main(self, jobs: Sequence[Job]) -> int:
        """What a command does: `run`, and if a job is then still at work, end the process without waiting for it."""
        status = self.run(jobs)
        if self.abandoned:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)
        return status

    def run(self, jobs: Sequence[Job]) -> int:
        """Run all jobs, each in a thread; the exit code. Raises UsageError where it cannot listen."""
        self.jobs = list(jobs)
        for job in jobs:
            job.on_change = self._ring
            self._show_health(job)
        server = None if self.settings.listen is None else Server(self.settings.listen, self._pages())
        with self._signals():
            try:
                if server is not None:
                    self.log.info(f"listening on port {server.port}", port=server.port)
                threads = [threading.Thread(target=self._run, args=(job,), name=job.name, daemon=True) for job in jobs]
                for thread in threads:
                    thread.start()
                self._supervise(threads)
                return self._end(threads)
            finally:
                if server is not None:
                    server.stop()

    @contextlib.contextmanager
    def step(self, job: Job) -> Iterator[None]:
        """A step of a job that the end of the process waits for."""
        self.busy.add(job.name)
        try:
            yield
        finally:
            self.busy.discard(job.name)

    def give_up(self, code: int) -> None:
        """End the process with this exit code: a job cannot do what it was told to, however long it waits."""
        self._gave_up = code
        self._ring()

    def health(self) -> tuple[bool, str]:
        """Whether all jobs are well, and a line for each."""
        lines, well = [], True
        for job in self.jobs:
            problems = job.problems()
            well = well and not problems
            lines.append(f"{about(job.name, '; '.join(problems) if problems else f'ok, {job.status}')}\n")
        return well, "".join(lines)

    def _pages(self) -> dict[str, Callable[[], tuple[int, str, str]]]:
        def healthz() -> tuple[int, str, str]:
            well, text = self.health()
            return 200 if well else 503, _TEXT, text

        def livez() -> tuple[int, str, str]:
            hung = [job.name for job in self.jobs if not job.alive]
            return 503 if hung else 200, _TEXT, "".join(f"{name}: hangs\n" for name in hung) or "ok\n"

        return {
            "/healthz": healthz,
            "/livez": livez,
            "/metrics": lambda: (200, metrics.CONTENT_TYPE, self.registry.text()),
        }

    def _run(self, job: Job) -> None:
        try:
            job.run(job)
        except Stopped:
            pass
        except BaseException:  # noqa: BLE001 - a fault of ours: it is told, and the process is started anew
            self._crashed = True
            self.log.error(f"{job.name}: {traceback.format_exc()}", job=job.name)
        finally:
            with self._lock:
                self._ended += 1  # its thread is still alive when the bell rings
            self._ring()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals arrive as bytes in a pipe: a handler that took a lock could meet itself."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        old = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _supervise(self, threads: list[threading.Thread]) -> None:
        """Until a signal, or the end of the last job. It sleeps while nothing turns."""
        every = [TICK]
        if self._notifier.watchdog is not None:
            every.append(self._notifier.watchdog / 3)
        if self.settings.metrics_file is not None:
            every.append(WRITTEN_EVERY)
        while self._ended < len(threads) and not self._crashed and self._gave_up is None:
            self._tell_systemd()
            self._write_metrics()
            select.select([self._reads], [], [], min(every))
            heard = self._heard()
            if heard & {signal.SIGTERM, signal.SIGINT}:
                return
            if signal.SIGHUP in heard:
                for job in self.jobs:
                    job.hurry()

    def _ring(self) -> None:
        """Wake `_supervise`; a pipe that is full will do so anyway."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writes, b"\0")

    def _heard(self) -> set[int]:
        with contextlib.suppress(BlockingIOError):
            return set(os.read(self._reads, 4096))
        return set()

    def _tell_systemd(self) -> None:
        _, text = self.health()
        if not self._ready and all(job.ready for job in self.jobs):
            self._ready = True
            self._notifier.send("READY=1")
        status = f"STATUS={text.strip()}"
        if status != self._told:
            self._told = status
            self._notifier.send(status)
        if self._notifier.watchdog is not None and all(job.alive for job in self.jobs):
            self._notifier.send("WATCHDOG=1")

    def _write_metrics(self) -> None:
        if self.settings.metrics_file is not None:
            try:
                write_atomically(self.settings.metrics_file, self.registry.text())
            except TargetError as error:
                self.log.warning(str(error))

    def _end(self, threads: list[threading.Thread]) -> int:
        """Ask all jobs to end, and wait as long as they may take; the process may end with what is left of them."""
        self._notifier.send("STOPPING=1")
        for job in self.jobs:
            job.stop()
        begun = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            waited = time.monotonic() - begun
            if waited > (LONGEST_STEP if self.busy else GRACE):
                self.abandoned = True
                break
            time.sleep(0.01)
        self._write_metrics()
        self.log.info("stopped")
        return 1 if self._crashed else self._gave_up or 0


def write_atomically(path: str, text: str) -> None:
    """Put a text file in the place of the one at `path`, for readers that may come at any time. Raises TargetError."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.tmp")  # always the same, so that SIGKILL leaves one at most
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise TargetError(f"{path} cannot be written: {error.strerror}") from error

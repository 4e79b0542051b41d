"""Events of a folder, by watchdog: which paths may have changed. They are hints: some may be missing, or come twice."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from publisher.watch.notices import Lost, Noticed

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent

MOST = 1 << 17
"""Paths that are held; beyond, everything is looked at."""


OVERFLOW = "overflow"


class NoEvents(Exception):
    """The system does not tell of this folder's changes; the text says why."""


class FolderEvents:
    """Hears of changes below a folder. Raises NoEvents where there is nothing to hear."""

    def __init__(self, root: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._paths: set[bytes] | None = set()
        self._at: float | None = None
        self._root = os.path.realpath(root)
        self._prefix = os.fsencode(self._root).rstrip(b"/") + b"/"
        self._observer = _observe(self._root, self)

    def look(self) -> Noticed | None:
        # an emitter ends when its folder is deleted
        if not self._observer.is_alive() or not all(one.is_alive() for one in self._observer.emitters):
            raise Lost
        with self._lock:
            if self._at is None:
                return None
            noticed = Noticed(self._at, self._paths)
            self._paths, self._at = set(), None
            return noticed

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()

    def dispatch(self, event: FileSystemEvent) -> None:
        """Take up an event; called from watchdog's thread."""
        if event.event_type == OVERFLOW:
            self.everything()
            return
        for path in (event.src_path, event.dest_path):
            if path:
                self._changed(os.fsencode(path))

    def everything(self) -> None:
        """Events were lost: everything may have changed."""
        with self._lock:
            self._paths, self._at = None, self._clock()

    def _changed(self, path: bytes) -> None:
        if path.startswith(self._prefix):
            with self._lock:
                self._at = self._clock()
                if self._paths is not None:
                    self._paths.add(path[len(self._prefix) :])
                    self._paths = self._paths if len(self._paths) <= MOST else None


def _observe(root: str, handler: Any) -> Any:
    """A running observer; every folder is watched once it is returned."""
    if not sys.platform.startswith("linux"):
        raise NoEvents("events of folders are followed on Linux only")
    try:
        from watchdog import events
        from watchdog.observers.api import BaseObserver
        from watchdog.observers.inotify import InotifyEmitter
        from watchdog.observers.inotify_c import InotifyFD
    except ImportError as error:
        raise NoEvents("watchdog is not installed (pip install 'headwater[watch]')") from error

    class Overflowed(events.FileSystemEvent):
        event_type = OVERFLOW

    class Emitter(InotifyEmitter):
        """Tells of overflows as well, once all folders are watched again."""

        def on_thread_start(self) -> None:
            super().on_thread_start()
            group: Any = self._inotify
            rebuild = group.on_queue_overflow

            def overflowed() -> None:
                rebuild()
                self.queue_event(Overflowed(root))

            group.on_queue_overflow = overflowed

    class Observer(BaseObserver):
        def __init__(self) -> None:
            self._descriptor = InotifyFD()
            self._descriptor.start()
            super().__init__(Emitter, inotify_fd=self._descriptor)

        def on_thread_stop(self) -> None:
            super().on_thread_stop()
            self._descriptor.stop()
            self._descriptor.join()

    kinds = [
        *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileAttribEvent, events.FileClosedEvent),
        *(events.FileDeletedEvent, events.FileMovedEvent),
        *(events.DirCreatedEvent, events.DirDeletedEvent, events.DirMovedEvent, Overflowed),
    ]
    observer = Observer()
    try:
        observer.schedule(handler, root, recursive=True, event_filter=kinds)
        observer.start()
    except FileNotFoundError as error:
        observer.stop()
        raise Lost from error
    except OSError as error:
        observer.stop()
        raise NoEvents(f"{error.strerror or error} (fs.inotify.max_user_watches may be too low)") from error
    return observer

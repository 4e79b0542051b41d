"""The log of a service: a line for each event on stderr, as text or as JSON."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import IO, Any

FORMATS = ("text", "json")
DEBUG, INFO, WARNING, ERROR = LEVELS = ("debug", "info", "warning", "error")


def about(name: str, text: str) -> str:
    """A text with the name of what it is about before it, which many errors begin with by themselves."""
    return text if text.startswith((f"{name}:", f"{name} ", f"{name}/")) else f"{name}: {text}"


class Log:
    """Writes events of a level and above. A log that cannot be written stops nothing. Threads may share it.

    Text has a time unless the journal, which notes one itself, reads it; JSON has the members `time`, `level`,
    `message` and those of the event.
    """

    def __init__(
        self,
        form: str = "text",
        level: str = INFO,
        stream: IO[str] | None = None,
        now: Callable[[], float] = time.time,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._json = form == "json"
        self._level = LEVELS.index(level)
        self._stream = stream
        self._now = now
        self._timed = "JOURNAL_STREAM" not in environment
        self._lock = threading.Lock()

    def debug(self, message: str, **fields: Any) -> None:
        """What only somebody who looks for a fault wants to know."""
        self.tell(DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """What happened, in order."""
        self.tell(INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """What went wrong and will be tried again."""
        self.tell(WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """What somebody has to look after."""
        self.tell(ERROR, message, fields)

    def tell(self, level: str, message: str, fields: Mapping[str, Any]) -> None:
        """Write an event; `fields` say the same for programs, and only JSON has them."""
        if LEVELS.index(level) < self._level:
            return
        line = self._as_json(level, message, fields) if self._json else self._as_text(level, message)
        stream = self._stream or sys.stderr
        try:
            with self._lock:
                stream.write(line)
                stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more; the work goes on

    def _as_json(self, level: str, message: str, fields: Mapping[str, Any]) -> str:
        from puller.console import json_line
        from puller.passwords import masked

        return f"{json_line({'time': self._time(), 'level': level, 'message': masked(message), **fields})}\n"

    def _as_text(self, level: str, message: str) -> str:
        from puller.console import printable

        time_ = f"{self._time()} " if self._timed else ""
        return f"{time_}{'' if level == INFO else f'{level}: '}{printable(message)}\n"

    def _time(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""What runs after a change: a command, a web hook. Told of each version that is held at least once, also after restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from puller.console import json_line
from puller.errors import HeadwaterError, UsageError
from puller.fetch import shown, split
from puller.service.notify import without_systemd

TIMEOUT = 600
"""Seconds that a command has."""
WEB_TIMEOUT = 30.0
MOST_POSTED = 10_000
"""Changes that a web hook is sent; of more, only their number."""
_MOMENT = 0.2


class HookFailed(HeadwaterError):
    """A hook did not take what it was told; it will be told again."""


@dataclass(frozen=True)
class Event:
    """That a target holds a version. `previous` is the position that the hook was told of before, None if that is not
    known; `changes` are the keys that changed since, None where they are not known: anything may have.
    """

    dataset: str
    kind: str
    url: str
    target: str
    position: tuple[int, int]
    previous: tuple[int, int] | None
    changes: list[dict[str, Any]] | None


class Hook(Protocol):
    """Somebody who is told of events."""

    name: str

    def tell(self, event: Event, check: Callable[[], None]) -> None:
        """Tell of an event; again after a failure, so it has to be idempotent. Raises HookFailed. `check` is called now
        and then and may raise to break off.
        """
        ...


class Command:
    """Runs a command in a shell: what changed on stdin, a JSON object a line, and the rest in its environment."""

    name = "exec"

    def __init__(self, command: str, timeout: float = TIMEOUT) -> None:
        self._command = command
        self._timeout = timeout

    def tell(self, event: Event, check: Callable[[], None]) -> None:
        with tempfile.TemporaryFile() as stdin:
            for change in event.changes or ():
                stdin.write(json_line(change).encode() + b"\n")
            stdin.seek(0)
            process = subprocess.Popen(  # noqa: S602 - the user's own command
                self._command, shell=True, stdin=stdin, env=self._environment(event), start_new_session=True
            )
        try:
            status = self._wait(process, check)
        except BaseException:
            _end(process)
            raise
        if status:
            how = f"with {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            raise HookFailed(f"the command {self._command!r} ended {how}; it will be run again")

    def _wait(self, process: subprocess.Popen[bytes], check: Callable[[], None]) -> int:
        end = time.monotonic() + self._timeout
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_MOMENT)
            check()
            if time.monotonic() > end:
                raise HookFailed(
                    f"the command {self._command!r} did not end within {self._timeout:.0f} s; it was killed and will be run again"
                )

    def _environment(self, event: Event) -> dict[str, str]:
        before = ("", "") if event.previous is None else event.previous
        return without_systemd(os.environ) | {
            "HEADWATER_NAME": event.dataset,
            "HEADWATER_EPOCH": str(event.position[0]),
            "HEADWATER_VERSION": str(event.position[1]),
            "HEADWATER_PREVIOUS_EPOCH": str(before[0]),
            "HEADWATER_PREVIOUS_VERSION": str(before[1]),
            "HEADWATER_CHANGES": "unknown" if event.changes is None else str(len(event.changes)),
            "HEADWATER_TARGET": event.target,
            "HEADWATER_URL": event.url,
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_MOMENT)
            return


class WebHook:
    """Posts a JSON object to a URL; any answer from 200 to 299 will do."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        """Raises UsageError for what is no web address."""
        if split(url).scheme not in ("http", "https"):
            raise UsageError(f"{shown(url)} is no address to post to: give one with http:// or https://")
        self._url = url

    def tell(self, event: Event, check: Callable[[], None]) -> None:
        changes = event.changes
        body = {
            "dataset": event.dataset,
            "kind": event.kind,
            "epoch": event.position[0],
            "version": event.position[1],
            "previous": None
            if event.previous is None
            else dict(zip(("epoch", "version"), event.previous, strict=True)),
            "target": event.target,
            "url": event.url,
            "changed": None if changes is None else len(changes),
            "changes": None if changes is None or len(changes) > MOST_POSTED else changes,
        }
        status = self._post(json_line(body).encode())
        if not 200 <= status <= 299:
            raise HookFailed(f"the web hook {shown(self._url)} answers {status}; it will be told again")

    def _post(self, body: bytes) -> int:
        """The status of the answer; redirects are not followed. Raises HookFailed."""
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import HTTPRedirectHandler, Request, build_opener

        from puller.connections import authorization

        class Unmoved(HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                """Follow none: a post would become a get."""

        headers = {"Content-Type": "application/json", "User-Agent": "headwater"} | authorization(self._url)
        try:
            request = Request(shown(self._url), body, headers, method="POST")  # noqa: S310 - the user's own URL
            with build_opener(Unmoved).open(request, timeout=WEB_TIMEOUT) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code
        except (HTTPException, OSError, ValueError) as error:
            raise HookFailed(
                f"the web hook {shown(self._url)} cannot be reached ({_reason(error)}); it will be told again"
            ) from error


def _reason(error: Exception) -> str:
    """Why somebody cannot be reached, in the system's words where it has some."""
    cause = getattr(error, "reason", error)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return text[:1].lower() + text[1:]

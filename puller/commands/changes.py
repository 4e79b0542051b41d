"""`puller changes`: the change feed of a dataset as lines of JSON."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from puller.commands.options import given_keys, mirror_option, trust_option
from puller.console import EXIT_CODES, Console, Duration, console, count, secret_option

if TYPE_CHECKING:
    from puller.feed import Feed

_FLUSH = 1 << 18
"""Bytes of lines that are written at once, at most."""


class _Stopped(Exception):
    """SIGTERM came."""


class _Output:
    """Whole lines on standard output: SIGTERM ends the command between two writes, never in one."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0
        self._writing = self._stopped = False

    def catch(self) -> None:
        """Let SIGTERM end the command cleanly."""
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        if not self._writing:
            raise _Stopped

    def put(self, line: bytes) -> None:
        """Write a line, soon."""
        self._lines.append(line)
        self._size += len(line)
        if self._size > _FLUSH:
            self.write()

    def write(self, then: Callable[[], object] | None = None) -> None:
        """Write what there is, durably into a file, and do `then`."""
        lines, self._lines, self._size = self._lines, [], 0
        self._writing = True
        try:
            sys.stdout.buffer.write(b"".join(lines))
            sys.stdout.buffer.flush()
            if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
                os.fsync(sys.stdout.fileno())
            if then is not None:
                then()
        finally:
            self._writing = False
        if self._stopped:
            raise _Stopped


@click.command("changes", epilog=EXIT_CODES)
@click.argument("url")
@click.option(
    "--since",
    type=click.IntRange(0),
    metavar="N",
    help="Begin after version N, where FILE says nothing yet; without, with all records.",
)
@click.option(
    "--state",
    metavar="FILE",
    help="Remember in FILE how far the output got, and whom to trust: the next run goes on from there.",
)
@click.option(
    "--target",
    metavar="TARGET",
    help="Pull into TARGET, a folder or a database (SQLite, PostgreSQL), and tell old values, too.",
)
@click.option("--follow", is_flag=True, help="Go on for ever: wait for new versions, and tell them.")
@click.option(
    "--interval", type=Duration(), metavar="TIME", help="Time between polls (default: what the publisher says)."
)
@click.option(
    "--values",
    type=click.Choice(["none", "small", "all"]),
    default="small",
    show_default=True,
    help="Tell no values, those up to 1 MiB but no contents of files, or everything.",
)
@mirror_option
@trust_option
@click.option("--allow-expired", is_flag=True, help="Take an expired HEAD though nothing was told yet.")
@secret_option
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr how many keys each version changed.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")
@click.option("--json", "as_json", is_flag=True, help="End with an object about the error, too, if there is one.")
def changes_command(
    url: str,
    since: int | None,
    state: str | None,
    target: str | None,
    follow: bool,
    interval: int | None,
    values: str,
    mirrors: tuple[str, ...],
    trust: tuple[str, ...],
    allow_expired: bool,
    secret: str | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Print what changes in the dataset at URL, a JSON object a line, in order.

    Lines come in transitions: "change" lines in key order, with the key and the new value (null: it is gone), then a
    "commit" line with the version that is complete. A "reset" line means: forget everything, all records follow; it comes
    first without --since and with a new FILE, and where no changes lead to the newest version.

    With --state, a run goes on where the last one got to: FILE moves on after a commit line was written. What was written
    after the last commit that FILE knows is written again, so that applying all lines loses nothing, whatever was killed.

    Rows are objects, with "table" and "key"; paths come with type, size and hash; bytes are base64. A value that is not
    told is its size and hash. Old values are only known with --target; without --state, that begins with what TARGET holds.

    \b
    Examples:
      puller changes https://data.example.org/prices
      puller changes --since 41 https://data.example.org/prices
      puller changes --follow --state feed.json https://data.example.org/prices | ./index
      puller changes --target prices.db https://data.example.org/prices
    """
    from puller.errors import UsageError

    if target is not None and since is not None:
        raise UsageError("--since is not for --target: what TARGET holds says where to begin")
    if target is not None and values == "none":
        raise UsageError("--values none is not for --target, which fetches all values anyway")
    out, output = console(as_json, quiet, verbose), _Output()
    options: dict[str, Any] = {"follow": follow, "interval": interval, "allow_expired": allow_expired}
    options["warn"] = _silent if quiet else out.warn
    given = list(map(str, given_keys(trust)))
    if follow:
        output.catch()
    try:
        if target is None:
            from puller.feed import Feed

            with Feed(
                url,
                since=since,
                state=state,
                values=values,  # type: ignore[arg-type]
                trust=given,
                secret=secret,
                mirrors=mirrors,
                **options,
            ) as feed:
                _tell(feed, output, values, out)
        else:
            from puller.replica import Replica

            with (
                Replica(url, target, trust=given, secret=secret, mirrors=mirrors) as replica,
                replica.feed(state, anew=state is not None, **options) as feed,
            ):
                _tell(feed, output, values, out)
    except _Stopped:
        return 0
    return 0


def _tell(feed: Feed, output: _Output, values: str, out: Console) -> None:
    from puller.eventlines import line_of

    keys = 0
    for event in feed:
        output.put(line_of(event, feed.kind, contents=values == "all"))
        if event.type == "commit":
            output.write(then=feed.ack)
            out.detail(f"version {event.position[1]}: {count(keys, 'key')}")
            keys = 0
        elif event.type == "change":
            keys += 1


def _silent(_text: str) -> None:
    pass

"""What the commands of both packages print, and with which exit status: results, errors, progress."""

from __future__ import annotations

import contextlib
import gc
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from puller.errors import HeadwaterError, LocalEdits, Untrusted
from puller.passwords import masked
from puller.progress import Progress, silent

INTERRUPTED = 130
SHOWN = 20

EXIT_CODES = "Exit codes: 0 done; `puller --help` and `publisher --help` list the others, which all commands share."
EXIT_CODES_LISTED = """\b
Exit codes:
  0  done
  1  failed; the old state was kept
  2  the command line makes no sense
  3  refused: going on would lose something (a flag says it is meant)
  4  the host or the store is unavailable; try again later
  5  what was read breaks the format or its promises; nothing of it was used
  6  `verify` found differences, or what is held is stale: HEAD is expired, older than --max-staleness, or lags behind
 10  nothing was new (`pull` and `mirror` with `--exit-code` only)
  130  interrupted; the old state was kept
"""


class Console:
    """Results on stdout (text, or one JSON object), everything else on stderr. `level` is -1 quiet, 0, 1 verbose."""

    def __init__(self, *, as_json: bool, level: int) -> None:
        self.as_json = as_json
        self.level = level

    def result(self, text: str, **fields: Any) -> None:
        """The command's result."""
        if self.as_json:
            click.echo(json_line(fields))
        elif self.level >= 0:
            click.echo("\n".join(map(printable, text.split("\n"))))

    def warn(self, text: str) -> None:
        """Something the user should know, though the command went on; also with -q."""
        click.echo(f"warning: {printable(text)}", err=True)

    def warn_each(self, prefix: str, names: list[str]) -> None:
        """Warnings about many things: the first of them, and how many more there are."""
        for name in names[:SHOWN]:
            self.warn(f"{prefix}{name}")
        if len(names) > SHOWN:
            self.warn(f"{prefix}… and {len(names) - SHOWN:,} more (all of them with --json)")

    def detail(self, text: str) -> None:
        """What only -v shows."""
        if self.level > 0:
            click.echo(text, err=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback (what, done, total in bytes, 0 where unknown) that draws on a terminal and nowhere else."""
        if self.as_json or self.level < 0 or not sys.stderr.isatty():
            yield silent
            return
        from rich.console import Console as Terminal
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None)
            drawn = 0.0

            def update(what: str, done: int, total: int) -> None:
                nonlocal drawn
                if time.monotonic() - drawn > 0.1:
                    drawn = time.monotonic()
                    bar.update(task, description=what, completed=done, total=max(total, done) or None)

            yield update


def json_line(fields: dict[str, Any]) -> str:
    """One JSON object, for programs."""
    import msgspec

    return msgspec.json.encode(_clean(fields)).decode()


def _clean(value: Any) -> Any:
    """Texts without the lone surrogates that stand for bytes which are not UTF-8."""
    if isinstance(value, dict):
        return {name: _clean(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def printable(text: str) -> str:
    """Text from outside, made safe for a terminal: control characters are escaped, passwords in addresses left out."""
    text = masked(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def size(n: int) -> str:
    """A number of bytes for people."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def rows_of(records: int, kind: str) -> int:
    """How many records a user would count: the schema of a table is none."""
    return max(0, records - 1) if kind == "table" else records


def noun_of(kind: str) -> str:
    """What a record is for a user."""
    return {"table": "row", "files": "path"}.get(kind, "record")


def amount(records: int, kind: str) -> str:
    """Records as a user would count and call them: "714 rows"."""
    return count(rows_of(records, kind), noun_of(kind))


def count(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def run(main: click.Command, name: str) -> None:
    """Run a command: every error becomes a message on stderr (an object on stdout with --json) and its exit code."""
    as_json = "--json" in sys.argv[1:]
    gc.set_threshold(100_000, 50, 100)  # records come by the million and make no cycles
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        status = 2
        if as_json:
            click.echo(
                json_line({"error": "UsageError", "message": error.format_message(), "exit_code": 2, "names": []})
            )
        error.show()
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was there was kept", err=True)
        status = INTERRUPTED
    except HeadwaterError as error:
        status = error.exit_code
        names = error.names if isinstance(error, LocalEdits) else []
        reason = str(error.reason) if isinstance(error, Untrusted) else None
        _fail(str(error), type(error).__name__, status, as_json, names, reason)
    except BrokenPipeError:
        status = 1
    except UnicodeError as error:
        status = 2
        _fail(f"an argument is not UTF-8 text: {error}", "UsageError", status, as_json, [])
    except (OSError, MemoryError) as error:
        status = 1
        name = f" ({error.filename!r})" if isinstance(error, OSError) and error.filename else ""
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        _fail(f"{reason}{name}; what was there was kept", type(error).__name__, status, as_json, [])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is done is done: from here on it would only be a traceback
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    gc.freeze()  # the process ends: nobody needs all that it loaded to be looked through once more
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, kind: str, status: int, as_json: bool, names: list[str], reason: str | None = None) -> None:
    if as_json:
        error = {"error": kind, "message": masked(message), "exit_code": status, "names": names, "reason": reason}
        click.echo(json_line(error))
    click.echo(f"error: {printable(message)}{f' [{reason}]' if reason else ''}", err=True)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A span of time, as 90s, 15m, 2h, 3d or 4w, or a plain number of seconds; in seconds.

    `least` and `most` are seconds as well; only with `fractions`, parts of seconds are taken.
    """

    name = "time"

    def __init__(self, least: float = 1, most: float = 10**13, *, fractions: bool = False) -> None:
        self._least, self._most, self._fractions = least, most, fractions

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _SPAN.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no span of time: write 90s, 15m, 2h, 3d or 4w, or a number of seconds", param, ctx)
        seconds = float(found[1]) * _UNITS[found[2]]
        if not self._least <= seconds <= self._most:
            bounds = f"{self._least:g} s" + (f" to {self._most:g} s" if self._most < 10**13 else " or more")
            self.fail(f"{value!r} is out of range: {bounds} are meant", param, ctx)
        if seconds != int(seconds) and not self._fractions:
            self.fail(f"{value!r}: whole seconds are meant", param, ctx)
        return int(seconds) if seconds == int(seconds) else seconds


_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def moment(seconds: int) -> str:
    """A time for people; `seconds` since 1970."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def span(seconds: int) -> str:
    """A span of time for people, in the largest unit that tells it exactly."""
    name, unit = next((n, u) for n, u in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % u == 0)
    return f"{seconds // unit}{name}"


Option = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What gives a command an option, or several."""


def together(*options: Option) -> Option:
    """Several options as one, in the order in which help shows them."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return give


common = together(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
    click.option("-v", "--verbose", is_flag=True, help="Say more, on stderr."),
)
"""The options that every command has."""


def _secret_file(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    from puller.wire.note import is_private

    if value is not None and is_private(value):
        raise click.BadParameter("name the file with the secret, not the secret: everybody here can see command lines")
    return value


secret_option = click.option(
    "--secret",
    metavar="FILE",
    callback=_secret_file,
    help="The secret of an encrypted dataset (default: HEADWATER_SECRET, or the user's keys folder).",
)


def console(as_json: bool, quiet: bool, verbose: bool) -> Console:
    """The console that the common options ask for."""
    return Console(as_json=as_json, level=-1 if quiet else int(verbose))

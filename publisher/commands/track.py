"""`publisher track` and `untrack`."""

from __future__ import annotations

import os

import click

from puller.console import EXIT_CODES, common, console, count


@click.command("track", epilog=EXIT_CODES)
@click.argument("database")
@common
def track_command(database: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Let a SQLite DATABASE note the keys of rows that change, so that a publish costs what changed.

    Adds triggers and two tables, named _headwater…, which are not published; `publisher untrack` removes them all. What
    changes past the triggers (a restored backup, VACUUM, another schema) is noticed, and everything is read; one publish
    in a hundred reads everything all the same. The first publish after this command does so, too.

    \b
    Example:
      publisher track app.db
    """
    from publisher.sources.tracking import track

    out = console(as_json, quiet, verbose)
    tracked, left = track(_database(database))
    out.warn_each("not tracked, so everything will be read: ", [f"{name}: {why}" for name, why in left])
    out.result(f"{database}: {count(len(tracked), 'table')} tracked", database=database, tables=tracked)


@click.command("untrack", epilog=EXIT_CODES)
@click.argument("database")
@common
def untrack_command(database: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Remove from a SQLite DATABASE all that `publisher track` added.

    \b
    Example:
      publisher untrack app.db
    """
    from publisher.sources.tracking import untrack

    out = console(as_json, quiet, verbose)
    found = untrack(_database(database))
    out.result(f"{database}: {'no longer tracked' if found else 'was not tracked'}", database=database, changed=found)


def _database(path: str) -> str:
    from publisher.sources import form_of
    from puller.errors import SourceError, UsageError

    if not os.path.exists(path):
        raise SourceError(f"there is no {path}; nothing was changed")
    if form_of(path) != "sqlite":
        raise UsageError(f"{path} is no SQLite database")
    return path

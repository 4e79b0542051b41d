"""`publisher watch`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from publisher.commands.options import of_buckets
from publisher.commands.publish import check_apart, default_name, publish_command
from publisher.commands.telling import describe, keyring_or_none
from puller.console import EXIT_CODES, Duration
from puller.service.settings import ServiceCommand, check_distinct, made, service_options, settings

if TYPE_CHECKING:
    from publisher.sources.base import Source
    from publisher.sources.kept import Kept
    from publisher.watch.notices import Notices
    from publisher.watch.watcher import Task
    from puller.wire.rows import Schema

QUICK, SLOW, IDLE = 0.02, 0.25, 1.0
"""Seconds between looks for signs of change: at least, at most, and where looking costs something."""
_PROCESS = {"endpoint_url", "region", "profile", "quiet", "verbose"}
_OTHERWISE = {"source", "dest", "no_cache", "dry_run", "as_json", *_PROCESS}
"""Parameters of `publish` that this command does not have, or has of its own."""


@click.command("watch", cls=ServiceCommand, table="watch", shared=_PROCESS, epilog=EXIT_CODES)
@click.argument("source", required=False)
@click.argument("dest", required=False)
@click.option(
    "--settle",
    type=Duration(0.05, 3600, fractions=True),
    default="0.5s",
    show_default=True,
    metavar="TIME",
    help="After so much quiet a change is published; at most 60 times as long is waited for quiet.",
)
@click.option(
    "--rescan",
    type=Duration(),
    default="5m",
    show_default=True,
    metavar="TIME",
    help="Look at everything so often, for changes that nothing told of.",
)
@click.option(
    "--poll",
    type=Duration(0.05, 3600, fractions=True),
    metavar="TIME",
    help="Look at SOURCE so often, as 2s, in place of waiting for events, which network file systems lack.",
)
@click.option(
    "--every",
    type=Duration(0.05, 604800, fractions=True),
    metavar="TIME",
    help="Look for no signs of change: just publish what is new so often, as 1m.",
)
@of_buckets
@service_options
def watch_command(jobs: list[dict[str, Any]], **shared: Any) -> None:
    """Publish SOURCE to DEST whenever it changes, until stopped (SIGTERM).

    SOURCE is what `publisher publish` takes, but standard input; so are the options. Of a folder, only what changed is looked
    at, and everything every --rescan (with jitter) or on SIGHUP; of a SQLite database, only changed rows are read after
    `publisher track`. SOURCE may be replaced, or be away for a while; so may DEST: what changed is published once both are
    there. A state that `publish` would refuse is reported, and tried again at the next change.

    HEAD is signed again before it expires, if it does (`publisher refresh DEST --expires-in 3d`), and garbage is collected
    every hour if the dataset says how long versions are kept (--keep 7d).

    Several sources: --config FILE, with a [[watch]] table for each, which has `source`, `dest`, and options as the flags are
    called (`detect_types = true`, `rescan = "10m"`); what stands above them is meant for all. Every option can be given as
    a variable HEADWATER_…, too.

    \b
    Examples:
      publisher watch ./catalogue /srv/data/catalogue
      publisher watch app.db s3://bucket/app --keep 7d --listen 127.0.0.1:9100
      publisher watch --config /etc/headwater/watch.toml
    """
    from publisher.watch.meters import Meters
    from publisher.watch.watcher import Watcher
    from puller.service.process import Service

    service = Service("publisher watch", settings(shared))
    meters = Meters(service.registry)
    tasks = made(jobs, task_of)
    check_distinct(jobs, lambda job: _place(job["dest"]), "dest")
    watchers = [Watcher(task, service, meters) for task in tasks]
    status = service.main([watcher.job for watcher in watchers])
    for watcher in watchers:
        if watcher.error is not None:
            raise watcher.error
    raise click.exceptions.Exit(status)


watch_command.params += [param for param in publish_command.params if param.name not in _OTHERWISE]


def _place(dest: str) -> str:
    """Where a destination is, however it is spelt."""
    if dest.startswith("s3://"):
        return "/".join(["s3:", *filter(None, dest.removeprefix("s3://").split("/"))])
    return os.path.realpath(dest.removeprefix("file://"))


def task_of(job: dict[str, Any]) -> Task:
    """The task that a job's options describe. Raises UsageError."""
    from publisher.commit import check_keep
    from publisher.publish import Options
    from publisher.watch.schedule import Times
    from publisher.watch.watcher import Task
    from puller.errors import UsageError
    from puller.passwords import masked
    from puller.stores import open_store

    source, dest = job["source"], job["dest"]
    if not source or not dest:
        raise UsageError("say what to watch and where to publish it: SOURCE and DEST, or --config FILE")
    if source == "-":
        raise UsageError("standard input cannot be watched; give a file")
    if "://" in source and job["every"] is None:
        raise UsageError(f"{masked(source)} can only be asked: say how often, with --every TIME")
    if job["every"] is not None and job["poll"] is not None:
        raise UsageError("--every and --poll exclude each other")
    check_keep(job["keep"])
    check_apart(source, dest)
    options = Options(
        name=job["name"],
        interval=job["interval"],
        keep=job["keep"],
        allow_shrink=job["allow_shrink"],
        validate=job["validate"],
        secret=job["secret"],
        encrypt=job["encrypt"],
    )
    every, poll, settle = job["every"], job["poll"], job["settle"]
    tick = IDLE if every or poll else SLOW
    return Task(
        source=masked(source),
        dest=dest,
        name=default_name(dest),
        options=options,
        times=Times(settle, every or job["rescan"], max(QUICK, min(tick, settle / 2, poll or tick))),
        open_source=partial(_open, job),
        open_store=partial(open_store, dest, single_writer=job["single_writer"], max_age=job["max_age"]),
        notices=partial(_notices, job),
        describe=lambda outcome: describe(outcome, dest, dry_run=False),
        keyring=keyring_or_none(job["signing_key"], unsigned=job["unsigned"]),
    )


def _open(job: dict[str, Any], name: str, schema: Schema, kept: Kept) -> Source:
    from publisher.sources import open_source

    return open_source(
        job["source"],
        job["form"],
        key=job["key"],
        tables=job["tables"],
        name=name,
        schema=schema,
        strict=job["strict"],
        detect=job["detect_types"],
        query=job["query"],
        cached_for=job["dest"],
        kept=kept,
    )


def _notices(job: dict[str, Any], warn: Callable[[str], None]) -> Notices:
    from publisher.watch.notices import NoNotices, SourceNotices

    if job["every"] is not None:
        return NoNotices()
    return SourceNotices(job["source"], job["poll"], warn)

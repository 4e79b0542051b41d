"""The command `publisher`: parse, call one function, print."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import click

from puller.console import EXIT_CODES, amount, common, console, count, rows_of, run, size

if TYPE_CHECKING:
    from publisher.publish import Outcome
    from publisher.sources.base import Source
    from puller.wire.head import Head
    from puller.wire.rows import Schema

INTERVAL_HELP = "Seconds that pullers should wait between polls (30, unless it was set before)."


class Duration(click.ParamType[int]):
    """A time span in seconds, written as a number with one of s, m, h, d, w."""

    name = "duration"
    units: ClassVar = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number, unit = str(value)[:-1], str(value)[-1:]
        if unit not in self.units or not number.isascii() or not number.isdigit():
            self.fail(f"{value!r} is no time span: write it as 36h, 7d or 4w", param, ctx)
        return int(number) * self.units[unit]


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater")
def main() -> None:
    """Publish datasets as static files that `puller` keeps exact copies of.

    \b
    Examples:
      publisher publish ./catalogue /srv/data/catalogue
      publisher publish prices.jsonl /srv/data/prices --key sku
      publisher log /srv/data/prices
      publisher serve /srv/data/prices
    """


@main.command("init", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--name", help="The dataset's name (default: the last part of DEST).")
@click.option("--kind", type=click.Choice(["files", "table", "bytes"]), required=True, help="What its records mean.")
@click.option(
    "--interval",
    type=click.IntRange(1, 604800),
    default=30,
    show_default=True,
    help="Seconds that pullers should wait between polls.",
)
@common
def init_command(
    dest: str, name: str | None, kind: str, interval: int, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Create an empty dataset at DEST, a local folder. `publish` does this by itself where it is needed.

    \b
    Example:
      publisher init /srv/data/prices --kind table
    """
    from publisher.publish import create
    from publisher.stores import open_store

    out = console(as_json, quiet, verbose)
    head = create(open_store(dest), name or default_name(dest), kind, interval=interval)
    out.result(f"{dest}: created the empty dataset {head.name} of kind {head.kind}", **_fields(head, dest))


@main.command("publish", epilog=EXIT_CODES)
@click.argument("source")
@click.argument("dest")
@click.option("--name", help="The dataset's name (a new dataset; default: the last part of DEST).")
@click.option("--as", "form", type=click.Choice(["folder", "jsonl"]), help="What SOURCE is, if its name does not tell.")
@click.option("--key", multiple=True, metavar="FIELD", help="The field that identifies a row; repeatable.")
@click.option("--table", help="The table's name (default: the one published before, or the dataset's name).")
@click.option("--interval", type=click.IntRange(1, 604800), help=INTERVAL_HELP)
@click.option(
    "--keep", type=Duration(), help="Keep superseded versions so long: 7d (unlimited, unless it was set before)."
)
@click.option("--strict", is_flag=True, help="Refuse a SOURCE with anything that would be skipped.")
@click.option(
    "--allow-shrink", is_flag=True, help="Publish even if SOURCE is empty, or lost a table or over half its records."
)
@click.option("--no-cache", is_flag=True, help="Read all of SOURCE, also files that look as they did when published.")
@click.option("--validate", multiple=True, metavar="CMD", help="Publish only if this command ends with 0; repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and write nothing; runs no validators.")
@common
def publish_command(
    source: str,
    dest: str,
    name: str | None,
    form: str | None,
    key: tuple[str, ...],
    table: str | None,
    interval: int | None,
    keep: int | None,
    strict: bool,
    allow_shrink: bool,
    no_cache: bool,
    validate: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Publish the state of SOURCE as a new version of the dataset at DEST, if anything changed.

    SOURCE is a folder, a JSON Lines file (*.jsonl), or "-" for JSON Lines from standard input. DEST is a local
    folder; where there is no dataset yet, one is created.

    Validators (--validate CMD) run in a shell after everything was written and before HEAD moves, only if something
    changed. They get one JSON object on stdin (name, kind, version, records, added, updated, deleted,
    previous_version, …) and the variables HEADWATER_NAME, HEADWATER_VERSION and HEADWATER_CANDIDATE, from which the new
    version can be pulled into a target that is thrown away afterwards. What they print goes to stderr. The first that
    does not end with 0 refuses the version (exit code 3). Where another publisher comes first, they run again.

    With --keep, diffs that only older versions need leave the log as versions are published, and `publisher gc` removes
    what is older than that. The setting is kept with the dataset.

    \b
    Examples:
      publisher publish ./catalogue /srv/data/catalogue
      publisher publish prices.jsonl /srv/data/prices --key sku
      publisher publish prices.jsonl /srv/data/prices --key sku --validate ./check-prices
      make-prices | publisher publish - /srv/data/prices --key country --key sku
    """
    from publisher.publish import Options, publish
    from publisher.sources import open_source
    from publisher.stores import open_store

    out = console(as_json, quiet, verbose)
    _check_apart(source, dest)
    options = Options(
        name=name, interval=interval, keep=keep, allow_shrink=allow_shrink, dry_run=dry_run, validate=validate
    )

    def find(dataset: str, schema: Schema) -> Source:
        return open_source(
            source,
            form,
            key=key,
            table=table,
            name=dataset,
            schema=schema,
            strict=strict,
            cached_for=None if no_cache else dest,
        )

    with out.progress() as progress:
        outcome = publish(open_store(dest), find, default_name(dest), options, progress=progress)
    out.warn_each("skipped ", [f"{skipped}: {reason}" for skipped, reason in outcome.report.skipped])
    if outcome.report.private:
        out.warn(
            f"{count(outcome.report.private, 'file')} that not everybody may read here will be readable in copies "
            "(modes are not data)"
        )
    fields, text = _describe(outcome, dest, dry_run)
    out.result(text, **fields)


def _describe(outcome: Outcome, dest: str, dry_run: bool) -> tuple[dict[str, Any], str]:
    head = outcome.head
    fields = _fields(head, dest) | {
        "changed": outcome.changed,
        "created": outcome.created,
        "dry_run": dry_run,
        "added": outcome.added,
        "updated": outcome.updated,
        "deleted": outcome.deleted,
        "schema_changed": outcome.schema_changed,
        "new_snapshot": outcome.snapshot,
        "written": outcome.written,
        "skipped": [{"name": name, "reason": reason} for name, reason in outcome.report.skipped],
    }
    if not outcome.changed:
        return fields, f"{dest}: nothing new; {head.name} stays at version {head.version}"
    what = f"{outcome.added:,} added, {outcome.updated:,} updated, {outcome.deleted:,} deleted"
    what += ", schema changed" if outcome.schema_changed else ""
    verb = "would publish" if dry_run else "published"
    written = f"{size(outcome.written)} {'to write' if dry_run else 'written'}"
    start = (
        "" if not outcome.created else f"{dest}: {'would create' if dry_run else 'created'} the dataset {head.name}\n"
    )
    return fields, f"{start}{dest}: {verb} version {head.version}: {what}; {written}"


@main.command("status", epilog=EXIT_CODES)
@click.argument("dest")
@common
def status_command(dest: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what is published at DEST.

    \b
    Example:
      publisher status /srv/data/prices
    """
    out = console(as_json, quiet, verbose)
    head = _head(dest)
    text = (
        f"{dest}: {head.name} version {head.version} (epoch {head.epoch}), "
        f"{amount(head.records, head.kind)} of kind {head.kind}\n"
        f"  published  {_time(head.time)}\n"
        f"  checksum   {head.checksum:032x}\n"
        f"  snapshot   version {head.snapshot_version}, {size(head.snapshot.bytes)} in {count(head.snapshot.files, 'file')}\n"
        f"  signed     no"
    )
    out.result(text, **_fields(head, dest))


@main.command("log", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("-n", "limit", type=click.IntRange(1), default=20, show_default=True, help="How many versions to show.")
@common
def log_command(dest: str, limit: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the newest versions at DEST, newest first. With --json, an object a line.

    \b
    Example:
      publisher log /srv/data/prices -n 5
    """
    from publisher.published import versions
    from publisher.stores import open_store

    out = console(as_json, quiet, verbose)
    for head in versions(open_store(dest), limit):
        text = f"{head.version:>8}  {_time(head.time)}  {amount(head.records, head.kind):>18}  {head.checksum:032x}"
        out.result(text, **_fields(head, dest))


@main.command("gc", epilog=EXIT_CODES)
@click.argument("dest")
@click.option(
    "--keep", type=Duration(), help="Keep superseded versions so long: 36h, 7d, 4w (what the dataset says, or 7d)."
)
@click.option(
    "--keep-versions",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Superseded versions that stay however old they are.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@common
def gc_command(
    dest: str, keep: int | None, keep_versions: int, dry_run: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Remove files at DEST that no version within the promise needs any more.

    A version's age counts from the moment that the next one took its place. Files that were written within the last 24
    hours stay, whatever names them; so publishers and pullers may be at work. Of versions that are older than --keep, the
    archived HEAD and all files that no newer version needs are removed. All diffs in the newest log stay: old ones leave it
    if the dataset was published with --keep.

    \b
    Examples:
      publisher gc /srv/data/prices --dry-run
      publisher gc /srv/data/prices --keep 30d
    """
    from publisher.build import make_pool
    from publisher.gc import collect
    from publisher.stores import open_store

    out = console(as_json, quiet, verbose)
    with out.progress() as progress, make_pool() as pool:
        outcome = collect(
            open_store(dest),
            pool,
            keep=keep,
            keep_versions=keep_versions,
            dry_run=dry_run,
            progress=progress,
        )
    out.warn_each("superseded versions lack ", outcome.missing)
    head = outcome.head
    verb = "would remove" if dry_run else "removed"
    young = (
        f"; {count(outcome.files_young, 'file')} that nothing needs are younger than 24 hours"
        if outcome.files_young
        else ""
    )
    out.result(
        f"{dest}: {verb} {count(outcome.heads_removed, 'version')} and {count(outcome.files_removed, 'file')} "
        f"({size(outcome.bytes_removed)}); kept versions {outcome.oldest} to {head.version} in "
        f"{count(outcome.files_kept, 'file')} ({size(outcome.bytes_kept)}){young}",
        dest=dest,
        name=head.name,
        epoch=head.epoch,
        version=head.version,
        oldest_version=outcome.oldest,
        dry_run=dry_run,
        versions_removed=outcome.heads_removed,
        versions_kept=outcome.heads_kept + 1,
        files_removed=outcome.files_removed,
        bytes_removed=outcome.bytes_removed,
        files_kept=outcome.files_kept,
        bytes_kept=outcome.bytes_kept,
        files_young=outcome.files_young,
        bytes_young=outcome.bytes_young,
        unfinished_removed=outcome.unfinished_removed,
        missing=outcome.missing,
    )


@main.command("revert", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--to", "version", type=click.IntRange(1), required=True, help="The version whose state is to come back.")
@common
def revert_command(dest: str, version: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Publish the state of an earlier version at DEST as a new version.

    History goes on: pullers follow as they do to any version. `publisher gc` says how long earlier versions are kept.

    \b
    Example:
      publisher revert /srv/data/prices --to 41
    """
    from publisher.revert import revert
    from publisher.stores import open_store

    out = console(as_json, quiet, verbose)
    fields, text = _describe(revert(open_store(dest), version), dest, dry_run=False)
    out.result(text, **fields, reverted_to=version)


@main.command("fsck", epilog=EXIT_CODES)
@click.argument("dest")
@common
def fsck_command(dest: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Read all that HEAD at DEST needs, and what earlier versions promise, and name each damaged or missing file.

    Ends with 5 if there is one. A mirror or a backup has the same file under the same name: copy it back.

    \b
    Example:
      publisher fsck /srv/data/prices
    """
    from publisher.build import make_pool
    from publisher.fsck import check
    from publisher.stores import open_store
    from puller.errors import Invalid

    out = console(as_json, quiet, verbose)
    with out.progress() as progress, make_pool() as pool:
        found = check(open_store(dest), pool, progress)
    out.warn_each("", [f"{path}: {reason}" for path, reason in sorted(found.bad.items())])
    read = f"{count(found.files, 'file')} ({size(found.bytes)}) of {count(found.versions, 'version')}"
    out.result(
        f"{dest}: {read} read, {count(len(found.bad), 'file')} damaged or missing",
        dest=dest,
        versions=found.versions,
        files=found.files,
        bytes=found.bytes,
        bad=[{"path": path, "reason": reason} for path, reason in sorted(found.bad.items())],
    )
    if found.bad:
        raise Invalid(
            f"{count(len(found.bad), 'file')} in {dest} {'is' if len(found.bad) == 1 else 'are'} damaged or missing; nothing "
            "was changed. Restore from a mirror or a backup"
        )


@main.command("serve", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--bind", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port (0: any).")
@common
def serve_command(dest: str, bind: str, port: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Serve DEST over HTTP for trying things, with the right cache headers. Not for production.

    \b
    Example:
      publisher serve /srv/data/prices --port 8000
    """
    from publisher.serve import make_server
    from puller.errors import UsageError

    out = console(as_json, quiet, verbose)
    head = _head(dest)
    try:
        server = make_server(dest, bind, port, quiet=not verbose)
    except OSError as error:
        raise UsageError(f"cannot listen on {bind}:{port}: {error.strerror}") from error
    url = f"http://{bind}:{server.server_address[1]}"
    out.result(f"serving {head.name} at {url} (Ctrl-C ends it)", url=url, name=head.name)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def default_name(dest: str) -> str:
    """The name of a dataset that is created at `dest`."""
    return os.path.basename(os.path.abspath(dest.removeprefix("file://")))


def _check_apart(source: str, dest: str) -> None:
    from puller.errors import UsageError

    if source == "-":
        return
    here, there = os.path.realpath(source), os.path.realpath(dest.removeprefix("file://"))
    if os.path.commonpath([here, there]) in (here, there):
        raise UsageError(f"{source} and {dest} lie one in the other; publish to a folder of its own")


def _head(dest: str) -> Head:
    from publisher.published import read_head
    from publisher.stores import open_store
    from puller.errors import NotFound

    head, _, _ = read_head(open_store(dest))
    if head is None:
        raise NotFound(f"there is no dataset at {dest}; `publisher publish SOURCE {dest}` makes one")
    return head


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def _fields(head: Head, dest: str) -> dict[str, Any]:
    return {
        "dest": dest,
        "name": head.name,
        "kind": head.kind,
        "epoch": head.epoch,
        "version": head.version,
        "time": head.time,
        "records": rows_of(head.records, head.kind),
        "checksum": f"{head.checksum:032x}",
        "snapshot_version": head.snapshot_version,
        "snapshot_bytes": head.snapshot.bytes,
        "snapshot_files": head.snapshot.files,
        "publish_id": head.publish_id,
    }


def entry() -> None:
    """The `publisher` command."""
    run(main, "publisher")


if __name__ == "__main__":
    entry()

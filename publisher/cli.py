"""The command `publisher`: parse, call one function, print."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from puller.console import (
    EXIT_CODES,
    Console,
    Duration,
    amount,
    common,
    console,
    count,
    rows_of,
    run,
    secret_option,
    size,
    span,
)

if TYPE_CHECKING:
    from publisher.epochs import Renewed, Wanted
    from publisher.keys import Keyring, SigningKey
    from publisher.publish import Outcome
    from publisher.signing import Signing
    from publisher.sources.base import Source
    from puller.wire.head import Head
    from puller.wire.rows import Schema

encrypt_option = click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt a new dataset: pullers need its secret (refused where DEST is not encrypted).",
)
INTERVAL_HELP = "Seconds that pullers should wait between polls (30, unless it was set before)."


signing_option = click.option(
    "--signing-key",
    metavar="FILE",
    help="The private key to sign with (default: $HEADWATER_SIGNING_KEY, or the one in the keys folder).",
)
unsigned_option = click.option("--unsigned", is_flag=True, help="Do not sign a dataset that is created.")
root_options = (
    click.option("--root", "roots", multiple=True, metavar="FILE", help="The private key of a root; repeatable."),
    click.option("--old-root", "old_roots", multiple=True, metavar="FILE", help="One that only signs this change."),
    click.option("--threshold", type=click.IntRange(1, 64), help="How many roots must sign the next change."),
)


def root_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options about the roots that sign key sets."""
    for option in reversed(root_options):
        command = option(command)
    return command


BUCKET_OPTIONS = {
    "--endpoint-url": ("AWS_ENDPOINT_URL_S3", "URL", "The address of a service that is like S3, for s3:// addresses."),
    "--region": ("AWS_DEFAULT_REGION", "NAME", "The bucket's region."),
    "--profile": ("AWS_PROFILE", "NAME", "The AWS profile with the credentials."),
}
"""Options that boto3 knows as variables."""


def _set_variable(_context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Hand an option to boto3, and to validators, by the environment: it stands above profiles there."""
    if value is None:
        return
    if parameter.name == "profile":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            os.environ.pop(name, None)  # as with `aws --profile`, it stands above these
    if parameter.name == "endpoint_url":
        os.environ.pop("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", None)
    os.environ[BUCKET_OPTIONS[parameter.opts[0]][0]] = value


def of_buckets(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where s3:// leads."""
    for option, (_, metavar, text) in reversed(BUCKET_OPTIONS.items()):
        command = click.option(option, metavar=metavar, help=text, expose_value=False, callback=_set_variable)(command)
    return command


single_writer_option = click.option(
    "--single-writer",
    is_flag=True,
    help="Use a bucket without conditional writes: nobody else publishes there meanwhile.",
)
max_age_option = click.option(
    "--max-age",
    type=click.IntRange(0, 86400),
    help="Seconds that caches may keep a bucket's HEAD without asking (5, unless it was set before).",
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater")
def main() -> None:
    """Publish datasets as static files that `puller` keeps exact copies of.

    \b
    Examples:
      publisher publish ./catalogue /srv/data/catalogue
      publisher publish prices.jsonl s3://bucket/prices --key sku
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
@signing_option
@unsigned_option
@encrypt_option
@secret_option
@single_writer_option
@max_age_option
@of_buckets
@common
def init_command(
    dest: str,
    name: str | None,
    kind: str,
    interval: int,
    signing_key: str | None,
    unsigned: bool,
    encrypt: bool,
    secret: str | None,
    single_writer: bool,
    max_age: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Create an empty dataset at DEST, a local folder or s3://bucket/prefix. `publish` does this by itself where it is needed.

    The dataset is signed: its private key is made in the keys folder, and the public one, for pullers, is printed.

    \b
    Example:
      publisher init /srv/data/prices --kind table
    """
    from publisher.publish import create
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    keyring = _keyring_or_none(signing_key, unsigned=unsigned)
    store, named = open_store(dest, single_writer=single_writer, max_age=max_age), name or default_name(dest)
    made = create(store, named, kind, interval=interval, keyring=keyring, secret=secret, encrypt=encrypt)
    head = made.head
    created = f"{dest}: created the empty dataset {head.name} of kind {head.kind}{_encrypted(head, made.secret)}"
    text = "\n".join([created, *_made(made.signing)])
    out.result(text, **_fields(head, dest), **_key_fields(made.signing), secret_file=made.secret)


def _keyring(signing_key: str | None) -> Keyring:
    from publisher.keys import Keyring

    return Keyring(_read_key(signing_key))


def _keyring_or_none(signing_key: str | None, *, unsigned: bool) -> Keyring | None:
    from puller.errors import UsageError

    if unsigned and signing_key is not None:
        raise UsageError("--unsigned and --signing-key exclude each other")
    return None if unsigned else _keyring(signing_key)


def _read_key(path: str | None) -> SigningKey | None:
    from publisher.keys import read_key

    return None if path is None else read_key(path)


def _made(signing: Signing | None) -> list[str]:
    """Lines about the key of a dataset that was created."""
    if signing is None:
        return ["  not signed: whoever can write to the host, or stands between, can change the data"]
    where = (
        "the private key is the one given"
        if signing.made is None
        else f"the private key is in {signing.made}; back it up"
    )
    return [f"  signed; for pullers: --trust {' '.join(map(str, signing.keys.roots))}", f"  {where}"]


def _key_fields(signing: Signing | None) -> dict[str, Any]:
    if signing is None:
        return {"public_keys": [], "private_key": None}
    return {"public_keys": list(map(str, signing.keys.roots)), "private_key": signing.made}


@main.command("publish", epilog=EXIT_CODES)
@click.argument("source")
@click.argument("dest")
@click.option("--name", help="The dataset's name (a new dataset; default: the last part of DEST).")
@click.option(
    "--as",
    "form",
    type=click.Choice(["folder", "jsonl", "csv", "tsv", "sqlite"]),
    help="What SOURCE is, if its name does not tell.",
)
@click.option("--key", multiple=True, metavar="FIELD", help="The field that identifies a row; repeatable.")
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="NAME",
    help="A table of a database to publish, repeatable (default: all); else the name that the rows' table gets.",
)
@click.option("--detect-types", is_flag=True, help="CSV: give columns the types that all their fields allow.")
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
@signing_option
@unsigned_option
@encrypt_option
@secret_option
@single_writer_option
@max_age_option
@of_buckets
@common
def publish_command(
    source: str,
    dest: str,
    name: str | None,
    form: str | None,
    key: tuple[str, ...],
    tables: tuple[str, ...],
    detect_types: bool,
    interval: int | None,
    keep: int | None,
    strict: bool,
    allow_shrink: bool,
    no_cache: bool,
    validate: tuple[str, ...],
    dry_run: bool,
    signing_key: str | None,
    unsigned: bool,
    encrypt: bool,
    secret: str | None,
    single_writer: bool,
    max_age: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Publish the state of SOURCE as a new version of the dataset at DEST, if anything changed.

    SOURCE is a folder, a SQLite database, a file of JSON Lines (*.jsonl), CSV or TSV, or "-" for JSON Lines from
    standard input (CSV: --as csv). DEST is a local folder or s3://bucket/prefix; where there is no dataset yet, one is
    created, and signed: its private key is made in the keys folder ($XDG_CONFIG_HOME/headwater/keys, or
    ~/.config/headwater/keys), and the public one, for pullers, is printed. Credentials for buckets, and what else boto3
    knows, come from the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), ~/.aws or the machine's role.

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
      publisher publish app.db /srv/data/app --table users --table groups
      publisher publish list.csv /srv/data/list --key sku --detect-types
      make-prices | publisher publish - /srv/data/prices --key country --key sku
    """
    from publisher.copies import copies_of
    from publisher.publish import Options, publish
    from publisher.sources import open_source
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    _check_apart(source, dest)
    options = Options(
        name=name,
        interval=interval,
        keep=keep,
        allow_shrink=allow_shrink,
        dry_run=dry_run,
        validate=validate,
        secret=secret,
        encrypt=encrypt,
    )

    def find(dataset: str, schema: Schema) -> Source:
        return open_source(
            source,
            form,
            key=key,
            tables=tables,
            name=dataset,
            schema=schema,
            strict=strict,
            detect=detect_types,
            cached_for=None if no_cache else dest,
        )

    kept = None if no_cache else copies_of(dest)
    store = open_store(dest, single_writer=single_writer, max_age=max_age, kept=kept)
    with out.progress() as progress:
        outcome = publish(
            store,
            find,
            default_name(dest),
            options,
            progress=progress,
            keyring=_keyring_or_none(signing_key, unsigned=unsigned),
        )
    out.warn_each("skipped ", [f"{skipped}: {reason}" for skipped, reason in outcome.report.skipped])
    for warning in outcome.report.warnings:
        out.warn(warning)
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
        "secret_file": outcome.secret,
    }
    fields |= _key_fields(outcome.signing) if outcome.created else {}
    if not outcome.changed:
        return fields, f"{dest}: nothing new; {head.name} stays at version {head.version}"
    what = f"{outcome.added:,} added, {outcome.updated:,} updated, {outcome.deleted:,} deleted"
    what += ", schema changed" if outcome.schema_changed else ""
    verb = "would publish" if dry_run else "published"
    written = f"{size(outcome.written)} {'to write' if dry_run else 'written'}"
    created = f"{'would create' if dry_run else 'created'} the dataset {head.name}{_encrypted(head, outcome.secret)}"
    start = f"{dest}: {created}\n" if outcome.created else ""
    text = f"{start}{dest}: {verb} version {head.version}: {what}; {written}"
    return fields, "\n".join([text, *(_made(outcome.signing) if outcome.created and not dry_run else [])])


def _encrypted(head: Head, kept: str | None) -> str:
    """What is said of a dataset that was created, if it is encrypted."""
    if head.encryption is None:
        return ""
    where = f" in {kept}: pullers need it, and without it nobody can read the dataset again" if kept else ""
    return f", encrypted with the secret {head.encryption}{where}"


@main.command("status", epilog=EXIT_CODES)
@click.argument("dest")
@secret_option
@of_buckets
@common
def status_command(dest: str, secret: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what is published at DEST.

    \b
    Example:
      publisher status /srv/data/prices
    """
    out = console(as_json, quiet, verbose)
    head = _opened(_head(dest), secret)
    meaning = f"{amount(head.records, head.kind)} of kind {head.kind}" if head.kind else "of unknown content"
    signed = "no" if head.trust == 0 else f"by a key of key set {head.trust} (`publisher key show {dest}`)"
    signed += "" if head.expires is None else f", expires {_time(head.expires)}"
    text = (
        f"{dest}: {head.name} version {head.version} (epoch {head.epoch}), {meaning}\n"
        f"  published  {_time(head.time)}\n"
        f"  checksum   {f'{head.checksum:032x}' if head.kind else 'sealed'}\n"
        f"  snapshot   version {head.snapshot_version}, {size(head.snapshot.bytes)} in {count(head.snapshot.files, 'file')}\n"
        f"  signed     {signed}\n"
        f"  encrypted  {_secrecy(head)}"
    )
    out.result(text, **_fields(head, dest))


@main.command("log", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("-n", "limit", type=click.IntRange(1), default=20, show_default=True, help="How many versions to show.")
@secret_option
@of_buckets
@common
def log_command(dest: str, limit: int, secret: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the newest versions at DEST, newest first. With --json, an object a line.

    \b
    Example:
      publisher log /srv/data/prices -n 5
    """
    from publisher.published import versions
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    for found in versions(open_store(dest), limit):
        head = _opened(found, secret)
        meaning = f"{amount(head.records, head.kind):>18}  {head.checksum:032x}" if head.kind else "sealed"
        text = f"{head.version:>8}  {_time(head.time)}  {meaning}"
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
@secret_option
@single_writer_option
@of_buckets
@common
def gc_command(
    dest: str,
    keep: int | None,
    keep_versions: int,
    dry_run: bool,
    secret: str | None,
    single_writer: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Remove files at DEST that no version within the promise needs any more.

    A version's age counts from the moment that the next one took its place. Files that were written within the last 24
    hours stay, whatever names them; so publishers and pullers may be at work. Of versions that are older than --keep, the
    archived HEAD and all files that no newer version needs are removed. All diffs in the newest log stay: old ones leave it
    if the dataset was published with --keep. Key sets stay. DEST may be a mirror, too. No private key is needed; without the
    secret of an encrypted dataset, all its files are read.

    \b
    Examples:
      publisher gc /srv/data/prices --dry-run
      publisher gc /srv/data/prices --keep 30d
    """
    from publisher.build import make_pool
    from publisher.gc import collect
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    store = open_store(dest, single_writer=single_writer)
    with out.progress() as progress, make_pool(store.threads) as pool:
        outcome = collect(
            store,
            pool,
            keep=keep,
            keep_versions=keep_versions,
            dry_run=dry_run,
            secret=secret,
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
@signing_option
@secret_option
@single_writer_option
@max_age_option
@of_buckets
@common
def revert_command(
    dest: str,
    version: int,
    signing_key: str | None,
    secret: str | None,
    single_writer: bool,
    max_age: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Publish the state of an earlier version at DEST as a new version.

    History goes on: pullers follow as they do to any version. `publisher gc` says how long earlier versions are kept.

    \b
    Example:
      publisher revert /srv/data/prices --to 41
    """
    from publisher.revert import revert
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    store = open_store(dest, single_writer=single_writer, max_age=max_age)
    outcome = revert(store, version, secret=secret, keyring=_keyring(signing_key))
    fields, text = _describe(outcome, dest, dry_run=False)
    out.result(text, **fields, reverted_to=version)


@main.command("fsck", epilog=EXIT_CODES)
@click.argument("dest")
@secret_option
@of_buckets
@common
def fsck_command(dest: str, secret: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Read all that HEAD at DEST needs, and what earlier versions promise, and name each damaged or missing file.

    Ends with 5 if there is one. A mirror or a backup has the same file under the same name: copy it back.

    \b
    Example:
      publisher fsck /srv/data/prices
    """
    from publisher.build import make_pool
    from publisher.fsck import check
    from puller.errors import Invalid
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    store = open_store(dest)
    with out.progress() as progress, make_pool(store.threads) as pool:
        found = check(store, pool, progress, secret=secret)
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
@of_buckets
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


@main.command("track", epilog=EXIT_CODES)
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


@main.command("untrack", epilog=EXIT_CODES)
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
    from puller.errors import UsageError

    if form_of(path) != "sqlite":
        raise UsageError(f"{path} is no SQLite database")
    return path


@main.command("refresh", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--expires-in", type=Duration(), metavar="TIME", help="For how long HEAD is good, as 15m, 2h or 3d.")
@click.option("--no-expires", "forever", is_flag=True, help="Let HEAD be good for ever again.")
@signing_option
@of_buckets
@common
def refresh_command(
    dest: str,
    expires_in: int | None,
    forever: bool,
    signing_key: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Sign HEAD again, with a later time, so that pullers know that nothing newer is held back from them.

    With --expires-in, HEAD and those of later versions expire so long after they were written, and pullers tell; run this
    more often than that. Without it, HEAD is good for as long as it was before.

    \b
    Example:
      publisher refresh /srv/data/prices --expires-in 3d
    """
    from publisher.epochs import refresh
    from puller.errors import UsageError
    from puller.stores import open_store

    if forever and expires_in is not None:
        raise UsageError("--expires-in and --no-expires exclude each other")
    renewed = refresh(open_store(dest), _keyring(signing_key), expires_in=expires_in, forever=forever)
    head = renewed.head
    until = "" if head.expires is None else f", and expires {_time(head.expires)} ({span(head.expires - head.time)})"
    text = f"{dest}: HEAD of {head.name} version {head.version} is of {_time(head.time)} now{until}"
    console(as_json, quiet, verbose).result(text, **_fields(head, dest))


@main.command("restart", epilog=EXIT_CODES)
@click.argument("dest")
@click.option(
    "--epoch", type=click.IntRange(1), help="The new epoch (default: the next); higher than any there ever was."
)
@click.option("--root", "roots", multiple=True, metavar="FILE", help="The private key of a root; repeatable.")
@secret_option
@signing_option
@of_buckets
@common
def restart_command(
    dest: str,
    epoch: int | None,
    roots: tuple[str, ...],
    signing_key: str | None,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Begin a new epoch at DEST with the data that its HEAD has, as version 1.

    For a DEST that was set back to an earlier state, from a backup: pullers, which never go back by themselves, follow
    to a new epoch, and fetch only what differs. A signed dataset needs its root's private key for it.

    \b
    Example:
      publisher restart /srv/data/prices
    """
    from publisher.epochs import restart
    from puller.stores import open_store

    keyring = _keyring(signing_key)
    renewed = restart(open_store(dest), keyring, epoch=epoch, wanted=_wanted((), roots, None, None), secret=secret)
    _tell(renewed, dest, console(as_json, quiet, verbose), "began a new epoch")


@main.group("key", epilog=EXIT_CODES)
def key_group() -> None:
    """Make, show, change and revoke the keys that a dataset is signed with.

    \b
    Examples:
      publisher key show /srv/data/prices
      publisher key rotate /srv/data/prices
    """


@key_group.command("new", epilog=EXIT_CODES)
@click.argument("file")
@click.option("--name", required=True, help="The key's name: the dataset's, mostly, or whose it is.")
@common
def key_new_command(file: str, name: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Make a pair of keys, for a build machine or as a root that is kept offline: write the private one to FILE.

    \b
    Example:
      publisher key new /media/stick/root.key --name prices-root
    """
    from publisher.keys import new_key, write_key

    key = new_key(name)
    write_key(key, file)
    text = f"{file}: the private key of {key.public}; keep it secret, and a copy of it safe"
    console(as_json, quiet, verbose).result(text, file=file, public_key=str(key.public))


@key_group.command("show", epilog=EXIT_CODES)
@click.argument("dest")
@signing_option
@of_buckets
@common
def key_show_command(dest: str, signing_key: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Print the public key to give to pullers, and who may sign at DEST.

    \b
    Examples:
      publisher key show /srv/data/prices
      puller pull --trust "$(publisher key show -q /srv/data/prices)" URL prices.db
    """
    from publisher.epochs import current_set
    from puller.stores import open_store

    keys = current_set(open_store(dest))
    keyring = _keyring(signing_key)
    private = {key: keyring.where(key) for key in [*keys.keys, *keys.roots]}
    if quiet and not as_json:
        click.echo("\n".join(map(str, keys.roots)))
        return
    lines = [f"{dest}: {keys.name}, key set {keys.number} of epoch {keys.epoch}", "  for pullers: --trust with"]
    lines += [f"    {key}" for key in keys.roots]
    lines.append(f"  {keys.threshold} of {count(len(keys.roots), 'root')} must sign the next key set")
    lines += [f"  HEAD is signed by {key.name}+{key.id}" for key in keys.keys]
    lines += [f"  private key of {key.name}+{key.id}: {where or 'not here'}" for key, where in private.items()]
    fields = {
        "dest": dest,
        "name": keys.name,
        "key_set": keys.number,
        "epoch": keys.epoch,
        "keys": list(map(str, keys.keys)),
        "roots": list(map(str, keys.roots)),
        "threshold": keys.threshold,
        "private_keys": {str(key): where for key, where in private.items()},
    }
    console(as_json, quiet, verbose).result("\n".join(lines), **fields)


@key_group.command("rotate", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--new-key", metavar="FILE", help="The new private key (default: one is made in the keys folder).")
@root_option
@secret_option
@signing_option
@of_buckets
@common
def key_rotate_command(
    dest: str,
    new_key: str | None,
    roots: tuple[str, ...],
    old_roots: tuple[str, ...],
    threshold: int | None,
    signing_key: str | None,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Put a new signing key in the place of the present one; pullers follow by themselves. Signs a dataset that was not.

    Roots sign key sets. They are the signing keys themselves, until --root gives a key that is no root yet: then those given
    are the roots from now on. Roots that stay must sign as well (--root). For a key that was stolen, use revoke.

    \b
    Examples:
      publisher key rotate /srv/data/prices
      publisher key rotate /srv/data/prices --root /media/stick/root.key
    """
    from publisher.epochs import rotate
    from puller.stores import open_store

    wanted = _wanted(old_roots, roots, threshold, new_key)
    renewed = rotate(open_store(dest), _keyring(signing_key), wanted, secret=secret)
    _tell(renewed, dest, console(as_json, quiet, verbose), "signs with a new key set")


@key_group.command("revoke", epilog=EXIT_CODES)
@click.argument("dest")
@click.argument("key_id", metavar="KEYID")
@click.option("--new-key", metavar="FILE", help="The key to sign with from now on, if no other is left.")
@root_option
@secret_option
@signing_option
@of_buckets
@common
def key_revoke_command(
    dest: str,
    key_id: str,
    new_key: str | None,
    roots: tuple[str, ...],
    old_roots: tuple[str, ...],
    threshold: int | None,
    signing_key: str | None,
    secret: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Take a stolen key out of the key set, and begin a new epoch, in which nothing counts that was signed before.

    KEYID is the key's hash (8 digits), or the whole key. What HEAD has is published again as version 1 of the new epoch:
    if the thief wrote to DEST, put the right HEAD back first (from heads/), and publish your source afterwards.

    \b
    Example:
      publisher key revoke /srv/data/prices c1bd1d7c
    """
    from publisher.epochs import revoke
    from puller.stores import open_store

    wanted = _wanted(old_roots, roots, threshold, new_key)
    renewed = revoke(open_store(dest), _keyring(signing_key), key_id, wanted, secret=secret)
    _tell(renewed, dest, console(as_json, quiet, verbose), f"revoked {key_id}")


def _wanted(old_roots: tuple[str, ...], roots: tuple[str, ...], threshold: int | None, new_key: str | None) -> Wanted:
    from publisher.epochs import Wanted
    from publisher.keys import read_key

    return Wanted(_read_key(new_key), list(map(read_key, roots)), list(map(read_key, old_roots)), threshold)


def _tell(renewed: Renewed, dest: str, out: Console, done: str) -> None:
    head, signing = renewed.head, renewed.signing
    lines = [f"{dest}: {done}: {head.name} version {head.version} (epoch {head.epoch}), key set {head.trust}"]
    if signing is not None:
        lines.append(f"  signed by {signing.key.public.name}+{signing.key.public.id}; for new pullers: --trust with")
        lines += [f"    {key}" for key in signing.keys.roots]
    lines += [f"  the new private key is in {path}; back it up" for path in renewed.made]
    fields = {
        "public_keys": [] if signing is None else list(map(str, signing.keys.roots)),
        "signed_by": None if signing is None else str(signing.key.public),
        "private_keys": renewed.made,
    }
    out.result("\n".join(lines), **_fields(head, dest), **fields)


@main.command("doctor", epilog=EXIT_CODES)
@click.argument("dest")
@click.option(
    "--public-url", metavar="URL", help="Where DEST is served: that is looked at, too, as `puller doctor` does."
)
@of_buckets
@common
def doctor_command(dest: str, public_url: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Look at whether DEST can be published to safely, and say what is wrong and what to do about it.

    Exits with 1 if there is a problem. Small files are written to DEST, which is made if it is not there, and removed
    again; HEAD stays as it is.

    \b
    Example:
      publisher doctor /srv/data/prices --public-url https://data.example.org/prices
    """
    from publisher.doctor import examine_store
    from puller.doctor import fields, problems, told
    from puller.stores import open_store

    findings = examine_store(open_store(dest), public_url)
    wrong = problems(findings)
    console(as_json, quiet, verbose).result(told(findings), dest=dest, problems=wrong, findings=fields(findings))
    return 1 if wrong else 0


def default_name(dest: str) -> str:
    """The name of a dataset that is created at `dest`."""
    return os.path.basename(os.path.abspath(dest.removeprefix("file://")))


def _check_apart(source: str, dest: str) -> None:
    from puller.errors import UsageError

    if source == "-" or dest.startswith("s3://"):
        return
    here, there = os.path.realpath(source), os.path.realpath(dest.removeprefix("file://"))
    if os.path.commonpath([here, there]) in (here, there):
        raise UsageError(f"{source} and {dest} lie one in the other; publish to a folder of its own")


def _head(dest: str) -> Head:
    from publisher.published import read_head
    from puller.errors import NotFound
    from puller.stores import open_store

    head, _, _ = read_head(open_store(dest))
    if head is None:
        raise NotFound(f"there is no dataset at {dest}; `publisher publish SOURCE {dest}` makes one")
    return head


def _opened(head: Head, secret: str | None) -> Head:
    """`head`, opened if the secret is at hand, or was given; what it says in the clear is shown in any case."""
    from puller.errors import SecretError
    from puller.secret import unlock

    try:
        return unlock(head, secret)[0]
    except SecretError:
        if secret is not None:
            raise
        return head


def _secrecy(head: Head) -> str:
    if head.encryption is None:
        return "no"
    return f"with the secret {head.encryption}{'' if head.kind else ', which is not at hand'}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def _fields(head: Head, dest: str) -> dict[str, Any]:
    return {
        "dest": dest,
        "name": head.name,
        "kind": head.kind or None,
        "epoch": head.epoch,
        "version": head.version,
        "time": head.time,
        "records": rows_of(head.records, head.kind) if head.kind else None,
        "checksum": f"{head.checksum:032x}" if head.kind else None,
        "snapshot_version": head.snapshot_version,
        "snapshot_bytes": head.snapshot.bytes,
        "snapshot_files": head.snapshot.files,
        "publish_id": head.publish_id,
        "trust": head.trust,
        "expires": head.expires,
        "encrypted": head.encryption is not None,
        "secret_id": head.encryption,
    }


def entry() -> None:
    """The `publisher` command."""
    run(main, "publisher")


if __name__ == "__main__":
    entry()

"""`publisher init`, `publish` and `revert`: what makes versions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from publisher.commands.options import (
    INTERVAL_HELP,
    encrypt_option,
    max_age_option,
    of_buckets,
    signing_option,
    single_writer_option,
    unsigned_option,
)
from publisher.commands.telling import (
    about_key,
    about_secret,
    describe,
    fields_of,
    key_fields,
    keyring_or_none,
)
from puller.console import EXIT_CODES, Duration, common, console, count, secret_option

if TYPE_CHECKING:
    from publisher.sources.base import Source
    from puller.wire.rows import Schema


@click.command("init", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--name", help="The dataset's name (default: the last part of DEST).")
@click.option("--kind", type=click.Choice(["files", "table", "bytes"]), required=True, help="What its records mean.")
@click.option(
    "--interval",
    type=Duration(1, 604800),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How long pullers should wait between polls, as 30s or 5m.",
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
    keyring = keyring_or_none(signing_key, unsigned=unsigned)
    store, named = open_store(dest, single_writer=single_writer, max_age=max_age), name or default_name(dest)
    made = create(store, named, kind, interval=interval, keyring=keyring, secret=secret, encrypt=encrypt)
    head = made.head
    created = f"{dest}: created the empty dataset {head.name} of kind {head.kind}{about_secret(head, made.secret)}"
    text = "\n".join([created, *about_key(made.signing)])
    out.result(text, **fields_of(head, dest), **key_fields(made.signing), secret_file=made.secret)


@click.command("publish", epilog=EXIT_CODES)
@click.argument("source")
@click.argument("dest")
@click.option("--name", help="The dataset's name (a new dataset; default: the last part of DEST).")
@click.option(
    "--as",
    "form",
    type=click.Choice(["folder", "jsonl", "csv", "tsv", "parquet", "sqlite", "postgres"]),
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
@click.option("--query", metavar="SQL", help="PostgreSQL: publish the rows of a query, as one table; takes --key.")
@click.option("--detect-types", is_flag=True, help="CSV: give columns the types that all their fields allow.")
@click.option("--interval", type=Duration(1, 604800), metavar="TIME", help=INTERVAL_HELP)
@click.option(
    "--keep",
    type=Duration(),
    metavar="TIME",
    help="Keep superseded versions so long: 7d, at least 24h (unlimited, unless it was set before).",
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
    query: str | None,
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

    SOURCE is a folder, a SQLite database, a PostgreSQL database (postgresql://user@host/database), a file of JSON Lines
    (*.jsonl), CSV, TSV or Parquet, or "-" for JSON Lines from standard input (CSV: --as csv). With --as csv, tsv or
    jsonl, a folder is one table for each such file in it; keys are given as --key TABLE.FIELD. With --as parquet, a
    folder is one table of all its files. DEST is a local folder or s3://bucket/prefix; where there is no dataset yet,
    one is created, and signed: its private key is made in the keys folder ($XDG_CONFIG_HOME/headwater/keys, or
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
      publisher publish postgresql://app@db.example/shop /srv/data/shop --table articles
      publisher publish list.csv /srv/data/list --key sku --detect-types
      publisher publish ./exports /srv/data/exports --as csv --key orders.id --key stock.sku
      publisher publish ./parts /srv/data/parts --as parquet --key id
      make-prices | publisher publish - /srv/data/prices --key country --key sku
    """
    from publisher.copies import copies_of
    from publisher.publish import Options, publish
    from publisher.sources import open_source
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    check_apart(source, dest)
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
            query=query,
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
            keyring=keyring_or_none(signing_key, unsigned=unsigned),
        )
    out.warn_each("skipped ", [f"{skipped}: {reason}" for skipped, reason in outcome.report.skipped])
    for warning in outcome.report.warnings:
        out.warn(warning)
    if outcome.report.private:
        out.warn(
            f"{count(outcome.report.private, 'file')} that not everybody may read here will be readable in copies "
            "(modes are not data)"
        )
    fields, text = describe(outcome, dest, dry_run)
    out.result(text, **fields)


@click.command("revert", epilog=EXIT_CODES)
@click.argument("dest")
@click.option("--to", "version", type=click.IntRange(1), required=True, help="The version whose state is to come back.")
@signing_option
@unsigned_option
@secret_option
@single_writer_option
@max_age_option
@of_buckets
@common
def revert_command(
    dest: str,
    version: int,
    signing_key: str | None,
    unsigned: bool,
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
    keyring = keyring_or_none(signing_key, unsigned=unsigned)
    outcome = revert(store, version, secret=secret, keyring=keyring)
    fields, text = describe(outcome, dest, dry_run=False)
    out.result(text, **fields, reverted_to=version)


def default_name(dest: str) -> str:
    """The name of a dataset that is created at `dest`."""
    return os.path.basename(os.path.abspath(dest.removeprefix("file://")))


def check_apart(source: str, dest: str) -> None:
    """Raise UsageError for a source and a destination of which one lies in the other."""
    from puller.errors import UsageError
    from puller.postgresql import is_address

    if source == "-" or dest.startswith("s3://") or is_address(source):
        return
    here, there = os.path.realpath(source), os.path.realpath(dest.removeprefix("file://"))
    if os.path.commonpath([here, there]) in (here, there):
        raise UsageError(f"{source} and {dest} lie one in the other; publish to a folder of its own")

"""`publisher gc`."""

from __future__ import annotations

import click

from publisher.commands.options import of_buckets, single_writer_option
from puller.console import EXIT_CODES, Duration, common, console, count, secret_option, size


@click.command("gc", epilog=EXIT_CODES)
@click.argument("dest")
@click.option(
    "--keep",
    type=Duration(),
    metavar="TIME",
    help="Keep superseded versions so long: 36h, 7d, 4w (what the dataset says, or 7d).",
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

"""`puller mirror`."""

from __future__ import annotations

import click

from puller.commands.options import given_keys, trust_option
from puller.commands.telling import UNCHANGED, first_contact, trusted_fields
from puller.console import EXIT_CODES, common, console, count, size


@click.command("mirror", epilog=EXIT_CODES)
@click.argument("url")
@click.argument("folder", metavar="DEST")
@click.option(
    "--keep-versions",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Also copy what it takes to pull the N versions before the newest, where URL still has it.",
)
@click.option("--check", is_flag=True, help="Read every file of DEST again, and fetch those anew that are damaged.")
@click.option("--exit-code", is_flag=True, help=f"Exit with {UNCHANGED} if there was nothing new.")
@trust_option
@common
def mirror_command(
    url: str,
    folder: str,
    keep_versions: int,
    check: bool,
    exit_code: bool,
    trust: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Copy the files of the dataset at URL to DEST, a folder or s3://bucket/prefix, to serve them onward.

    DEST is then an address to pull from.
    Every file is verified; those of encrypted datasets are copied as they are, and no secret is needed. New files come
    first, HEAD last, and never an older HEAD than before. Nothing is deleted. A signed dataset is verified by the key that
    --trust gives, or by the one that is met first, and from then on by no other.

    \b
    Examples:
      puller mirror https://data.example.org/prices /srv/data/prices
      puller mirror --keep-versions 10 https://data.example.org/prices /srv/data/prices
    """
    from puller.fetch import open_fetcher
    from puller.mirror import Options, mirror
    from puller.stores import open_store

    out = console(as_json, quiet, verbose)
    fetcher = open_fetcher(url)
    try:
        with out.progress() as progress:
            options = Options(keep_versions=keep_versions, check=check, trust=given_keys(trust))
            outcome = mirror(url, fetcher, open_store(folder), options, progress=progress)
    finally:
        fetcher.close()
    for note in outcome.notes:
        out.warn(note)
    head = outcome.head
    version = f"{head.name} version {head.version}"
    copied = f"{count(outcome.files, 'file')} ({size(outcome.bytes)}) copied"
    cost = f"{size(outcome.received)} in {count(outcome.requests, 'request')}"
    text = f"{folder}: mirrors {version}: {copied}, {cost}" if outcome.changed else f"{folder}: still mirrors {version}"
    out.result(
        "\n".join([text, *first_contact(outcome)]),
        folder=folder,
        dataset=head.name,
        encrypted=head.encryption is not None,
        changed=outcome.changed,
        **{"from": _position(outcome.before), "to": _position(outcome.after)},
        files=outcome.files,
        bytes=outcome.bytes,
        archived=outcome.archived,
        notes=outcome.notes,
        requests=outcome.requests,
        received=outcome.received,
        first_contact=outcome.met,
        **trusted_fields(outcome.pins),
    )
    return UNCHANGED if exit_code and not outcome.changed else 0


def _position(order: tuple[int, int, int] | None) -> dict[str, int] | None:
    return None if order is None else {"epoch": order[0], "version": order[1]}

"""`publisher status`, `log`, `fsck` and `doctor`: what only looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from publisher.commands.options import of_buckets
from publisher.commands.telling import fields_of, head_at, opened
from puller.console import EXIT_CODES, amount, common, console, count, moment, secret_option, size, span

if TYPE_CHECKING:
    from puller.wire.head import Head


@click.command("status", epilog=EXIT_CODES)
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
    head = opened(head_at(dest), secret)
    meaning = f"{amount(head.records, head.kind)} of kind {head.kind}" if head.kind else "of unknown content"
    signed = "no" if head.trust == 0 else f"by a key of key set {head.trust} (`publisher key show {dest}`)"
    signed += "" if head.expires is None else f", expires {moment(head.expires)}"
    kept = "until collected" if head.keep is None else span(head.keep)
    text = (
        f"{dest}: {head.name} version {head.version} (epoch {head.epoch}), {meaning}\n"
        f"  published  {moment(head.time)}\n"
        f"  checksum   {f'{head.checksum:032x}' if head.kind else 'sealed'}\n"
        f"  snapshot   version {head.snapshot_version}, {size(head.snapshot.bytes)} in {count(head.snapshot.files, 'file')}\n"
        f"  polled     every {span(head.interval)}, superseded versions kept {kept}\n"
        f"  signed     {signed}\n"
        f"  encrypted  {_secrecy(head)}"
    )
    out.result(text, **fields_of(head, dest))


@click.command("log", epilog=EXIT_CODES)
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
        head = opened(found, secret)
        meaning = f"{amount(head.records, head.kind):>18}  {head.checksum:032x}" if head.kind else "sealed"
        text = f"{head.version:>8}  {moment(head.time)}  {meaning}"
        out.result(text, **fields_of(head, dest))


@click.command("fsck", epilog=EXIT_CODES)
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
    out.warn_each("", [reason if path in reason else f"{path}: {reason}" for path, reason in sorted(found.bad.items())])
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


@click.command("doctor", epilog=EXIT_CODES)
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


def _secrecy(head: Head) -> str:
    if head.encryption is None:
        return "no"
    return f"with the secret {head.encryption}{'' if head.kind else ', which is not at hand'}"

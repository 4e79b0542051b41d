"""`publisher refresh`, `restart` and `key`: what signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from publisher.commands.options import of_buckets, root_option, signing_option
from publisher.commands.telling import fields_of, find_keyring, given_key
from puller.console import EXIT_CODES, Console, Duration, common, console, count, moment, secret_option, span

if TYPE_CHECKING:
    from publisher.epochs import Renewed, Wanted


@click.command("refresh", epilog=EXIT_CODES)
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
    renewed = refresh(open_store(dest), find_keyring(signing_key), expires_in=expires_in, forever=forever)
    head = renewed.head
    until = "" if head.expires is None else f", and expires {moment(head.expires)} ({span(head.expires - head.time)})"
    text = f"{dest}: HEAD of {head.name} version {head.version} is of {moment(head.time)} now{until}"
    console(as_json, quiet, verbose).result(text, **fields_of(head, dest))


@click.command("restart", epilog=EXIT_CODES)
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

    keyring = find_keyring(signing_key)
    renewed = restart(open_store(dest), keyring, epoch=epoch, wanted=_wanted((), roots, None, None), secret=secret)
    _tell(renewed, dest, console(as_json, quiet, verbose), "began a new epoch")


@click.group("key", epilog=EXIT_CODES)
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
    keyring = find_keyring(signing_key)
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
    renewed = rotate(open_store(dest), find_keyring(signing_key), wanted, secret=secret)
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
    renewed = revoke(open_store(dest), find_keyring(signing_key), key_id, wanted, secret=secret)
    _tell(renewed, dest, console(as_json, quiet, verbose), f"revoked {key_id}")


def _wanted(old_roots: tuple[str, ...], roots: tuple[str, ...], threshold: int | None, new_key: str | None) -> Wanted:
    from publisher.epochs import Wanted
    from publisher.keys import read_key

    return Wanted(given_key(new_key), list(map(read_key, roots)), list(map(read_key, old_roots)), threshold)


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
    out.result("\n".join(lines), **fields_of(head, dest), **fields)

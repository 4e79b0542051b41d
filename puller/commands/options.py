"""Options that several commands of `puller` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from puller.commands.telling import STALE
from puller.console import Duration

if TYPE_CHECKING:
    from puller.wire.note import Key


as_option = click.option(
    "--as", "form", type=click.Choice(["folder", "sqlite", "jsonl"]), help="What TARGET is, if its name does not tell."
)


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="KEY",
    help="A public key that the dataset must be signed under, or a file with such keys; repeatable, one suffices.",
)


staleness_option = click.option(
    "--max-staleness",
    type=Duration(),
    metavar="TIME",
    help=f"Exit with {STALE} if the newest HEAD is older, as 90s, 15m, 2h or 3d.",
)


mirror_option = click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="URL",
    help="A further address of the same dataset, used where the first fails or lags; repeatable.",
)


def given_keys(words: tuple[str, ...], *, repin: bool = False) -> list[Key]:
    """The keys that --trust gives, by themselves or in files. Raises UsageError for --repin without one."""
    from puller.errors import UsageError
    from puller.trust import parse_given

    if repin and not words:
        raise UsageError("--repin needs --trust KEY: whom to trust from now on")
    return parse_given(words) if words else []

"""Options that several commands of `puller` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from puller.commands.telling import STALE
from puller.console import Duration, together

if TYPE_CHECKING:
    from puller.wire.note import Key


as_option = click.option(
    "--as",
    "form",
    type=click.Choice(["folder", "sqlite", "postgres", "jsonl", "csv", "tsv", "parquet"]),
    help="What TARGET is, if its name does not tell.",
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


expired_option = click.option("--allow-expired", is_flag=True, help="Take an expired HEAD though nothing is held yet.")


parts_options = together(
    click.option("--table", "tables", multiple=True, metavar="NAME", help="Only this table; repeatable."),
    click.option(
        "--prefix",
        "prefixes",
        multiple=True,
        metavar="P",
        help="Only keys that begin so: paths (rules/eu/), keys, or as JSON a table and first values of its key "
        '(["prices", "eu"]); repeatable.',
    ),
)
"""--table and --prefix, which name parts of a dataset."""


def given_parts(tables: tuple[str, ...], prefixes: tuple[str, ...], *, whole: bool) -> list[Any] | None:
    """The parts that --table, --prefix and --all name; None where there are none of them. Raises UsageError."""
    from puller.errors import UsageError

    if whole and (tables or prefixes):
        raise UsageError("--all is the whole dataset; leave out --table and --prefix")
    return [*((name,) for name in tables), *prefixes] if whole or tables or prefixes else None


atomic_option = click.option(
    "--atomic/--no-atomic",
    default=None,
    help="Switch a folder as a whole: TARGET is a link to the newest of several folders, and stays one until --no-atomic.",
)


keep_option = click.option(
    "--keep-generations",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    metavar="N",
    help="Older folders to keep, of a TARGET that is switched as a whole, for programs that still read them.",
)


def given_keys(words: tuple[str, ...], *, repin: bool = False) -> list[Key]:
    """The keys that --trust gives, by themselves or in files. Raises UsageError for --repin without one."""
    from puller.errors import UsageError
    from puller.trust import parse_given

    if repin and not words:
        raise UsageError("--repin needs --trust KEY: whom to trust from now on")
    return parse_given(words) if words else []

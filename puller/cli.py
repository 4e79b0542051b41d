"""The command `puller`."""

from __future__ import annotations

import click

from puller.commands.changes import changes_command
from puller.commands.follow import follow_command
from puller.commands.inspect import doctor_command, status_command
from puller.commands.mirror import mirror_command
from puller.commands.pull import pull_command, verify_command
from puller.commands.records import cat_command, get_command, ls_command
from puller.console import EXIT_CODES_LISTED, run


@click.group(epilog=EXIT_CODES_LISTED, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater")
def main() -> None:
    """Keep exact, verified copies of datasets that `publisher` publishes as static files.

    \b
    Examples:
      puller pull https://data.example.org/catalogue ./catalogue
      puller pull https://data.example.org/prices prices.db
      puller follow https://data.example.org/prices prices.db
      puller status prices.db
      puller verify prices.db
      puller mirror https://data.example.org/prices /srv/data/prices
      puller get https://data.example.org/catalogue images/logo.svg
    """


for command in (
    pull_command,
    follow_command,
    mirror_command,
    changes_command,
    status_command,
    verify_command,
    doctor_command,
    get_command,
    ls_command,
    cat_command,
):
    main.add_command(command)


def entry() -> None:
    """The `puller` command."""
    run(main, "puller")


if __name__ == "__main__":
    entry()

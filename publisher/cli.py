"""The command `publisher`."""

from __future__ import annotations

import click

from publisher.commands.collect import gc_command
from publisher.commands.inspect import doctor_command, fsck_command, log_command, status_command
from publisher.commands.keys import key_group, refresh_command, restart_command
from publisher.commands.publish import init_command, publish_command, revert_command
from publisher.commands.serve import serve_command
from publisher.commands.track import track_command, untrack_command
from publisher.commands.watch import watch_command
from puller.console import EXIT_CODES_LISTED, run


@click.group(epilog=EXIT_CODES_LISTED, context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (
    init_command,
    publish_command,
    watch_command,
    status_command,
    log_command,
    gc_command,
    revert_command,
    fsck_command,
    serve_command,
    track_command,
    untrack_command,
    refresh_command,
    restart_command,
    key_group,
    doctor_command,
):
    main.add_command(command)


def entry() -> None:
    """The `publisher` command."""
    run(main, "publisher")


if __name__ == "__main__":
    entry()

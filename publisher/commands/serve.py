"""`publisher serve`."""

from __future__ import annotations

import contextlib

import click

from publisher.commands.options import of_buckets
from publisher.commands.telling import head_at
from puller.console import EXIT_CODES, common, console


@click.command("serve", epilog=EXIT_CODES)
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
    head = head_at(dest)
    try:
        server = make_server(dest, bind, port, quiet=not verbose)
    except OSError as error:
        raise UsageError(f"cannot listen on {bind}:{port}: {error.strerror}") from error
    url = f"http://{bind}:{server.server_address[1]}"
    out.result(f"serving {head.name} at {url} (Ctrl-C ends it)", url=url, name=head.name)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()

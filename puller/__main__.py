"""The process `puller`: one that is interrupted while it still imports ends quietly."""

from __future__ import annotations

import signal


def entry() -> None:
    """Run the command line of this process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` begins
    from puller.cli import entry as begin

    begin()


if __name__ == "__main__":
    entry()

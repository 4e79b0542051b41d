"""The user's own checks of a new version: commands that run before HEAD moves, and whose refusal keeps it where it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

import msgspec

from puller.console import rows_of
from puller.errors import Rejected
from puller.secret import VARIABLE
from puller.stores.base import Store
from puller.stores.folder import FolderStore
from puller.wire.head import HEAD, Head

GRACE = 10
"""Seconds that a validator has to end after an interruption."""


def validate(
    commands: Sequence[str],
    store: Store,
    was: Head | None,
    new: Head,
    data: bytes,
    added: int,
    updated: int,
    deleted: int,
    *,
    secret: str | None = None,
) -> None:
    """Run the commands one after the other against the version that `new` stands for; all of its files are in the store.

    `data` are the bytes of its HEAD, signed as it will be published.

    Each runs in a shell, with a JSON object on stdin that says what changed and with HEADWATER_NAME, HEADWATER_VERSION
    and HEADWATER_CANDIDATE (an address to pull the new version from) in its environment; of an
    encrypted dataset, HEADWATER_SECRET as well (`secret`). What it prints goes to stderr.
    Raises Rejected at the first that does not end with 0.
    """
    if not commands:
        return
    facts = {
        "name": new.name,
        "kind": new.kind,
        "epoch": new.epoch,
        "version": new.version,
        "time": new.time,
        "records": rows_of(new.records, new.kind),
        "checksum": f"{new.checksum:032x}",
        "added": added,
        "updated": updated,
        "deleted": deleted,
        "previous_version": None if was is None else was.version,
        "previous_records": None if was is None else rows_of(was.records, was.kind),
    }
    candidate = _linked(store, data) if isinstance(store, FolderStore) else _served(store, data)
    with candidate as address:
        environment = os.environ | {
            "HEADWATER_NAME": new.name,
            "HEADWATER_VERSION": str(new.version),
            "HEADWATER_CANDIDATE": address,
        }
        if secret is not None:
            environment[VARIABLE] = secret
        for command in commands:
            status = _run(command, msgspec.json.encode(facts) + b"\n", environment)
            if status != 0:
                raise _rejected(command, status, was, new)


@contextlib.contextmanager
def _linked(store: FolderStore, data: bytes) -> Iterator[str]:
    """A folder that serves the new version: its HEAD, and links to the store's files. It goes in the end."""
    folder = tempfile.mkdtemp(prefix="headwater-candidate-")
    try:
        with os.scandir(store.where) as entries:
            for entry in entries:
                if entry.is_dir():
                    os.symlink(os.path.abspath(entry.path), os.path.join(folder, entry.name))
        with open(os.path.join(folder, HEAD), "wb") as file:
            file.write(data)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _served(store: Store, data: bytes) -> Iterator[str]:
    """The address of a server on this machine alone that serves the new version: its HEAD, and the store's files."""
    from publisher.serve import make_server

    store.flush()
    with make_server(store, "127.0.0.1", 0, quiet=True, head=data) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _run(command: str, given: bytes, environment: dict[str, str]) -> int:
    """The exit status of a command (negative: the signal that ended it). An interruption is passed on to all it started."""
    process = subprocess.Popen(  # noqa: S602 - the user's own command line
        command,
        shell=True,
        stdin=subprocess.PIPE,
        stdout=sys.stderr.fileno(),
        env=environment,
        process_group=0,
    )
    try:
        process.communicate(given)
    except BaseException:
        _end(process)
        raise
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _rejected(command: str, status: int, was: Head | None, new: Head) -> Rejected:
    ended = f"ended with exit code {status}" if status > 0 else f"was ended by signal {-status}"
    kept = "there is still nothing published" if was is None else f"HEAD stays at version {was.version}"
    return Rejected(
        f"the validator `{command}` {ended}: version {new.version} of {new.name!r} was not published; {kept}. "
        "Mend the source, or publish without this --validate"
    )

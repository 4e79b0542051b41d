"""Runs the commands as children of a process that has imported everything already, which saves most of a command's start.

As a program, this is the process that forks, one child for each connection to the socket that it is named.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT = 120
PRELOADED = (
    *("boto3", "publisher.cli", "publisher.publish", "publisher.sources.delimited", "publisher.sources.folder"),
    *(
        "publisher.sources.jsonl",
        "publisher.sources.sqlite",
        "puller.cli",
        "puller.http",
        "puller.mirror",
        "puller.pull",
    ),
    *("puller.stores.s3", "puller.targets.folder", "puller.targets.jsonl", "puller.targets.sqlite"),
)


class Warm:
    """The process that forks; commands may be run from several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "socket")
        self.process = subprocess.Popen([sys.executable, "-m", "tests.warm", self.address], stdin=subprocess.DEVNULL)
        while not os.path.exists(self.address):
            assert self.process.poll() is None
            time.sleep(0.01)

    def run(
        self, command: list[str], stdin: bytes | None, cwd: object = None, env: dict[str, str] | None = None
    ) -> tuple[int, bytes, bytes]:
        """Exit status, stdout and stderr of `publisher …` or `puller …`."""
        request = {"command": command, "cwd": str(cwd or os.getcwd()), "env": dict(os.environ if env is None else env)}
        with tempfile.TemporaryFile() as read, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            read.write(stdin or b"")
            read.seek(0)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(self.address)
                socket.send_fds(connection, [b"f"], [read.fileno(), out.fileno(), err.fileno()])
                connection.sendall(json.dumps(request).encode("utf-8"))
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: connection.recv(64), b""))
            for file in (out, err):
                file.seek(0)
            return int(answer or -signal.SIGKILL), out.read(), err.read()

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


def child(connection: socket.socket) -> None:
    """Run the command that is asked for, and answer with its exit status."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["command"]
    import publisher.cli
    import puller.cli

    status = 1
    try:
        {"publisher": publisher.cli.entry, "puller": puller.cli.entry}[sys.argv[0]]()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    connection.sendall(str(status).encode())


def serve(address: str) -> None:
    """Fork a child for each connection."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{address}.new")
        listening.listen(64)
        os.rename(f"{address}.new", address)
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                child(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])

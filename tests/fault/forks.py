"""Runs commands in forked children with the n-th of their file calls failing or killing them (`calls.c`, preloaded).

As a program, this is the process that forks: it reads a request a line on stdin and answers on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MODES = {"count": 0, "kill": 1, "EIO": 2, "EIO from there on": 3}


@dataclass
class Ended:
    """How a command ended: its exit status (-9: killed), what it printed, and the calls it made, as "name path"."""

    status: int
    out: str
    err: str
    calls: list[str]


class Forks:
    """The forking process, below whose folder calls are counted."""

    def __init__(self, folder: Path) -> None:
        library, source = folder / "calls.so", Path(__file__).with_name("calls.c")
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "a C compiler is needed"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True
        )
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.forks", str(library), str(folder)],
            env=os.environ | {"LD_PRELOAD": str(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object, below: Path | None = None, at: int = 0, mode: str = "count") -> Ended:
        """Run `publisher …` or `puller …`; calls on paths that begin with `below` are counted."""
        for name in ("out", "err", "log"):
            (self.folder / name).write_text("")
        request = {"command": list(map(str, command)), "below": str(below or ""), "at": at, "mode": mode}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        calls = [line.partition(" ")[2] for line in (self.folder / "log").read_text().splitlines()]
        ended = Ended(status, (self.folder / "out").read_text(), (self.folder / "err").read_text(), calls)
        assert "Traceback" not in ended.err, ended.err
        return ended

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def child(request: dict, library: str, folder: str) -> None:
    """The forked child: never returns."""
    import publisher.cli
    import puller.cli

    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND), number)
    calls = ctypes.CDLL(library)
    sys.argv = request["command"]
    if request["below"]:
        log = os.path.join(folder, "log")
        calls.calls_arm(request["below"].encode(), log.encode(), ctypes.c_long(request["at"]), MODES[request["mode"]])
    {"publisher": publisher.cli.entry, "puller": puller.cli.entry}[sys.argv[0]]()


def serve(library: str, folder: str) -> None:
    """Fork a child for each request; everything heavy is imported once."""
    import puller.pull
    import puller.targets.folder
    import puller.targets.jsonl
    import puller.targets.sqlite  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                child(json.loads(line), library, folder)
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps(status), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])

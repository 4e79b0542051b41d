"""A real PostgreSQL server for the tests: one private cluster for all processes of a run, a schema for each test."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "4GB",
    "autovacuum": "off",
}


def program(name: str) -> str:
    """Where one of PostgreSQL's programs is; Debian keeps those of each release apart."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name) or name


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs; the server's refuse to be run by root."""
    words = list(map(str, command))
    if os.geteuid() == 0:
        words = ["runuser", "-u", "postgres", "--", *words]
    return subprocess.run(words, capture_output=True, text=True, check=check, cwd="/", timeout=120)


@contextmanager
def shared_server(lock: Path) -> Iterator[str]:
    """The folder of the socket of a server that all who name the same file share; the last one stops it."""
    with _counted(lock) as (users, write):
        where = users[0] if users else _start()
        write([where, *users[1:], str(os.getpid())] if users else [where, str(os.getpid())])
    try:
        yield where
    finally:
        with _counted(lock) as (users, write):
            left = [user for user in users[1:] if user != str(os.getpid())]
            write([where, *left] if left else [])
            if not left:
                run(program("pg_ctl"), "-D", f"{where}/data", "-m", "immediate", "stop", check=False)
                shutil.rmtree(where, ignore_errors=True)


@contextmanager
def _counted(lock: Path):
    """The server's folder and who uses it, from a file that is locked meanwhile, and how to write that."""
    with lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)

        def write(lines: list[str]) -> None:
            file.truncate(0)
            file.write("\n".join(lines))
            file.flush()

        yield file.read().split(), write


def _start() -> str:
    folder = tempfile.mkdtemp(prefix="headwater-postgres-")
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    os.chmod(folder, 0o755)
    run(
        program("initdb"),
        "-D",
        f"{folder}/data",
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "-N",
    )
    settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    options = f"-c unix_socket_directories={folder} {settings}"
    run(program("pg_ctl"), "-D", f"{folder}/data", "-w", "-o", options, "-l", f"{folder}/log", "start")
    return folder


@dataclass
class Database:
    """A schema of its own in the server, and its address."""

    host: str
    schema: str

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(self.host)}&options=-csearch_path%3D{self.schema}"

    def connect(self) -> psycopg.Connection:
        """A connection, with times in UTC."""
        return psycopg.connect(self.url.replace("options=", "options=-ctimezone%3DUTC%20"), autocommit=True)

    def run(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.connect() as db, db.transaction():
            for statement in statements:
                db.execute(statement)

    def rows(self, query: str) -> list[tuple]:
        with self.connect() as db:
            return db.execute(query).fetchall()

    def dump(self, *options: str) -> str:
        """What pg_dump says of the schema's tables, under a name that is always the same."""
        command = [program("pg_dump"), "-h", self.host, "-U", "postgres", "-n", self.schema, *options, "postgres"]
        text = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
        lines = text.replace(f"{self.schema}.", "s.").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("--", "\\")) or line == "\\.")


@contextmanager
def database(host: str, schema: str) -> Iterator[Database]:
    """A schema that is made now and dropped in the end."""
    made = Database(host, schema)
    with psycopg.connect(f"postgresql://postgres@/postgres?host={quote(host)}", autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
        try:
            yield made
        finally:
            db.execute("SET client_min_messages = error")
            db.execute(f"DROP SCHEMA {schema} CASCADE")

"""The row `postgres` of tests.benchmarks.run: a million rows out of and into a real server, beside COPY and zstd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.postgres import database, shared_server

ROWS = """
CREATE TABLE rows (id bigint PRIMARY KEY, name text NOT NULL, price double precision, qty integer, note text, at timestamptz);
INSERT INTO rows SELECT n, 'product number ' || n, n * 1.1, n % 1000,
    CASE WHEN n % 3 <> 0 THEN md5(n::text) || ' "quoted" text' END, timestamptz '2024-01-01' + n * interval '1 second'
FROM generate_series(1, 1000000) n;
CREATE INDEX ON rows (name);
ANALYZE rows;
"""
COPY = "CREATE TABLE rows (id bigint, name text, price double precision, qty bigint, note text, at text)"
KEYS = "ALTER TABLE rows ADD PRIMARY KEY (id); CREATE INDEX ON rows (name)"

Compare = Callable[[str, str, str, Callable[[], None], int], None]


def postgres(scratch: Path, rounds: int, compare: Compare) -> None:
    """Print a row for publishing and one for pulling; the rival's table is made as ours is, with its key and its index."""
    with (
        shared_server(scratch / "postgres") as host,
        database(host, "source") as source,
        database(host, "ours") as ours,
        database(host, "theirs") as theirs,
    ):
        source.run(ROWS)
        dest, dump = scratch / "postgres-out", scratch / "rows.zst"

        def psql(schema: str, *commands: str) -> str:
            words = " ".join(f'-c "{command}"' for command in commands)
            return f"PGHOST={host} PGUSER=postgres PGOPTIONS=-csearch_path={schema} psql -q postgres {words}"

        def fresh() -> None:
            subprocess.run(["rm", "-rf", str(dest)], check=True)

        def empty() -> None:
            ours.run("DROP TABLE IF EXISTS rows, _headwater")
            theirs.run("DROP TABLE IF EXISTS rows")

        publish = f"{sys.executable} -m publisher.cli publish '{source.url}' {dest} --unsigned"
        copy_out = f"{psql('source', 'COPY rows TO STDOUT')} | zstd -q -3 -f -o {dump}"
        compare("PostgreSQL, a million rows: publish / COPY TO STDOUT, zstd -3", publish, copy_out, fresh, rounds)
        fresh()
        subprocess.run(["bash", "-c", publish], check=True, stdout=subprocess.DEVNULL, env=os.environ)
        pull = f"{sys.executable} -m puller.cli pull {dest} '{ours.url}'"
        copy_in = f"{psql('theirs', COPY)} && zstd -dc {dump} | {psql('theirs', 'COPY rows FROM STDIN', KEYS)}"
        compare("PostgreSQL, a million rows: pull / zstd -d, COPY FROM STDIN, indexes", pull, copy_in, empty, rounds)

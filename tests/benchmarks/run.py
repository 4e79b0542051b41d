"""Times whole processes beside their rivals, in one run: python -m tests.benchmarks.run [ROW ...]

A ROW is A, B, tables, C, encrypted, memory, start, signed or postgres (which makes its own data, and needs no others).

Data are read from $BENCH_DATA: `A/tree` and `A/tree-next` (a folder and its next state), `B/big.db` and `B/big-next.db`
(a large file and its next state), `C/rows.jsonl` and `C/rows-next.jsonl` (rows with the key field "key", in key order,
and their next state). Everything is written below --scratch, which should be on tmpfs. Each number is the median of
--rounds rounds; the rivals take turns, and the spread is (slowest - fastest) / median. `memory` has no rival: it times
pulls of C's rows into a `puller.Replica` in one process, its start excluded, and small pulls after them. The rival of
`encrypted` is the same without encryption. `signed` needs no data: it is the CPU time of polls that find nothing new, of a
signed dataset beside an unsigned one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.postgres import postgres
from tests.conftest import start_nginx

DATA = Path(os.environ.get("BENCH_DATA", Path.home() / ".cache/headwater-bench"))
PUBLISHER = f"{sys.executable} -m publisher.cli"
PULLER = f"{sys.executable} -m puller.cli"
WALK = """
import os, sys
def walk(path):
    with os.scandir(path) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                walk(entry.path)
walk(sys.argv[1])
"""
"""The least that a look at every file costs."""


def timed(command: str, prepare: Callable[[], None]) -> float:
    """Seconds that a shell command takes, after `prepare`."""
    prepare()
    start = time.perf_counter()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(title: str, ours: str, rival: str, prepare: Callable[[], None], rounds: int) -> None:
    """Print a row: our seconds, the rival's, and their ratio."""
    times: dict[str, list[float]] = {ours: [], rival: []}
    for _ in range(rounds):
        for command in (ours, rival):
            times[command].append(timed(command, prepare))
    us, them = (statistics.median(times[c]) for c in (ours, rival))
    spread = [(max(times[c]) - min(times[c])) / statistics.median(times[c]) for c in (ours, rival)]
    print(f"| {title} | {us:.2f} s ± {spread[0]:.0%} | {them:.2f} s ± {spread[1]:.0%} | {us / them:.2f} |", flush=True)


def prepare(scratch: Path) -> None:
    """An empty folder, below which commands keep what they remember, too."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    os.environ["XDG_CONFIG_HOME"] = str(scratch / "config")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages come compiled


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "data", nargs="*", help="A, B, tables, C, encrypted, memory, start, signed, postgres; all by default"
    )
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/headwater-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    prepare(scratch)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, median of {arguments.rounds}, scratch {scratch}")
    print("| what | headwater | rival | ratio |\n| --- | --- | --- | --- |")
    with start_nginx(scratch / "nginx") as nginx:
        if not arguments.data or "A" in arguments.data:
            folder(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "B" in arguments.data:
            large(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "tables" in arguments.data:
            tables(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "C" in arguments.data:
            rows(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "encrypted" in arguments.data:
            encrypted(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "memory" in arguments.data:
            memory(nginx.root, nginx.url, arguments.rounds)
        if not arguments.data or "start" in arguments.data:
            start(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "signed" in arguments.data:
            signed(nginx.root, nginx.url, scratch, arguments.rounds)
    if not arguments.data or "postgres" in arguments.data:
        postgres(scratch, arguments.rounds, compare)
    shutil.rmtree(scratch)


def memory(root: Path, url: str, rounds: int) -> None:
    """C into the memory of a program: the whole of it, then 1 % of changes, with and without a listener."""
    publish = f"{PUBLISHER} publish --key key --name c"
    subprocess.run(f"{publish} {DATA}/C/rows.jsonl {root}/memory", shell=True, check=True, stdout=sys.stderr)
    script = """
import sys, time
import puller, puller.http
url, rounds = sys.argv[1], int(sys.argv[2])
def timed(pull, *arguments):
    start = time.perf_counter()
    outcome = pull(*arguments)
    print(outcome.plan.way, outcome.records, time.perf_counter() - start, flush=True)
replicas = [puller.Replica(url) for _ in range(2)]
for _ in range(rounds):
    with puller.Replica(url) as replica:
        timed(replica.pull)
for replica in replicas:
    replica.pull()
sys.stdin.readline()
timed(replicas[0].pull)
timed(replicas[1].pull, lambda change: None)
"""
    command = [sys.executable, "-c", script, f"{url}/memory", str(rounds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = [process.stdout.readline().split() for _ in range(rounds)]
        times = [float(seconds) / int(records) * 1e6 for _, records, seconds in lines]
        spread = (max(times) - min(times)) / statistics.median(times)
        print(
            f"| C pull into memory, a million rows | {statistics.median(times):.2f} s ± {spread:.0%} | | |", flush=True
        )
        subprocess.run(f"{publish} {DATA}/C/rows-next.jsonl {root}/memory", shell=True, check=True, stdout=sys.stderr)
        process.stdin.write("go on\n")
        process.stdin.flush()
        for what in ("", ", changes told"):
            way, _, seconds = process.stdout.readline().split()
            print(f"| C pull of the next state into memory, by {way}{what} | {float(seconds):.2f} s | | |", flush=True)


def folder(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """A: a folder, against tar and zstd."""
    tree, out = DATA / "A/tree", scratch / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    tar = f"tar -C {tree} -cf - . | zstd -q -3 -T2"
    compare(
        "A publish / `tar \\| zstd -3 -T2`",
        f"{PUBLISHER} publish {tree} {out}/a",
        f"{tar} > {out}/a.tar.zst",
        clean,
        rounds,
    )
    subprocess.run(
        f"{PUBLISHER} publish {tree} {root}/a; {tar} > {root}/a.tar.zst", shell=True, check=True, stdout=sys.stderr
    )
    link_plain(root, root / "a.tar.zst")
    compare(
        "A pull / `curl \\| zstd -d \\| tar x`",
        f"{PULLER} pull {url}/a {out}/copy",
        f"mkdir {out}/copy; curl -sf {url}/plain/chunks/aa/{'a' * 64}.zst | zstd -qd | tar -C {out}/copy -xf -",
        clean,
        rounds,
    )
    behind(root, url, scratch, rounds)
    unchanged(scratch, rounds)


def encrypted(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """A: what encryption costs, and a mirror against curl of the same files."""
    tree, out = DATA / "A/tree", scratch / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    publish = f"{PUBLISHER} publish {tree}"
    compare("A publish, encrypted / plain", f"{publish} {out}/a --encrypt", f"{publish} {out}/a", clean, rounds)
    subprocess.run(
        f"{publish} {root}/encrypted --encrypt; {publish} {root}/open", shell=True, check=True, stdout=sys.stderr
    )
    pull = f"{PULLER} pull {url}"
    compare("A pull, encrypted / plain", f"{pull}/encrypted {out}/copy", f"{pull}/open {out}/copy", clean, rounds)
    names = [path.relative_to(root) for path in (root / "encrypted").rglob("*") if path.is_file()]
    lines = "".join(f'url = "{url}/{name}"\noutput = "{out}/{name}"\n' for name in names)
    (scratch / "names").write_text(lines)
    curl = f"curl -sf --parallel --parallel-max 8 --create-dirs -K {scratch}/names"
    compare("A mirror / `curl --parallel`", f"{PULLER} mirror {url}/encrypted {out}/mirror", curl, clean, rounds)


def behind(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """A: a pull after 1 % changed, against fetching the whole tree again."""
    after, out, base = DATA / "A/tree-next", scratch / "out", scratch / "base-a"
    pull = f"{PULLER} pull --json {url}/a"
    subprocess.run(
        f"{pull} {base}; {PUBLISHER} publish {after} {root}/a; tar -C {after} -cf - . | zstd -q -3 -T2 > {root}/next",
        shell=True,
        check=True,
        stdout=sys.stderr,
    )
    link_plain(root, root / "next")

    def prepare() -> None:
        """The copy of the version before: a pull replaces files, so that they may be shared."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        subprocess.run(
            f"cp -al {base} {out}/copy; cp -a --remove-destination {base}/.headwater {out}/copy/",
            shell=True,
            check=True,
        )

    whole = f"curl -sf {url}/plain/chunks/aa/{'a' * 64}.zst | zstd -qd | tar -C {out}/whole -xf -"
    compare(
        "A pull, 1 % changed / `curl \\| zstd -d \\| tar x` of all",
        f"{pull} {out}/copy > {scratch}/pulled",
        f"mkdir {out}/whole; {whole}",
        prepare,
        rounds,
    )
    done = json.loads((scratch / "pulled").read_text())
    print(f"\nA, 1 % changed: {done['received']:,} bytes in {done['requests']} requests by {done['way']}\n", flush=True)


def unchanged(scratch: Path, rounds: int) -> None:
    """A: publishing a folder that did not change, or 1 % of it, against a walk through it."""
    tree, out = DATA / "A/tree", scratch / "out"
    subprocess.run(f"{PUBLISHER} publish -q {tree} {out}/b", shell=True, check=True)
    walk = f"{sys.executable} -c '{WALK}' {tree}"
    compare("A publish, nothing new / walk", f"{PUBLISHER} publish {tree} {out}/b", walk, lambda: None, rounds)

    work = scratch / "tree"

    def change() -> None:
        """The tree as published and settled, then 1 % of its files with other content."""
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tree, work, symlinks=True)
        shutil.rmtree(out)
        time.sleep(2.5)
        subprocess.run(f"{PUBLISHER} publish -q {work} {out}/b", shell=True, check=True)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        for path in files[:: len(files) // 200]:
            path.write_bytes(path.read_bytes()[::-1])

    compare("A publish, 1 % changed / walk", f"{PUBLISHER} publish {work} {out}/b", walk, change, rounds)


def link_plain(root: Path, file: Path) -> None:
    """Put a rival's file where the server's configuration serves files."""
    place = root / "plain/chunks/aa" / f"{'a' * 64}.zst"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    os.link(file, place)


def large(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """B: a change in a large file, against zstd with the old file as dictionary; and the bytes it takes."""
    big, after, base, out = DATA / "B/big.db", DATA / "B/big-next.db", scratch / "base", scratch / "out"
    rival = f"zstd -q -3 --long=27 --patch-from={big} {after} -o"

    def state(of: Path) -> None:
        shutil.rmtree(base / "src", ignore_errors=True)
        (base / "src").mkdir(parents=True)
        shutil.copy(of, base / "src/big.db")

    def prepare() -> None:
        """Version 1, published and pulled; files that are replaced, not changed, are shared with `base`."""
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run(
            f"cp -al {base} {out}; cp -a --remove-destination {base}/copy/.headwater {out}/copy/", shell=True
        )

    state(big)
    subprocess.run(
        f"{PUBLISHER} publish {base}/src {base}/b; {PULLER} pull {base}/b {base}/copy", shell=True, stdout=sys.stderr
    )
    state(after)
    publish = f"{PUBLISHER} publish {base}/src {out}/b"
    compare("B publish a change / `zstd -3 --patch-from`", publish, f"{rival} {out}/rival", prepare, rounds)
    prepare()
    subprocess.run(f"{publish}; cp -a {out}/b {root}/b; {rival} {root}/b.zst", shell=True, stdout=sys.stderr)
    link_plain(root, root / "b.zst")
    written = sum(_size(path) - _size(base / path.relative_to(out)) for path in (out / "b").rglob("*"))
    plain = f"curl -sf {url}/plain/chunks/aa/{'a' * 64}.zst"
    compare(
        "B pull a change / `curl \\| zstd -d --patch-from`",
        f"{PULLER} pull --json {url}/b {out}/copy > {scratch}/pulled",
        f"{plain} | zstd -qd --long=27 --memory=2048MB --patch-from={big} -o {out}/rival",
        prepare,
        rounds,
    )
    received = json.loads((scratch / "pulled").read_text())["received"]
    print(f"\nB: {written:,} bytes written, {received:,} fetched; the rival's file has {_size(root / 'b.zst'):,}\n")


LOOP = """
import sqlite3, sys
for row in sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True).execute("SELECT * FROM item"):
    pass
"""
"""The least that reading a table from Python costs."""

COPY = """
import sqlite3, sys
source = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
db = sqlite3.connect(sys.argv[2], isolation_level=None)
db.execute("PRAGMA cache_size=-65536")
db.execute("BEGIN")
db.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT, name TEXT, body TEXT, price REAL, stock INT, updated INT)")
db.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?)", source.execute("SELECT * FROM item"))
db.execute("CREATE INDEX item_sku ON item(sku)")
db.execute("COMMIT")
"""
"""The same rows into the same table, with the same index, by `executemany`."""


def tables(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """B as tables: three million rows from SQLite and into it."""
    big, after, out = DATA / "B/big.db", DATA / "B/big-next.db", scratch / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    for name, script in (("loop", LOOP), ("copy", COPY)):
        (scratch / f"{name}.py").write_text(script)
    loop = f"{sys.executable} {scratch}/loop.py {big}"
    compare(
        "B as tables, publish / a loop over `SELECT *`", f"{PUBLISHER} publish -q {big} {out}/t", loop, clean, rounds
    )
    subprocess.run(f"{PUBLISHER} publish -q {big} {root}/t", shell=True, check=True)
    pull = f"{PULLER} pull -q {url}/t {out}/copy.db"
    copy = f"{sys.executable} {scratch}/copy.py {big} {out}/rival.db"
    compare("B as tables, pull into SQLite / `executemany` of its rows", pull, copy, clean, rounds)
    clean()
    subprocess.run(f"{pull} && {PUBLISHER} publish -q {after} {root}/t", shell=True, check=True)
    done = subprocess.run(f"{PULLER} pull --json {url}/t {out}/copy.db", shell=True, check=True, capture_output=True)
    fetched = json.loads(done.stdout)
    print(
        f"\nB as tables, the next state: {fetched['received']:,} bytes in {fetched['requests']} requests\n", flush=True
    )
    tracked(scratch)


def tracked(scratch: Path) -> None:
    """A tracked database of a million rows, 100 of which change before each publish; one process, its start excluded."""
    script = """
import random, sqlite3, statistics, sys, time
from publisher.publish import Options, publish
from publisher.sources import open_source, tracking
from puller.stores import open_store
path, dest = sys.argv[1:]
db = sqlite3.connect(path)
db.execute("CREATE TABLE t(k TEXT PRIMARY KEY, v TEXT, n INT)")
db.executemany("INSERT INTO t VALUES(?, ?, ?)", ((f"user/{n:08d}", f"value {n} " * 8, n) for n in range(1_000_000)))
db.commit()
tracking.track(path)
def find(name, schema):
    return open_source(path, None, key=(), tables=(), name=name, schema=schema, strict=False, cached_for=dest)
times = []
for _ in range(42):
    keys = [(f"user/{random.randrange(1_000_000):08d}",) for _ in range(100)]
    db.executemany("UPDATE t SET n = n + 1 WHERE k = ?", keys)
    db.commit()
    start = time.perf_counter()
    publish(open_store(dest), find, "data", Options())
    times.append(time.perf_counter() - start)
first, second, *others = times
print(f"a million rows, 100 changed: median {statistics.median(others) * 1000:.0f} ms, longest {max(others) * 1000:.0f} ms; "
      f"the first publish {first:.1f} s, the one that makes the cache {second:.1f} s")
"""
    subprocess.run([sys.executable, "-c", script, f"{scratch}/tracked.db", f"{scratch}/tracked"], check=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def rows(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """C: a table, against zstd of its file."""
    source, out = DATA / "C/rows.jsonl", scratch / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    compare(
        "C publish / `zstd -3 -T2`",
        f"{PUBLISHER} publish {source} {out}/c --key key",
        f"zstd -q -3 -T2 {source} -o {out}/c.zst",
        clean,
        rounds,
    )

    zstd = f"zstd -q -3 -T2 {source} -o {out}/c.zst"
    shuffled = scratch / "shuffled.jsonl"
    lines = source.read_bytes().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    shuffled.write_bytes(b"".join(lines))
    compare(
        "C publish, shuffled / in order",
        f"{PUBLISHER} publish {shuffled} {out}/c --key key",
        f"{PUBLISHER} publish {source} {out}/d --key key",
        clean,
        rounds,
    )

    def published() -> None:
        clean()
        subprocess.run(f"{PUBLISHER} publish -q {source} {out}/c --key key", shell=True, check=True)

    after = DATA / "C/rows-next.jsonl"
    compare("C publish, 1 % changed / `zstd -3 -T2`", f"{PUBLISHER} publish {after} {out}/c", zstd, published, rounds)
    into_sqlite(root, url, scratch, rounds)
    same = f"{PUBLISHER} publish --no-cache {source} {out}/c"
    compare("C publish, nothing new, read again / `zstd -3 -T2`", same, zstd, published, rounds)


EXECUTEMANY = """
import sqlite3, sys
from {module} import {function} as decode
db = sqlite3.connect(sys.argv[2], isolation_level=None)
db.execute("PRAGMA cache_size=-65536")
db.execute("BEGIN")
db.execute('CREATE TABLE "c" ("key" TEXT, "value" TEXT, "updated" INTEGER, PRIMARY KEY ("key"))')
with open(sys.argv[1], "rb") as file:
    rows = ((row["key"], row["value"], row["updated"]) for row in map(decode, file))
    db.executemany("INSERT INTO c VALUES (?, ?, ?)", rows)
db.execute("COMMIT")
"""
"""What one would write: the same table, pragmas and transaction, rows parsed as they are inserted."""


def into_sqlite(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """C: a pull into SQLite, against `executemany` from the file."""
    out, source, script = scratch / "out", DATA / "C/rows.jsonl", scratch / "executemany.py"
    subprocess.run(f"{PUBLISHER} publish -q {source} {root}/c --key key", shell=True, check=True)

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    ours, rival = f"{PULLER} pull {url}/c {out}/c.db", f"{sys.executable} {script} {source} {out}/rival.db"
    for module, function in (("json", "loads"), ("msgspec.json", "decode")):
        script.write_text(EXECUTEMANY.format(module=module, function=function))
        compare(f"C pull into SQLite / `executemany`, `{module}.{function}`", ours, rival, clean, rounds)


def start(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """What starting costs, against bare Python."""
    bare = f"{sys.executable} -c pass"
    compare("`publisher --help` / Python", f"{PUBLISHER} --help", bare, lambda: None, rounds)
    compare("`puller --help` / Python", f"{PULLER} --help", bare, lambda: None, rounds)
    source = scratch / "few"
    source.mkdir()
    (source / "file").write_text("text")
    pull = f"{PULLER} pull {url}/few {scratch}/few-copy"
    subprocess.run(f"{PUBLISHER} publish -q {source} {root}/few; {pull}", shell=True, check=True, stdout=sys.stderr)
    compare("pull, nothing new / Python", pull, bare, lambda: None, rounds)


def signed(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """CPU time of a poll that finds nothing new, of a signed dataset and of an unsigned one: processes, and a replica's polls."""
    import puller

    source = scratch / "rows.jsonl"
    source.write_text("".join(f'{{"k": {n}, "v": "value {n}"}}\n' for n in range(1000)))
    times: dict[tuple[str, str], list[float]] = {}
    replicas = {}
    for name, flag in (("signed", ""), ("unsigned", "--unsigned")):
        publish = f"{PUBLISHER} publish -q {source} {root}/poll-{name} --key k --name poll {flag}"
        subprocess.run(f"{publish}; {PULLER} pull -q {url}/poll-{name} {scratch}/{name}.db", shell=True, check=True)
        replicas[name] = puller.Replica(f"{url}/poll-{name}", str(scratch / f"{name}-replica.db"))
        replicas[name].pull()
    for _ in range(rounds * 10):
        for name, replica in replicas.items():
            process = subprocess.Popen([*PULLER.split(), "pull", "-q", f"{url}/poll-{name}", f"{scratch}/{name}.db"])
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            process.returncode = 0
            times.setdefault(("process", name), []).append(usage.ru_utime + usage.ru_stime)
            began = time.process_time()
            for _ in range(10):
                replica.pull()
            times.setdefault(("replica", name), []).append((time.process_time() - began) / 10)
    for what in ("process", "replica"):
        us, them = (statistics.median(times[what, name]) * 1000 for name in ("signed", "unsigned"))
        print(
            f"| poll, nothing new, signed / unsigned: CPU of a {what} | {us:.2f} ms | {them:.2f} ms | {us - them:+.2f} ms |"
        )


if __name__ == "__main__":
    main()

"""Times Parquet and CSV beside pyarrow: python -m tests.benchmarks.columns [--cpu]

C's rows ($BENCH_DATA, see tests.benchmarks.run) as a Parquet file are published, and pulled into CSV and into Parquet,
beside a script that reads the same Parquet file by pyarrow and writes it as CSV into `zstd -3 -T2`, as CSV, and as
Parquet with zstd. Each number is the median of --rounds rounds, in seconds, or with --cpu in CPU seconds (user and
system) of all processes.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import run

MAKE = """
import sys, pyarrow.json, pyarrow.parquet
table = pyarrow.json.read_json(sys.argv[1])
pyarrow.parquet.write_table(table, sys.argv[2], compression="zstd", row_group_size=120_000)
"""
TO_CSV = """
import sys, pyarrow.csv, pyarrow.parquet
file = pyarrow.parquet.ParquetFile(sys.argv[1])
with pyarrow.csv.CSVWriter(sys.stdout.buffer, file.schema_arrow) as out:
    for batch in file.iter_batches():
        out.write_batch(batch)
"""
TO_PARQUET = """
import sys, pyarrow.parquet
file = pyarrow.parquet.ParquetFile(sys.argv[1])
with pyarrow.parquet.ParquetWriter(sys.argv[2], file.schema_arrow, compression="zstd") as out:
    for n in range(file.num_row_groups):
        out.write_table(file.read_row_group(n))
"""


def cpu(command: str, prepare: object) -> float:
    """CPU seconds that a shell command and its processes take, after `prepare`."""
    prepare()  # type: ignore[operator]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row for each comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/headwater-columns"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu:
        run.timed = cpu
    scratch: Path = arguments.scratch
    run.prepare(scratch)
    rows, out = scratch / "rows.parquet", scratch / "out"
    subprocess.run([sys.executable, "-c", MAKE, run.DATA / "C/rows.jsonl", rows], check=True)
    subprocess.run(f"{run.PUBLISHER} publish -q {rows} {scratch}/d --key key", shell=True, check=True)
    scripts = {name: scratch / name for name in ("to_csv.py", "to_parquet.py")}
    for path, text in zip(scripts.values(), (TO_CSV, TO_PARQUET), strict=True):
        path.write_text(text)
    to_csv, to_parquet = (f"{sys.executable} {path} {rows}" for path in scripts.values())

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    print("| what | headwater | rival | ratio |\n| --- | --- | --- | --- |")
    publish = f"{run.PUBLISHER} publish {rows} {out}/d --key key --no-cache"
    zipped = f"{to_csv} | zstd -q -3 -T2 -o {out}/rows.zst"
    run.compare("C as Parquet, publish / pyarrow to CSV, `zstd -3 -T2`", publish, zipped, clean, arguments.rounds)
    pull = f"{run.PULLER} pull {scratch}/d {out}/copy"
    run.compare("C, pull into CSV / pyarrow to CSV", f"{pull}.csv", f"{to_csv} > {out}/x.csv", clean, arguments.rounds)
    again = f"{to_parquet} {out}/x.parquet"
    run.compare("C, pull into Parquet / pyarrow to Parquet", f"{pull}.parquet", again, clean, arguments.rounds)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()

"""The layers stay apart: imports run one way, and light installations stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PURE = {"runs", "plan", "errors", "forms", "blocks", "parts", "service/metrics", "service/backoff"}
PURE |= {"targets/tables", "targets/sqliteforms", "targets/pgforms"}
IO = {
    "os",
    "io",
    "time",
    "socket",
    "http",
    "sqlite3",
    "subprocess",
    "tempfile",
    "shutil",
    "random",
    "secrets",
    "datetime",
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("puller"), ids=str)
def test_puller_never_imports_publisher(path):
    optional = {"publisher", "watchdog", "boto3", "pyarrow"}
    optional -= {"s3.py": {"boto3"}, "arrow.py": {"pyarrow"}, "parquet.py": {"pyarrow"}}.get(path.name, set())
    assert not [name for name in imports(path) if name.split(".")[0] in optional]


@pytest.mark.parametrize("path", modules("puller/wire"), ids=str)
def test_wire_is_a_leaf_without_io_or_clock(path):
    names = imports(path)
    assert not [n for n in names if n.startswith("puller.") and not n.startswith(("puller.wire", "puller.errors"))]
    assert not {name.split(".")[0] for name in names} & IO
    assert "open(" not in path.read_text()


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_do_no_io(name):
    assert not {n.split(".")[0] for n in imports(ROOT / f"puller/{name}.py")} & IO


@pytest.mark.parametrize("path", modules("publisher"), ids=str)
def test_publisher_uses_the_readers_half_only(path):
    allowed = (
        *("wire", "errors", "fetch", "tree", "runs", "plan", "durable", "clock", "console", "forms", "lookup"),
        *(
            "trust",
            "secret",
            "stores",
            "s3",
            "doctor",
            "sqlitefile",
            "passwords",
            "postgresql",
            "arrow",
            "progress",
            "service",
        ),
    )
    used = {n.split(".")[1] for n in imports(path) if n.startswith("puller.")}
    assert used <= set(allowed), used


def test_targets_and_sources_do_not_know_each_other():
    for package in ("puller/targets", "publisher/sources", "puller/stores"):
        for path in modules(package):
            if path.name in ("__init__.py", "base.py"):
                continue
            siblings = {"folder", "sqlite", "jsonl", "delimited", "parquet", "memory", "s3", "postgres"} - {path.stem}
            siblings -= {"folder"} if path.stem == "generations" else set()  # each generation is a folder target
            dotted = package.replace("/", ".")
            assert not {f"{dotted}.{name}" for name in siblings} & imports(path)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import puller.cli",
            "msgspec zstandard xxhash sqlite3 rich publisher cryptography boto3 watchdog pyarrow psycopg",
        ),
        ("import publisher.cli", "zstandard xxhash sqlite3 rich pyfastcdc cryptography boto3 watchdog psycopg"),
        ("import puller.pull", "sqlite3 rich publisher cryptography boto3 watchdog psycopg"),
        ("import puller.s3, puller.fetch", "boto3 botocore"),
        ("import puller; puller.Replica", "sqlite3 rich click publisher cryptography boto3 watchdog psycopg"),
        ("import puller.targets.parquet, puller.targets.delimited, publisher.sources.parquet", "pyarrow sqlite3"),
        ("import publisher.publish, publisher.dataset", "cryptography boto3 watchdog pyarrow psycopg"),
    ],
)
def test_heavy_modules_load_late(statement, absent):
    script = f"{statement}; import sys; print([m for m in {absent.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Every command in a document is run, and what documents name exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from publisher.watch import meters as watch_meters
from puller.follow import meters as follow_meters
from puller.service.process import Service
from puller.service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.S | re.M)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
DOCUMENTS = [p for p in ROOT.rglob("*.md") if not {".venv", "build", ".git"} & set(p.relative_to(ROOT).parts)]


def blocks() -> list[str]:
    return [block for path in sorted(DOCUMENTS) for block in BLOCK.findall(path.read_text())]


def run(script: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    return done.stdout


def is_set_up(block: str) -> bool:
    return "pip install" in block or ".ci/test" in block


def test_commands_in_documents_work_when_pasted(tmp_path, bucket, postgres_host):
    """In the order they stand in, in one folder, with the commands on the PATH; then Python, which prints what it says.

    The environment leads to moto's server, which has the one bucket that is named, and to a PostgreSQL server.
    """
    bucket.client.create_bucket(Bucket="acme-data")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("publisher", "puller"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name}.cli "$@"\n')
        program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    found = [block for block in blocks() if not is_set_up(block)]
    assert len(found) >= 3
    server = {"PGHOST": postgres_host, "PGUSER": "postgres"}
    path = f"{programs}:{os.environ['PATH']}"
    outputs = [run(block, work, PATH=path, PYTHONPATH=str(ROOT), **server) for block in found]
    assert "a1|9.5\nb2|12.0\n" in "".join(outputs)
    assert "nothing new (exit code 10)" in "".join(outputs)
    examples = [block for path in sorted(DOCUMENTS) for block in PYTHON.findall(path.read_text())]
    assert examples
    for example in examples:
        script = f"{sys.executable} - <<'END'\n{example}END"
        printed = run(script, work, PYTHONPATH=str(ROOT)).split("\n")
        for line in example.split("\n"):
            if "print(" in line and "# " in line:
                promised = line.partition("# ")[2].partition(":")[0].split(", ")
                assert set(promised) <= set(printed), (promised, printed)


@pytest.mark.slow
def test_the_first_command_sets_everything_up(tmp_path):
    """From a fresh checkout, in a fresh environment, without the optional parts."""
    block = next(block for block in blocks() if "pip install" in block)
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name, follow_symlinks=False)
    assert "bootstrap" in run(block, tmp_path)
    installed = run(".venv/bin/pip list", tmp_path)
    assert "boto3" not in installed
    assert "watchdog" not in installed
    assert (tmp_path / "demo/copy/nginx/headwater.conf").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_names_exist(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    for name in re.findall(r"`((?:puller|publisher|tests|infra|\.ci)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for name in ("publisher", "puller"):
        out = subprocess.run(
            [sys.executable, "-m", f"{name}.cli", "--help"], capture_output=True, text=True, check=True
        ).stdout
        for command in re.findall(r"^  (\w+)  ", out.partition("Commands:")[2], re.M):
            assert f"{name} {command}" in text


def test_architecture_names_every_module():
    text = (ROOT / "publisher/ARCHITECTURE.md").read_text()
    for package in ("puller", "publisher"):
        for path in (ROOT / package).rglob("*.py"):
            if path.stem not in ("__init__", "base", "cli") and path.parent.name != "commands":
                assert f"{path.stem}.py`" in text or f"`{path.stem}`" in text, path


@pytest.mark.parametrize(("package", "meters"), [("puller", follow_meters.Meters), ("publisher", watch_meters.Meters)])
def test_guides_list_all_metrics(package, meters):
    service = Service(package, Settings())
    meters(service.registry)
    told = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in service.registry._metrics.values()
    ]
    guide = (ROOT / package / "GUIDE.md").read_text().splitlines()
    assert [line for line in guide if line.startswith("| `headwater_")] == told

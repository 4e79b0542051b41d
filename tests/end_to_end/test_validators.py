"""The user's validators: they see the new version before anybody else, and their refusal keeps HEAD where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import publisher, tree

PULLER = f"{sys.executable} -m puller.cli"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    (tmp_path / "t").mkdir()
    return tmp_path


def publish(data, *validators, check=0, more=(), **options):
    arguments = [part for command in validators for part in ("--validate", command)]
    environment = {"env": os.environ | {"TMPDIR": str(data / "t")}}
    done = publisher("publish", data / "s", data / "d", *more, *arguments, check=check, **environment, **options)
    assert list((data / "t").iterdir()) == []
    return done


@pytest.mark.parametrize("version", [1, 2])
def test_a_validator_pulls_the_candidate_and_knows_what_changed(data, version):
    if version == 2:
        publish(data)
        (data / "s/a").write_text("changed")
        (data / "s/b").write_text("b")
    command = (
        f'cat > {data}/facts && {PULLER} pull "$HEADWATER_CANDIDATE" {data}/seen && '
        f'test ! -e {data}/d/heads/1-{version} && echo "$HEADWATER_NAME $HEADWATER_VERSION" > {data}/env && echo passed'
    )
    done = publish(data, command, more=["--json"])
    assert done.json["version"] == version
    assert "passed" in done.err
    facts = json.loads((data / "facts").read_text())
    expected = {
        "name": "d",
        "kind": "files",
        "version": version,
        "records": version,
        "added": 1,
        "updated": version - 1,
        "deleted": 0,
        "previous_version": None if version == 1 else 1,
        "previous_records": None if version == 1 else 1,
        "checksum": done.json["checksum"],
    }
    assert expected.items() <= facts.items()
    assert (data / "env").read_text() == f"d {version}\n"
    assert tree(data / "seen") == tree(data / "s")


def test_the_first_refusal_keeps_head_and_says_what_happened(data):
    refused = publish(data, f"touch {data}/one", "exit 7", f"touch {data}/two", check=3, more=["--json"])
    assert refused.json["error"] == "Rejected"
    for part in ("`exit 7`", "exit code 7", "version 1", "nothing published"):
        assert part in refused.json["message"]
    assert (data / "one").exists()
    assert not (data / "two").exists()
    assert not (data / "d/HEAD").exists()
    publish(data)
    head = (data / "d/HEAD").read_bytes()
    (data / "s/a").write_text("changed")
    refused = publish(data, "kill -9 $$", check=3)
    assert "signal 9" in refused.err
    assert "HEAD stays at version 1" in refused.err
    assert (data / "d/HEAD").read_bytes() == head
    assert publish(data, "true", more=["--json"]).json["version"] == 2


def test_validators_do_not_run_where_nothing_is_published(data):
    publish(data)
    publish(data, f"touch {data}/ran")
    (data / "s/a").write_text("changed")
    publish(data, f"touch {data}/ran", more=["--dry-run"])
    assert not (data / "ran").exists()


def test_a_validator_need_not_read_what_it_is_given(data):
    publish(data, "exec <&-; true")


SLEEPER = """
import os, sys, time
with open(sys.argv[1] + "/new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + "/new", sys.argv[1] + "/begun")
time.sleep(60)
"""


def test_an_interruption_reaches_what_the_validator_started(data):
    (data / "sleeper.py").write_text(SLEEPER)
    command = f"{sys.executable} {data}/sleeper.py {data}; true"
    process = subprocess.Popen(
        [sys.executable, "-m", "publisher.cli", "publish", data / "s", data / "d", "--validate", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not (data / "begun").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == b""
    with pytest.raises(ProcessLookupError):
        os.kill(int((data / "begun").read_text()), 0)
    assert not (data / "d/HEAD").exists()

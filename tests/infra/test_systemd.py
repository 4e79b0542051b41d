"""The systemd units: valid, confined, and their commands exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from publisher.commands.watch import watch_command
from puller.commands.follow import follow_command
from tests.conftest import ROOT
from tests.infra.serving import replaced

UNITS = ROOT / "infra/systemd"
EXPOSURE = 15  # tenths; "OK" begins below 50, and a service without any of it has 96


@pytest.fixture
def instances(tmp_path):
    """The units as instances named `prices`, with programs that exist here."""
    for path in UNITS.glob("*@.*"):
        text = path.read_text()
        if path.suffix == ".service":
            text = replaced(text, ("/opt/headwater/bin/", f"{tmp_path}/"))
        (tmp_path / path.name.replace("@.", "@prices.")).write_text(text)
    for name in ("puller", "publisher"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def analyze(*arguments: str | Path, folder: Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_units_are_valid(instances):
    units = sorted(path.name for path in instances.glob("*@prices.*"))
    assert len(units) == 2
    assert analyze("verify", "--man=no", *(f"./{unit}" for unit in units), folder=instances) == ""


@pytest.mark.parametrize("name", ["puller", "publisher"])
def test_services_are_confined(name, instances):
    analyze(
        "security", "--offline=true", f"--threshold={EXPOSURE}", f"./headwater-{name}@prices.service", folder=instances
    )


def test_both_services_are_confined_alike():
    """What follows the comment about confinement is the same in both."""
    texts = (path.read_text().partition("\n[Install]")[0] for path in UNITS.glob("*.service"))
    ends = {text.partition("NoNewPrivileges=")[2].strip() for text in texts}
    assert len(ends) == 1
    assert "MemoryDenyWriteExecute=yes" in ends.pop()


def test_the_environment_gives_what_commands_use():
    """Each variable of a command is explained above the file that sets it."""
    for path in UNITS.glob("*.service"):
        text = path.read_text()
        (command,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
        explained = text.partition("EnvironmentFile=")[0]
        for variable in re.findall(r"\$\{?([A-Z]+)", command):
            assert f"{variable}=" in explained


@pytest.mark.parametrize(
    ("name", "command", "needed"),
    [
        ("puller", follow_command, {"HEADWATER_URL", "HEADWATER_TARGET"}),
        ("publisher", watch_command, {"HEADWATER_SOURCE", "HEADWATER_DEST"}),
    ],
)
def test_services_are_set_by_variables_that_they_know(name, command, needed):
    text = (UNITS / f"headwater-{name}@.service").read_text().partition("EnvironmentFile=")[0]
    given = dict(re.findall(r"(HEADWATER_[A-Z_]+)=(\S+)", text))
    assert needed <= set(given)
    assert set(command._environment(given)) == {name.removeprefix("HEADWATER_").lower() for name in given}

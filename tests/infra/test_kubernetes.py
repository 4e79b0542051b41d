"""The Kubernetes sidecar: valid for every version it claims, confined, and its loop is run as it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, publisher, puller
from tests.infra.serving import replaced

MANIFEST = ROOT / "infra/kubernetes/sidecar.yaml"
DOCKERFILE = ROOT / "infra/kubernetes/Dockerfile"


@pytest.fixture(scope="module")
def pod():
    return yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", [["-k", "1.29"], []], ids=["oldest", "newest"])
def test_the_manifest_is_valid(version):
    done = subprocess.run(
        [Path(sys.executable).with_name("kubernetes-validate"), *version, "--strict", MANIFEST],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "passed" in done.stdout + done.stderr


def test_every_container_is_confined(pod):
    security = pod["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["initContainers"] + pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = [m for c in pod["initContainers"] + pod["containers"] for m in c["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == volumes
    (app,) = pod["containers"]
    assert all(mount["readOnly"] for mount in app["volumeMounts"])


def until(true, what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_pod_pulls_then_follows_then_stops(pod, tmp_path):
    """The containers' own commands, with URL, folder and pause replaced."""
    first, sidecar = pod["initContainers"]
    (url,) = [variable["value"] for variable in sidecar["env"]]
    assert first["args"] == ["pull", url, "/data/catalogue"]
    assert sidecar["restartPolicy"] == "Always"
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    (source / "tea").write_text("green")
    publisher("publish", source, tmp_path / "host")
    puller("pull", tmp_path / "host", data)

    program = tmp_path / "bin/puller"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m puller.cli "$@"\n')
    program.chmod(0o755)
    (script,) = sidecar["args"]
    script = replaced(script, ("/data/catalogue", str(data)), ("-i 25-35", "-i 1-1"))
    environment = os.environ | {
        "URL": str(tmp_path / "host"),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    loop = subprocess.Popen([*sidecar["command"], script], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        (tmp_path / "host/HEAD").rename(tmp_path / "host/HEAD.away")
        error = loop.stderr.readline()
        assert "there is no HEAD" in error
        (tmp_path / "host/HEAD.away").rename(tmp_path / "host/HEAD")
        (source / "tea").write_text("black")
        publisher("publish", source, tmp_path / "host")
        until(lambda: (data / "tea").read_text() == "black", "the loop did not go on after a pull that failed")
    finally:
        loop.send_signal(signal.SIGTERM)
        loop.communicate(timeout=10)
    assert loop.returncode == 0
    puller("verify", data)


def test_the_image_is_built_from_what_is_there():
    text = DOCKERFILE.read_text()
    sources = [name for line in re.findall(r"^COPY (.*)$", text, re.M) for name in line.split()[:-1]]
    assert {"pyproject.toml", "puller", "publisher"} <= set(sources)
    for name in sources:
        assert (ROOT / name).exists()
    user = re.search(r"^USER (\d+):(\d+)$", text, re.M)
    security = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]["securityContext"]
    assert [int(n) for n in user.groups()] == [security["runAsUser"], security["runAsGroup"]]

"""The Kubernetes sidecar: valid for every version it claims, confined, and its sidecar is run as it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml

from tests.buckets import free_port
from tests.conftest import ROOT, publisher, puller

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


def asked(probe: dict, port: int) -> int:
    """What a probe is answered; 0 while nobody listens."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{probe['httpGet']['path']}", timeout=5) as answer:
            return answer.status
    except HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_the_sidecar_pulls_then_follows_then_stops(pod, tmp_path):
    """The container's own command and variables, with address, folder, port and interval replaced; the probes that it has."""
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    given = {variable["name"]: variable["value"] for variable in sidecar["env"]}
    (port,) = sidecar["ports"]
    assert given["HEADWATER_LISTEN"].endswith(f":{port['containerPort']}")
    startup, liveness = sidecar["startupProbe"], sidecar["livenessProbe"]
    assert {probe["httpGet"]["port"] for probe in (startup, liveness)} == {port["name"]}
    mounted = [mount["mountPath"] for mount in sidecar["volumeMounts"]]
    assert given["HEADWATER_TARGET"].startswith(f"{mounted[0]}/")

    source, data, free = tmp_path / "source", tmp_path / "data", free_port()
    source.mkdir()
    (source / "tea").write_text("green")
    replacements = {"URL": str(tmp_path / "host"), "TARGET": str(data), "LISTEN": f"127.0.0.1:{free}", "INTERVAL": "1s"}
    assert {f"HEADWATER_{name}" for name in replacements} - {"HEADWATER_INTERVAL"} == set(given)
    environment = os.environ | {f"HEADWATER_{name}": value for name, value in replacements.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "puller.cli", *sidecar["args"]], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: asked(liveness, free) == 200, "it does not listen")
        assert asked(startup, free) == 503
        publisher("publish", source, tmp_path / "host")
        until(lambda: asked(startup, free) == 200, "the first copy did not come")
        (source / "tea").write_text("black")
        publisher("publish", source, tmp_path / "host")
        until(lambda: (data / "tea").read_text() == "black", "it did not follow")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
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

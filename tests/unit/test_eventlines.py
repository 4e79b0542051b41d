"""Events as lines of JSON."""

from __future__ import annotations

import json
import math

import pytest

from puller import UNKNOWN, Event, File, Omitted
from puller.eventlines import line_of

ENDS = (1, 41), (1, 42)


def line(kind, key, old, new, *, contents=False):
    data = line_of(Event("change", *ENDS, key, old, new), kind, contents=contents)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    return json.loads(data)


def test_transitions_have_ends():
    assert json.loads(line_of(Event("reset", None, (2, 7)), "bytes", contents=False)) == {
        "type": "reset",
        "epoch": 2,
        "version": 7,
    }
    commit = json.loads(line_of(Event("commit", *ENDS), "bytes", contents=False))
    assert commit == {"type": "commit", "epoch": 1, "version": 42, "from": {"epoch": 1, "version": 41}}
    assert json.loads(line_of(Event("commit", None, (1, 1)), "bytes", contents=False))["from"] is None


def test_rows():
    row = {"a": -0.0, "b": 2**70, "c": b"\xff", "d": [{"x": None}], "e": math.nan, "f": -math.inf, "g": "ü", "h": None}
    found = line("table", ("t", 1, b"k", math.inf), None, row)
    assert (found["table"], found["key"], found["old"]) == ("t", [1, "aw==", "Infinity"], None)
    assert found["new"] == {
        "a": -0.0,
        "b": 2**70,
        "c": "/w==",
        "d": [{"x": None}],
        "e": "NaN",
        "f": "-Infinity",
        "g": "ü",
        "h": None,
    }
    assert math.copysign(1, found["new"]["a"]) == -1
    assert line("table", ("t", 1), UNKNOWN, None) == {
        "type": "change",
        "epoch": 1,
        "version": 42,
        "table": "t",
        "key": [1],
        "new": None,
    }


def test_bytes():
    found = line("bytes", b"\0k", b"", b"\xff")
    assert (found["key"], found["old"], found["new"]) == ("AGs=", "", "/w==")


@pytest.mark.parametrize("contents", [True, False])
def test_files(contents):
    found = line("files", "a/ü", UNKNOWN, File(b"x", "executable"), contents=contents)
    assert found["path"] == "a/ü"
    assert "old" not in found
    assert (found["new"]["type"], found["new"]["size"], len(found["new"]["hash"])) == ("executable", 1, 32)
    assert found["new"].get("content") == ("eA==" if contents else None)
    assert line("files", "a", UNKNOWN, Omitted(5, b"\1" * 16))["new"] == {"size": 5, "hash": "01" * 16}


def test_large_values_are_told_by_size_and_hash():
    big = b"v" * (1 << 20) + b"!"
    short = line("bytes", b"k", None, big)["new"]
    assert (short["size"], len(short["hash"])) == (len(big), 32)
    assert len(line("bytes", b"k", None, big, contents=True)["new"]) > len(big)

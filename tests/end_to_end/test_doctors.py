"""What the doctors find, on hosts and stores with one thing wrong each."""

from __future__ import annotations

import gzip
import time
from email.utils import formatdate

import pytest

import publisher as publishing
from publisher.doctor import examine_store
from publisher.publish import create
from puller.doctor import Facts, examine, judge
from puller.errors import Unavailable
from puller.http import Look
from puller.stores.folder import FolderStore
from puller.stores.headers import IMMUTABLE, cache_control
from puller.stores.s3 import S3Store
from tests.conftest import publisher, puller, start_cache
from tests.hostile_host import PAGE, Reply, hostile


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dest = tmp_path_factory.mktemp("published") / "data"
    with publishing.open(str(dest), kind="bytes") as data, data.batch() as batch:
        batch[b"key"] = bytes(range(256)) * 40
    return dest


def sound(request, right):
    """What a good host says."""
    headers = right.headers | {
        "Cache-Control": cache_control(request.path) if right.status == 200 else "max-age=5",
        "Access-Control-Allow-Origin": "*",
    }
    if request.headers.get("if-none-match") == headers.get("ETag", ""):
        return Reply(304, b"", headers)
    if "range" in request.headers and right.status == 200:
        return Reply(206, right.body[:8], headers | {"Content-Range": f"bytes 0-7/{len(right.body)}"})
    return Reply(right.status, right.body, headers)


def on_head(**headers):
    return lambda request, right: changed(request, right, headers if request.path == "HEAD" else {})


def on_files(**headers):
    return lambda request, right: changed(request, right, headers if request.path != "HEAD" else {})


def changed(request, right, headers):
    reply = sound(request, right)
    if right.status == 200:
        reply.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
    return reply


def zipped(request, right):
    reply = sound(request, right)
    if reply.status == 200:
        reply = Reply(200, gzip.compress(reply.body), reply.headers | {"Content-Encoding": "gzip"})
    return reply


class Spoilt:
    """A cache that keeps a part of a file under the file's name."""

    def __init__(self):
        self.parts = {}

    def __call__(self, request, right):
        reply = sound(request, right)
        if reply.status == 206:
            self.parts[request.path] = reply.body
        elif request.path in self.parts:
            return Reply(200, self.parts[request.path], reply.headers)
        return reply


def no_ranges(request, right):
    return sound(request.__class__(request.path, {k: v for k, v in request.headers.items() if k != "range"}), right)


def instead_of_missing(reply):
    return lambda request, right: reply if right.status == 404 else sound(request, right)


CASES = {
    "sound": (sound, None),
    "no ranges": (no_ranges, None),
    "long HEAD": (on_head(Cache_Control="public, max-age=86400"), ("head lifetime", "problem", "86400 s")),
    "immutable HEAD": (on_head(Cache_Control=IMMUTABLE), ("head lifetime", "problem", "longer than")),
    "no lifetime": (on_head(Cache_Control="public"), ("head lifetime", "problem", "no max-age")),
    "old HEAD": (on_head(Age="90000"), ("head age", "problem", "90000 s old")),
    "short files": (on_files(Cache_Control="max-age=60, no-transform"), ("file lifetime", "problem", "for 60 s")),
    "private files": (
        on_files(Cache_Control="private, max-age=86400, no-transform"),
        ("file lifetime", "problem", "not at all"),
    ),
    "transforming": (on_files(Cache_Control="max-age=86400"), ("no-transform", "note", "on the way")),
    "compressing": (zipped, ("compression", "problem", "HEAD comes with Content-Encoding gzip")),
    "no tag": (on_head(ETag=""), ("etag", "note", "no ETag")),
    "closed to pages": (on_head(Access_Control_Allow_Origin=""), ("cors", "note", "web pages")),
    "fallback": (instead_of_missing(Reply(200, PAGE)), ("missing files", "problem", "answers 200 with something else")),
    "forbidding": (instead_of_missing(Reply(403)), ("missing files", "note", "cannot be told apart")),
    "failing": (instead_of_missing(Reply(500)), ("missing files", "problem", "answers 500")),
    "keeping 404": (
        instead_of_missing(Reply(404, b"", {"Cache-Control": "max-age=3600"})),
        ("missing files", "problem", "3600 s"),
    ),
    "keeping parts": (Spoilt(), ("ranges", "problem", "gives others something else")),
    "elsewhere": (
        lambda q, r: Reply(301, b"", {"Location": "https://user:secret@else.example/HEAD"}),
        ("redirects", "problem", "another origin, https://else.example/HEAD"),
    ),
    "nobody": (lambda q, r: Reply(404), ("readable", "problem", "there is no dataset")),
    "a page": (lambda q, r: Reply(200, PAGE), ("readable", "problem", "web page in place")),
    "down": (lambda q, r: Reply(503), ("readable", "problem", "503")),
}


@pytest.mark.parametrize("what", CASES)
def test_what_is_wrong_with_a_host_is_found_and_nothing_else(dataset, what):
    rule, expected = CASES[what]
    with hostile(dataset, rule) as host:
        findings, _ = examine(host.url)
        asked = {path for path in host.paths() if not (dataset / path).is_file()}
    assert len(asked) <= 1, "one name that cannot exist"
    odd = {f.name: f for f in findings if f.level != "ok" and f.name not in ("tls", "clock")}
    assert set(odd) == ({expected[0]} if expected else set()), findings
    if expected:
        assert odd[expected[0]].level == expected[1]
        assert expected[2] in odd[expected[0]].text
        assert odd[expected[0]].remedy
        assert "secret" not in str(findings)


def look(**headers):
    return Look(200, headers, b"")


def test_clocks_and_certificates():
    now = float(int(time.time()))
    facts = Facts("https://data.example/", look(), look(Date=formatdate(now - 300, usegmt=True)), now=now)
    facts.certificate_ends = now + 3 * 86_400
    found = {finding.name: finding for finding in judge(facts)}
    assert found["clock"].level == "problem"
    assert "300 s ahead of" in found["clock"].text
    assert found["tls"].level == "problem"
    assert "ends in 3 days" in found["tls"].text
    facts.again = Look(200, {"Date": formatdate(now - 300, usegmt=True), "Age": "300"}, b"")
    facts.certificate_ends = now + 90 * 86_400
    found = {finding.name: finding.level for finding in judge(facts)}
    assert (found["clock"], found["tls"]) == ("ok", "ok")


def test_a_real_host_behind_a_real_cache(tmp_path, nginx):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    publisher("publish", source, nginx.root)
    done = puller("doctor", nginx.url, "--json")
    assert {f["level"] for f in done.json["findings"]} == {"ok", "note"}
    assert done.json["problems"] == 0
    done = publisher("doctor", nginx.root, "--public-url", nginx.url, "--json")
    assert done.json["problems"] == 0
    with start_cache(tmp_path, nginx.url.rpartition("/")[0], valid="any 1h") as cache:
        url = f"{cache.url}/{nginx.root.name}"
        puller("doctor", url)
        (source / "file").write_text("another text")
        publisher("publish", source, nginx.root)
        done = publisher("doctor", nginx.root, "--public-url", url)
        assert "serves version 1, the store holds version 2" in done.out
    failed = puller("doctor", f"{nginx.url}x", check=1)
    assert "→" in failed.out
    assert "there is no dataset" in failed.out
    assert "refused" in puller("doctor", "http://127.0.0.1:9/x", check=1).out


class NoConditions(FolderStore):
    """A store that takes conditional writes for plain ones, as some look-alikes of S3 do."""

    def create(self, path, data):
        super().put(path, data)
        return True

    def swap_head(self, expected, data, time):
        return super().swap_head(self.read_head()[1], data, time)


class Denied(FolderStore):
    """A store whose absent files cannot be told from denied ones, and that deletes nothing."""

    def get(self, path):
        if path.startswith("heads/"):
            raise Unavailable(f"{path}: denied")
        return super().get(path)

    def list(self, prefix):
        return iter(())


def test_stores_that_do_not_keep_their_promises(dataset):
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    assert {f.level for f in examine_store(FolderStore(str(dataset)))} == {"ok"}
    found = {f.name: f for f in examine_store(NoConditions(str(dataset)))}
    assert {name for name, f in found.items() if f.level == "problem"} == {"create-only", "compare-and-swap"}
    found = {f.name: f for f in examine_store(Denied(str(dataset)))}
    assert {name for name, f in found.items() if f.level == "problem"} == {"create-only", "deletion", "files"}
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


def test_a_bucket(bucket, monkeypatch):
    """A refused swap is told as unclear there; one that was not answered proves nothing."""
    monkeypatch.setattr(S3Store, "probe", lambda self: None)  # it has tests of its own
    store = S3Store(bucket.url, connections=4)
    create(store, "data", "bytes")
    head = bucket.client.get_object(Bucket=bucket.name, Key="HEAD")["Body"].read()
    for fate, level in (("pass", "ok"), ("refuse", "problem"), ("unconditional", "problem")):
        bucket.proxy.fate = lambda request, fate=fate: fate if is_swap(request) else "pass"
        found = {f.name: f.level for f in examine_store(store)}
        assert found.pop("compare-and-swap") == level
        assert set(found.values()) == {"ok"}
        assert bucket.client.get_object(Bucket=bucket.name, Key="HEAD")["Body"].read() == head


def is_swap(request):
    return request.method == "PUT" and request.path.endswith("/HEAD") and "if-match" in request.headers


def test_an_address_that_serves_nothing_is_told_once(dataset):
    found = examine_store(FolderStore(str(dataset)), "http://127.0.0.1:9/x")
    assert [f.name for f in found if f.level == "problem"] == ["reachable"]


def test_a_folder_that_others_may_not_read(tmp_path):
    with publishing.open(str(tmp_path / "data"), kind="bytes"):
        pass
    (tmp_path / "data/HEAD").chmod(0o600)
    found = {f.name: f for f in examine_store(FolderStore(str(tmp_path / "data")))}
    assert "chmod" in found["rights"].remedy
    assert "HEAD" in found["rights"].text


def test_a_place_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    done = publisher("doctor", tmp_path, check=1)
    assert "thesis.tex" in done.out
    assert "there is no dataset yet" in publisher("doctor", tmp_path / "new").out

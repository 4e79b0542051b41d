"""Pulls from hosts and through caches that get things wrong; and from several places."""

from __future__ import annotations

import gzip
import random
import shutil
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest

import publisher as publishing
import puller as pulling
from puller.errors import Corrupt, FetchError, HeadwaterError, Missing, Unavailable, Withheld
from puller.fetch import Patience, open_fetcher
from puller.http import HttpFetcher
from puller.mirrors import Health
from puller.pull import Options, pull
from puller.targets import open_target
from puller.wire.codec import path_of
from tests.conftest import puller, start_cache
from tests.hostile_host import PAGE, Reply, always, files, first, head, hostile
from tests.states import read_head


def publish(dest, version):
    """Version `version` of a dataset that was created empty: 30 records, then one more each time."""
    with publishing.open(str(dest), kind="bytes") as dataset, dataset.batch() as batch:
        noise = random.Random(version)
        for number in range(30 if version == 2 else 1):
            batch[b"%d-%d" % (version, number)] = noise.randbytes(90_000 if version == 2 else 900)


def state(version):
    return {
        b"%d-%d" % (v, n): noise.randbytes(90_000 if v == 2 else 900)
        for v in range(2, version + 1)
        for noise in [random.Random(v)]
        for n in range(30 if v == 2 else 1)
    }


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """The same dataset, published up to each of some versions."""
    base = tmp_path_factory.mktemp("published")
    found = {}
    for version in range(2, 9):
        publish(base / "now", version)
        found[version] = base / str(version)
        if version in (2, 3, 4, 7, 8):
            shutil.copytree(base / "now", found[version])
    return found


class Copy:
    """A target, pulled into again and again; pauses are recorded, not slept."""

    def __init__(self, path):
        self.path = str(path)
        self.pauses = []
        self.health = Health()

    def pull(self, url, *mirrors, patience=20.0, **options):
        def patient():
            return Patience(patience, self.pauses.append, lambda: sum(self.pauses), lambda: 0.5)

        with ExitStack() as stack:
            target = open_target(self.path, None, "sqlite")
            stack.callback(target.close)
            fetcher = open_fetcher(url, mirrors, self.health)
            stack.callback(fetcher.close)
            return pull(url, fetcher, lambda head: target, Options(**options), health=self.health, patience=patient)

    def content(self):
        with pulling.Replica("nowhere", self.path) as replica:
            return dict(replica.items())


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "copy.db")


def zipped(request, right, **headers):
    return Reply(right.status, gzip.compress(right.body), right.headers | headers)


def cut(request, right, **more):
    return Reply(200, right.body[:-7], right.headers, **more)


PASSING = {
    "missing for a while": files(first(1, always(Reply(404)))),
    "forbidden while missing": files(first(1, always(Reply(403)))),
    "a page while missing": files(first(1, always(Reply(200, PAGE, {"Content-Type": "text/html"})))),
    "cut off": files(first(1, lambda q, r: cut(q, r, length=len(r.body)))),
    "cut off unnoticed": files(first(1, cut)),
    "cut off at the end of the connection": files(first(1, lambda q, r: cut(q, r, length=-1))),
    "damaged": files(first(1, lambda q, r: Reply(200, bytes(len(r.body))))),
    "longer": files(first(1, lambda q, r: Reply(200, r.body + b"!"))),
    "empty": files(first(1, lambda q, r: Reply(200))),
    "a part": files(first(1, lambda q, r: Reply(206, r.body[:9], {"Content-Range": f"bytes 0-8/{len(r.body)}"}))),
    "all of it as a part": lambda q, r: Reply(
        206, r.body, {"Content-Range": f"bytes 0-{len(r.body) - 1}/{len(r.body)}"}
    ),
    "compressed": lambda q, r: zipped(q, r, **{"Content-Encoding": "gzip"}),
    "compressed, said nowhere": zipped,
    "compressed, said only": lambda q, r: Reply(200, r.body, {"Content-Encoding": "gzip"}),
    "identity": lambda q, r: Reply(200, r.body, {"Content-Encoding": "identity"}),
    "another type": lambda q, r: Reply(200, r.body, {"Content-Type": "text/html"}),
    "no length": lambda q, r: Reply(200, r.body, {}, length=-1),
    "no tag": lambda q, r: Reply(200, r.body),
    "busy": first(1, always(Reply(503))),
    "another place of the origin": lambda q, r: (
        None if q.path.startswith("else/") else Reply(302, b"", {"Location": f"/else/{q.path}"})
    ),
}


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_or_can_be_undone_is_got_over(versions, copy, what):
    (versions[4] / "else").exists() or (versions[4] / "else").symlink_to(".")
    with hostile(versions[4], PASSING[what]) as host:
        assert copy.pull(host.url).after == (1, 4)
    assert copy.content() == state(4)
    assert sum(copy.pauses) <= 20


LASTING = {
    "a web page for HEAD": (head(always(Reply(200, PAGE))), Withheld, "web page in place.*check the address"),
    "HEAD forbidden": (head(always(Reply(403))), Withheld, "403.*check the address"),
    "HEAD with a password": (head(always(Reply(401))), FetchError, "user and a password"),
    "HEAD compressed": (head(always(Reply(200, b"\x0b\x02\x80", {"Content-Encoding": "br"}))), FetchError, "'br'.*off"),
    "a page for all files": (files(always(Reply(200, PAGE))), Withheld, "web page.*although the dataset names"),
    "files forbidden": (files(always(Reply(403))), Withheld, "403.*although the dataset names this file"),
    "files missing": (files(always(Reply(404))), Missing, "404, not found, although the dataset names this file"),
    "files compressed": (
        files(lambda q, r: Reply(200, r.body[::-1], {"Content-Encoding": "zstd"})),
        Corrupt,
        "'zstd'.*turn compression off",
    ),
    "elsewhere": (
        lambda q, r: Reply(301, b"", {"Location": f"http://127.0.0.2:1/{q.path}"}),
        FetchError,
        "redirects to another origin, http://127.0.0.2:1/HEAD; use that address if you trust it",
    ),
    "asks to wait for long": (always(Reply(503, b"", {"Retry-After": "900"})), Unavailable, "503"),
    "a bomb": (
        files(lambda q, r: Reply(200, gzip.compress(bytes(50_000_000), 1), {"Content-Encoding": "gzip"})),
        Corrupt,
        "bytes where",
    ),
}


@pytest.mark.parametrize("what", LASTING)
def test_what_lasts_is_told_and_changes_nothing(versions, copy, what):
    rule, error, message = LASTING[what]
    with hostile(versions[2]) as host:
        copy.pull(host.url)
    with hostile(versions[4], rule) as host, pytest.raises(error, match=f"(?s){message}") as caught:
        copy.pull(host.url)
    assert type(caught.value) is error
    assert not isinstance(caught.value, FetchError) or "stays at version 2" in str(caught.value)
    assert copy.content() == state(2)


def test_a_host_that_trickles_is_given_up_on(versions):
    with hostile(versions[2], always(Reply(200, trickle=0.05))) as host:
        fetcher = HttpFetcher(host.url, timeout=0.4)
        with pytest.raises(Unavailable, match="silent or too slow"):
            fetcher.fetch_head(None)
        fetcher.close()


def test_older_heads_from_some_edges_never_lead_back(versions, copy):
    edges = [versions[2], versions[3], versions[2], versions[4], versions[3], versions[2], versions[4]]

    def edge(request, right):
        return Reply(200, (place / "HEAD").read_bytes(), {"ETag": f'W/"{place.name}"'})

    held = 0
    with hostile(versions[4], head(edge)) as host:
        for place in edges:
            outcome = copy.pull(host.url)
            held = max(held, int(place.name))
            assert outcome.after == (1, held)
            assert bool(outcome.notes) == (int(place.name) < held)
    assert copy.content() == state(4)


def test_head_is_newer_than_the_files_it_names(versions, copy):
    """The new diff comes while it is waited for; nothing is asked for that HEAD does not name."""
    with hostile(versions[2]) as host:
        copy.pull(host.url)
    with hostile(versions[3], files(first(3, always(Reply(404))))) as host:
        outcome = copy.pull(host.url)
        paths = host.paths()
    assert outcome.plan.way in ("diffs", "patch")
    assert copy.content() == state(3)
    assert copy.pauses == [1.0, 2.0]
    assert paths.count("HEAD") == 2
    assert len(set(paths)) == 2
    assert all((versions[3] / path).is_file() for path in paths)


def test_a_diff_that_never_comes_is_gone_round(versions, copy):
    with hostile(versions[7]) as host:
        copy.pull(host.url)
    newest = read_head(str(versions[8])).diffs
    lost = next(path_of("diffs", diff.tree.ref.sha256) for diff in newest if (diff.a, diff.b) == (7, 8))
    with hostile(versions[8], lambda q, r: Reply(404) if q.path == lost else None) as host:
        outcome = copy.pull(host.url, patience=3.5)
    assert (outcome.after, [(step.diff.a, step.diff.b) for step in outcome.plan.steps]) == ((1, 8), [(4, 8)])
    assert lost in outcome.notes[0]
    assert copy.pauses == [1.0, 2.0]
    assert copy.content() == state(8)


def test_what_was_missing_is_asked_for_past_the_caches(versions):
    path = next(str(p.relative_to(versions[2])) for p in versions[2].rglob("*.zst"))
    with hostile(versions[2], first(1, always(Reply(404)))) as host:
        fetcher = HttpFetcher(host.url)
        with pytest.raises(HeadwaterError):
            fetcher.fetch(path, 10**7)
        fetcher.fetch(path, 10**7)
        fetcher.fetch(path, 10**7)
        assert [request.headers.get("cache-control") for request in host.asked] == [None, "no-cache", None]
        fetcher.close()


def test_tags_are_not_taken_to_another_host(versions):
    with hostile(versions[2]) as one, hostile(versions[2]) as two:
        fetchers = [HttpFetcher(host.url) for host in (one, two)]
        answer = fetchers[0].fetch_head(None)
        assert fetchers[0].fetch_head(answer.etag).data is None
        assert fetchers[1].fetch_head(answer.etag).data == answer.data
        for fetcher in fetchers:
            fetcher.close()


def test_retry_after_is_honoured_by_the_next_process(versions, tmp_path):
    copy = tmp_path / "copy.db"
    with hostile(versions[2]) as host:
        puller("pull", host.url, copy)
        host.rules = [always(Reply(503, b"", {"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"}))]
        host.root = versions[3]
        assert "503" in puller("pull", host.url, copy, check=4).err
        host.paths()
        assert "asked to be left alone until" in puller("pull", host.url, copy, check=4).err
        assert host.paths() == []
        later = Copy(copy)
        later.health = Health(now=lambda: time.time() + 90_000)
        host.rules = []
        assert later.pull(host.url).after == (1, 3)
        assert "version 3" in puller("pull", host.url, copy).out


# Several places


def test_a_dead_place_is_left_alone_also_by_the_next_process(versions, tmp_path):
    copy = tmp_path / "copy.db"
    with hostile(versions[3], always(Reply(500))) as dead, hostile(versions[3]) as alive:
        done = puller("pull", dead.url, copy, "--mirror", alive.url, "--json")
        assert done.json["to"]["version"] == 3
        assert "left alone" in done.err
        assert len(dead.paths()) == 1
        assert puller("pull", dead.url, copy, "--mirror", alive.url, "--json").json["way"] == "nothing"
        assert dead.paths() == []
        dead.rules = []
        alive.rules = [always(Reply(500))]
        assert puller("pull", dead.url, copy, "--mirror", alive.url, "--json").json["way"] == "nothing"
        assert dead.paths() == ["HEAD"], "asked where no other is left"


def test_the_newest_head_wins_and_new_files_are_not_asked_of_who_is_behind(versions, copy):
    with hostile(versions[2]) as behind, hostile(versions[4]) as ahead:
        assert copy.pull(behind.url, ahead.url).after == (1, 4)
        assert copy.content() == state(4)
        assert behind.paths() == ["HEAD"]
        ahead.paths()
        outcome = copy.pull(behind.url, ahead.url)
        assert (outcome.plan.reason, outcome.notes) == ("current", []), "not modified is newer than what the other has"
        assert ahead.asked[0].headers["if-none-match"]
        assert "if-none-match" not in behind.asked[0].headers
        behind.root = versions[4]
        assert copy.pull(behind.url, ahead.url).notes == []


def test_a_head_that_is_refused_makes_room_for_another(versions, copy):
    with hostile(versions[4], head(always(Reply(200, b"headwater/1 x\n{}\n\n")))) as bad, hostile(versions[3]) as good:
        outcome = copy.pull(bad.url, good.url)
    assert outcome.after == (1, 3)
    assert any("passed over" in note for note in outcome.notes)


def test_another_dataset_at_a_mirror_is_passed_over(versions, copy, tmp_path):
    with publishing.open(str(tmp_path / "other"), kind="bytes") as dataset:
        for n in range(9):
            with dataset.batch() as batch:
                batch[b"k"] = b"%d" % n
    with hostile(versions[3]) as right, hostile(tmp_path / "other") as wrong:
        outcome = copy.pull(right.url, wrong.url)
    assert outcome.after == (1, 3)
    assert any("'other' is there" in note for note in outcome.notes)


def test_damaged_and_missing_files_come_from_another_place(versions, copy):
    odd = {path.name for path in sorted(versions[4].rglob("*.zst"))[::2]}
    spoilt = files(lambda q, r: Reply(200, bytes(len(r.body))) if q.path[-68:] in odd else None)
    lacking = files(always(Reply(404)))
    with hostile(versions[4], spoilt) as one, hostile(versions[4], lacking) as two, hostile(versions[4]) as three:
        assert copy.pull(one.url, two.url, three.url).after == (1, 4)
        assert three.paths()[0] == "HEAD"
    assert copy.content() == state(4)
    assert copy.pauses == []


def test_a_folder_can_be_a_mirror_and_all_may_fail(versions, copy):
    with hostile(versions[3], always(Reply(500))) as dead:
        assert copy.pull(dead.url, str(versions[3])).after == (1, 3)
        with pytest.raises(Unavailable, match="500"):
            Copy(copy.path).pull(dead.url, "http://127.0.0.1:9/")


def test_a_replica_and_a_repair_use_mirrors(versions, tmp_path):
    copy = tmp_path / "copy.db"
    with hostile(versions[3], always(Reply(500))) as dead, hostile(versions[3]) as alive:
        with pulling.Replica(dead.url, mirrors=[alive.url]) as replica:
            assert replica.pull().notes
            assert dict(replica.items()) == state(3)
            dead.paths()
            assert replica.pull().notes == []
            assert dead.paths() == []
        puller("pull", alive.url, copy)
        with sqlite3.connect(copy) as db:
            db.execute("DELETE FROM records WHERE key = ?", (b"2-5",))
        puller("verify", copy, check=6)
        puller("verify", "--repair", "--from", dead.url, "--mirror", alive.url, copy)
        puller("verify", copy)


# Through a real cache


def ask(url):
    try:
        with urllib.request.urlopen(url) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_cache_that_is_behind(versions, tmp_path, copy, nginx):
    shutil.copytree(versions[2], nginx.root, dirs_exist_ok=True)
    with start_cache(tmp_path, nginx.url.rpartition("/")[0], valid="200 1h") as cache:
        url = cache.url + "/" + nginx.root.name
        assert copy.pull(url).after == (1, 2)
        shutil.copytree(versions[3], nginx.root, dirs_exist_ok=True)
        assert copy.pull(url).plan.way == "nothing"
        assert copy.pull(nginx.url).after == (1, 3)
        outcome = copy.pull(url)
        assert (outcome.after, outcome.plan.reason) == ((1, 3), "older_head")
        assert "A cache may lag behind" in outcome.notes[0]
        assert copy.pull(url, nginx.url).notes == []
        assert copy.content() == state(3)


@pytest.mark.parametrize("bypass", [False, True])
def test_a_cache_that_holds_not_found(versions, tmp_path, copy, nginx, bypass):
    """Somebody asked for a file before it was there. Waiting helps, and asking past the cache where it lets us."""
    shutil.copytree(versions[2], nginx.root, dirs_exist_ok=True)
    origin = nginx.url.rpartition("/")[0]
    new = {p.relative_to(versions[3]) for p in versions[3].rglob("*.zst")}
    new -= {p.relative_to(versions[2]) for p in versions[2].rglob("*.zst")}
    with start_cache(tmp_path, origin, valid="404 1h" if bypass else "404 2s", bypass=bypass) as cache:
        url = cache.url + "/" + nginx.root.name
        copy.pull(url)
        assert {ask(f"{url}/{path}") for path in new} == {404}
        shutil.copytree(versions[3], nginx.root, dirs_exist_ok=True)
        assert {ask(f"{url}/{path}") for path in new} == {404}
        cache.requests()
        with ExitStack() as stack:
            target = open_target(copy.path, None, "sqlite")
            stack.callback(target.close)
            fetcher = open_fetcher(url)
            stack.callback(fetcher.close)
            outcome = pull(url, fetcher, lambda head: target, Options(), patience=lambda: Patience(jitter=lambda: 0.0))
        assert outcome.after == (1, 3)
        seen = [path.rpartition(":")[2] for path, _, _ in cache.requests() if "/diffs/" in path]
        assert "HIT" in seen[:1]
        assert seen[-1] == ("BYPASS" if bypass else "EXPIRED")
    assert copy.content() == state(3)

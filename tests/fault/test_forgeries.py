"""Hosts that lie: a real server serves old, forked, foreign, unsigned and forged HEADs and key sets to every target."""

from __future__ import annotations

import hashlib
import shutil
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from publisher import epochs
from publisher.keys import Keyring, new_key
from publisher.publish import Options as PublishOptions
from publisher.publish import publish
from publisher.signing import following
from puller.errors import Corrupt, Distrust, HeadwaterError, Untrusted
from puller.fetch import Patience, open_fetcher
from puller.pull import Options, pull
from puller.stores import open_store
from puller.targets import open_target
from puller.targets.memory import MemoryTarget
from puller.trust import Staleness, load, parse_given
from puller.wire import rows as wire
from puller.wire.head import format_head, parse_head
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Table
from tests.plain import PlainSource

FORMS = {"folder": "files", "sqlite": "table", "jsonl": "table", "memory": "bytes"}
SCHEMA = wire.encode_schema([Table("t", [Column("k", "text"), Column("v", "text")], [0], [])])


class Server(ThreadingHTTPServer):
    """Serves `files`, by path, with tags that follow the bytes; whoever owns it changes them at will."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        data = self.server.files.get(self.path[1:])
        tag = None if data is None else f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        same = tag is not None and self.headers.get("If-None-Match") == tag
        self.send_response(404 if data is None else 304 if same else 200)
        body = b"" if data is None or same else data
        if tag:
            self.send_header("ETag", tag)
        if not same:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running
        running.shutdown()


class Origin:
    """An honest publisher, and what it wrote after each step."""

    def __init__(self, root: Path, kind: str, *, name: str = "data", keyring: Keyring | None = None) -> None:
        self.root, self.kind, self.name = root / f"origin-{name}", kind, name
        self.keyring = keyring or Keyring(folder=str(root / "keys"))
        self.store = open_store(str(self.root))
        self.clock = 1_000_000.0
        self.version = 0

    def records(self, word: str) -> dict[bytes, bytes]:
        if self.kind == "files":
            return {b"a": b"f" + word.encode(), b"b": b"fsame"}
        if self.kind == "bytes":
            return {b"a": word.encode(), b"b": b"same"}
        return {b"": SCHEMA} | {
            encode_key("t", [key]): wire.encode_row([value]) for key, value in (("a", word), ("b", "same"))
        }

    def publish(self, word: str) -> dict[str, bytes]:
        """Publish a state that has `word` in it; everything that is on the host then."""
        self.clock += 10
        source = PlainSource(self.kind, self.records(word))
        publish(
            self.store,
            lambda name, schema: source,
            self.name,
            PublishOptions(),
            now=lambda: self.clock,
            keyring=self.keyring,
        )
        return self.files()

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    @property
    def head(self):
        return parse_head((self.root / "HEAD").read_bytes())

    def copy(self, where: Path) -> Origin:
        """A second publisher with the same keys and history: what a thief of everything would be."""
        other = Origin(where, self.kind, name=self.name, keyring=self.keyring)
        shutil.copytree(self.root, other.root)
        other.clock = self.clock
        return other

    def key(self):
        return self.keyring.find(load((self.root / f"trust/{self.head.trust}").read_bytes(), "").keys.keys)

    def rotate(self, **wanted) -> dict[str, bytes]:
        self.clock += 10
        epochs.rotate(self.store, self.keyring, epochs.Wanted(**wanted), now=lambda: self.clock)
        return self.files()

    def revoke(self, key_id: str) -> dict[str, bytes]:
        self.clock += 10
        epochs.revoke(self.store, self.keyring, key_id, epochs.Wanted(), now=lambda: self.clock)
        return self.files()


def signed(head, key) -> bytes:
    data = format_head(head)
    return data + key.sign(data[:-1].decode()).encode()


class Copy:
    """A copy of a form, and what a program sees in it."""

    def __init__(self, form: str, root: Path, server: Server) -> None:
        self.form, self.server = form, server
        self.path = str(root / {"folder": "copy", "sqlite": "copy.db", "jsonl": "copy.jsonl", "memory": "-"}[form])
        self.memory = MemoryTarget() if form == "memory" else None
        self.clock = 1_000_100

    def target(self, head=None):
        return self.memory or open_target(self.path, FORMS[self.form], self.form)

    def pull(self, files: dict[str, bytes], **options):
        self.server.files = files
        fetcher, opened = open_fetcher(self.server.url), []

        def find(head):
            opened.append(self.target(head))
            return opened[-1]

        try:
            return pull(
                self.server.url, fetcher, find, Options(**options), now=lambda: self.clock, patience=lambda: Patience(0)
            )
        finally:
            fetcher.close()
            for target in opened:
                target.close()

    def refused(self, files: dict[str, bytes], **options) -> Distrust:
        """The named reason for which what is served is refused; what is held stays as it was."""
        before = self.held()
        with pytest.raises(Untrusted) as caught:
            self.pull(files, **options)
        assert caught.value.exit_code == 5
        assert self.held() == before
        return caught.value.reason

    def state(self):
        with closing(self.target()) as target:
            return target.state()

    def held(self):
        with closing(self.target()) as target:
            state = target.state()
            if state is None:
                return None, {}
            records = {key: value for keys, values in target.records() for key, value in zip(keys, values, strict=True)}
            return state.position, records


@pytest.fixture(params=FORMS)
def pair(request, tmp_path, server):
    """An origin with three versions, and a copy that trusts it and holds the second."""
    origin = Origin(tmp_path, FORMS[request.param])
    steps = [origin.publish(word) for word in ("one", "two", "three")]
    copy = Copy(request.param, tmp_path, server)
    copy.pull(steps[1])
    return origin, copy, steps


def test_everything_that_is_not_signed_as_it_must_be(pair, tmp_path):
    origin, copy, steps = pair
    good, key, thief = steps[2], origin.key(), new_key("data")
    head = parse_head(good["HEAD"])
    unsigned = msgspec.structs.replace(head, trust=0)
    foreign = Origin(tmp_path, origin.kind, name="other", keyring=Keyring(key, str(tmp_path / "keys")))
    higher = msgspec.structs.replace(head, epoch=2, version=1, snapshot_version=1, diffs=[], log=None)
    cases = [
        (good | {"HEAD": format_head(unsigned)}, Distrust.UNSIGNED),
        (good | {"HEAD": format_head(head)}, Distrust.UNSIGNED),
        (good | {"HEAD": signed(unsigned, key)}, Distrust.UNSIGNED),
        (good | {"HEAD": signed(head, thief)}, Distrust.UNKNOWN_KEY),
        (good | {"HEAD": good["HEAD"].replace(b'"interval":30', b'"interval":31')}, Distrust.BAD_SIGNATURE),
        (foreign.publish("one"), Distrust.OTHER_DATASET),
        (good | {"HEAD": signed(higher, key)}, Distrust.EPOCH),
        (good | {"HEAD": signed(msgspec.structs.replace(head, epoch=2), key)}, Distrust.EPOCH),
    ]
    for files, reason in cases:
        assert copy.refused(files) == reason
        assert copy.refused(files, overwrite=True) == reason
    copy.pull(good)
    assert copy.held() == ((1, 3), origin.records("three"))


def test_old_heads_are_passed_over_and_told_when_that_lasts(pair):
    origin, copy, steps = pair
    copy.pull(steps[2])
    for _ in range(2):
        outcome = copy.pull(steps[0], overwrite=True)
        assert (outcome.plan.reason, outcome.stale) == ("older_head", None)
        assert copy.held() == ((1, 3), origin.records("three"))
        copy.clock += 1800
    copy.clock += 1
    assert copy.pull(steps[0]).stale is Staleness.OLDER_HEAD
    assert copy.pull(steps[2]).stale is None
    assert copy.pull(steps[0]).stale is None  # a new lag
    assert copy.state().behind == copy.clock


def test_a_frozen_host_is_noticed(pair):
    origin, copy, _ = pair
    epochs.refresh(origin.store, origin.keyring, expires_in=600, now=lambda: origin.clock)
    files = origin.publish("four")  # carries the duration on
    assert parse_head(files["HEAD"]).expires == origin.clock + 600
    copy.clock = int(origin.clock) + 600
    assert copy.pull(files).stale is None
    assert copy.pull(files, max_staleness=599).stale is Staleness.STALE
    copy.clock += 1
    assert copy.pull(files).stale is Staleness.EXPIRED
    newer = origin.publish("five")
    copy.clock += 10_000
    outcome = copy.pull(newer)  # expired, but newer than what is held: taken, and told
    assert (outcome.changed, outcome.stale) == (True, Staleness.EXPIRED)
    assert copy.held() == ((1, 5), origin.records("five"))


def test_forks_of_what_was_held_and_of_what_was_only_seen(pair, tmp_path):
    origin, copy, steps = pair
    thief = origin.copy(tmp_path / "thief")
    broken = {path: data for path, data in steps[2].items() if not path.startswith(("chunks", "diffs"))}
    with pytest.raises(HeadwaterError):
        copy.pull(broken)
    assert copy.held()[0] == (1, 2)
    assert copy.state().seen[:2] == (1, 3)
    forked = {**steps[2]}
    for name, change in {"publish_id": "ab" * 16, "checksum": 7, "records": 9}.items():
        forked["HEAD"] = signed(msgspec.structs.replace(origin.head, **{name: change}), origin.key())
        assert copy.refused(forked) == Distrust.FORK
        assert copy.refused(forked, overwrite=True) == Distrust.FORK
    assert copy.pull(steps[1]).plan.reason == "older_head"
    copy.pull(steps[2])
    forked["HEAD"] = signed(msgspec.structs.replace(origin.head, checksum=7), origin.key())
    assert copy.refused(forked) == Distrust.FORK
    resigned = msgspec.structs.replace(origin.head, time=origin.head.time + 5, expires=9 * 10**9, interval=7, diffs=[])
    assert not copy.pull({**steps[2], "HEAD": signed(resigned, origin.key())}).changed
    thief.publish("four")
    assert copy.pull(thief.files()).changed  # whoever has the key can publish: revoke it


def test_files_of_other_versions_and_datasets_under_a_good_head(pair, tmp_path):
    origin, copy, steps = pair
    other = Origin(tmp_path, origin.kind, name="other", keyring=origin.keyring).publish("other")
    foreign = [data for path, data in other.items() if path.startswith("chunks")]
    mixed = {p: foreign[0] if p.startswith(("chunks", "diffs")) else data for p, data in steps[2].items()}
    before = copy.held()
    with pytest.raises(Corrupt):
        copy.pull(mixed)
    assert copy.held() == before
    assert copy.refused({**steps[2], "HEAD": other["HEAD"]}) == Distrust.OTHER_DATASET
    assert copy.refused(
        {**steps[2], "HEAD": signed(msgspec.structs.replace(origin.head, name="other"), origin.key())}
    ) == (Distrust.OTHER_DATASET)
    copy.pull(steps[2])
    assert copy.held() == ((1, 3), origin.records("three"))


def test_key_sets_skipped_forged_and_rolled_back(pair):
    origin, copy, _steps = pair
    old_key = origin.key()
    second = origin.rotate()
    third = origin.rotate()
    thief = new_key("data")
    one = load(second["trust/1"], "")
    after = following(one, epoch=1, now=5, keys=[thief.public], roots=[thief.public], threshold=1)
    text = msgspec.structs.replace(after)
    forged = _set(text, [thief])
    head = msgspec.structs.replace(origin.head, trust=2)
    cases = [
        ({p: d for p, d in third.items() if p != "trust/2"}, Distrust.KEY_SET_SKIPPED),
        (third | {"trust/2": third["trust/3"]}, Distrust.KEY_SET_SKIPPED),
        (second | {"trust/2": forged, "HEAD": signed(head, thief)}, Distrust.KEY_SET_FORGED),
        (second | {"trust/2": forged + b"x"}, Distrust.KEY_SET_FORGED),
        (second | {"trust/2": _set(text, [old_key])}, Distrust.KEY_SET_FORGED),
        (third | {"trust/2": third["trust/2"].replace(b'"threshold":1', b'"threshold": 1')}, Distrust.KEY_SET_FORGED),
        (
            third | {"trust/3": _set(msgspec.structs.replace(_keys(third, 3), previous=bytes(32)), _by(origin, 3))},
            Distrust.KEY_SET_FORGED,
        ),
        (third | {"trust/3": _set(msgspec.structs.replace(_keys(third, 3), epoch=0), _by(origin, 3))}, Distrust.EPOCH),
        (
            third | {"trust/3": _set(msgspec.structs.replace(_keys(third, 3), name="other"), _by(origin, 3))},
            Distrust.OTHER_DATASET,
        ),
        (
            third | {"HEAD": signed(msgspec.structs.replace(origin.head, trust=5000), origin.key())},
            Distrust.KEY_SET_SKIPPED,
        ),
    ]
    for files, reason in cases:
        assert copy.refused(files) == reason
        assert copy.state().pins.number == 1
    copy.pull(third)
    assert copy.state().pins.number == 3
    back = msgspec.structs.replace(origin.head, version=4, time=origin.head.time + 5, trust=1)
    assert copy.refused(third | {"HEAD": signed(back, old_key)}) == Distrust.KEY_SET_ROLLBACK
    assert (
        copy.refused(third | {"HEAD": signed(msgspec.structs.replace(back, trust=3), old_key)}) == Distrust.UNKNOWN_KEY
    )


def _keys(files, number):
    return load(files[f"trust/{number}"], "").keys


def _by(origin, number):
    sets = [_keys(origin.files(), n) for n in (number - 1, number)]
    return [key for keys in sets for root in keys.roots if (key := origin.keyring.find([root]))]


def _set(keys, by) -> bytes:
    from puller.wire.keyset import format_key_set

    text = format_key_set(keys)
    return f"{text}\n{''.join(key.sign(text) for key in by)}".encode()


def test_a_stolen_key_that_runs_ahead_is_revoked(pair, tmp_path):
    origin, copy, steps = pair
    key = origin.key()
    thief = origin.copy(tmp_path / "thief")
    epochs.restart(thief.store, origin.keyring, wanted=epochs.Wanted(), now=lambda: 5)
    last = {"version": 2**53 - 1, "snapshot_version": 2**53 - 1, "time": 9 * 10**9, "publish_id": "cd" * 16}
    ahead = msgspec.structs.replace(origin.head, **last, snapshot=thief.head.snapshot, diffs=[], log=None)
    files = thief.files() | {"HEAD": signed(ahead, key)}
    copy.pull(files)
    assert copy.held()[0] == (1, 2**53 - 1)
    assert copy.pull(steps[2]).plan.reason == "older_head"
    for path in ("HEAD", *(path for path in files if path.startswith("chunks"))):  # the thief wrote to the store, too
        (origin.root / path).parent.mkdir(exist_ok=True)
        (origin.root / path).write_bytes(files[path])
    good = origin.revoke(key.public.id)
    assert (origin.head.epoch, origin.head.version, origin.head.time) == (2, 1, int(origin.clock))
    copy.pull(good)
    assert copy.held() == ((2, 1), origin.records("three"))
    later = origin.publish("four")
    copy.pull(later)
    assert copy.held() == ((2, 2), origin.records("four"))
    assert copy.pull(files).plan.reason == "older_head"
    again = msgspec.structs.replace(ahead, epoch=2)
    assert copy.refused(later | {"HEAD": signed(again, key)}) == Distrust.KEY_SET_ROLLBACK
    assert copy.refused(later | {"HEAD": signed(msgspec.structs.replace(again, trust=2), key)}) == Distrust.UNKNOWN_KEY
    assert (
        copy.refused(later | {"HEAD": signed(msgspec.structs.replace(again, epoch=3), key)})
        == Distrust.KEY_SET_ROLLBACK
    )


def test_keys_given_at_first_contact_and_later(pair, tmp_path, server):
    origin, _, _ = pair
    first = origin.key().public
    root = new_key("root")
    second = origin.rotate(roots=[root])
    third = origin.rotate(roots=[root])
    fresh = lambda name: Copy("memory", tmp_path, server)  # noqa: E731
    for given in ([first], [root.public], [new_key("data").public, root.public]):
        copy = fresh("a")
        outcome = copy.pull(third, trust=given)
        assert (outcome.met, outcome.pins.number, outcome.pins.given) == (True, 3, [str(given[-1])])
        copy.pull(third, trust=given)
    assert fresh("b").refused(third, trust=[new_key("data").public]) == Distrust.UNKNOWN_KEY
    copy = fresh("c")
    with pytest.raises(Untrusted, match=r"no root of its key sets: give the root's, root\+") as caught:
        copy.pull(third, trust=[origin.key().public])
    assert caught.value.reason is Distrust.UNKNOWN_KEY
    unsigned = second | {"HEAD": format_head(msgspec.structs.replace(origin.head, trust=0))}
    assert copy.refused(unsigned, trust=[first]) == Distrust.UNSIGNED
    assert copy.pull(unsigned).pins.number == 0
    assert copy.refused(unsigned, trust=[first]) == Distrust.UNSIGNED
    outcome = copy.pull(
        third | {"HEAD": signed(msgspec.structs.replace(origin.head, time=origin.head.time + 1), origin.key())}
    )
    assert (outcome.met, outcome.pins.number) == (True, 3)  # signed from now on
    assert copy.refused(unsigned) == Distrust.UNSIGNED
    assert copy.refused(third, trust=[new_key("data").public]) == Distrust.UNKNOWN_KEY
    server.files = third
    copy.pull(third, trust=[first])
    assert copy.state().pins.given == [str(first)]


def test_first_contact_with_an_expired_head(pair, tmp_path, server):
    origin, _, _ = pair
    epochs.refresh(origin.store, origin.keyring, expires_in=60, now=lambda: origin.clock)
    copy = Copy("memory", tmp_path, server)
    copy.clock = int(origin.clock) + 1000
    assert copy.refused(origin.files()) == Distrust.EXPIRED
    assert copy.pull(origin.files(), allow_expired=True).stale is Staleness.EXPIRED


def test_repinning_begins_anew(pair, tmp_path):
    origin, copy, steps = pair
    copy.pull(steps[2])
    other = Origin(tmp_path / "anew", origin.kind, keyring=Keyring(folder=str(tmp_path / "other-keys")))
    files = other.publish("else")
    assert copy.pull(files).plan.reason == "older_head"
    other.publish("more")
    other.publish("and more")
    files = other.publish("else")
    assert copy.refused(files) == Distrust.UNKNOWN_KEY
    key = other.key().public
    assert copy.refused(files, trust=[key]) in (Distrust.UNKNOWN_KEY, Distrust.KEY_SET_FORGED)
    outcome = copy.pull(files, trust=[key], repin=True)
    assert outcome.met
    assert copy.held() == ((1, 4), other.records("else"))
    assert copy.state().pins.given == [str(key)]
    assert copy.state().seen == other.head.order


def test_archived_heads_are_verified_by_the_sets_of_their_time(pair, tmp_path, server):
    origin, copy, _steps = pair
    old = origin.key()
    origin.rotate()
    origin.publish("four")
    files = origin.rotate()
    copy.pull(files)
    copy.pull(files, version=2)
    assert copy.held() == ((1, 2), origin.records("two"))
    assert copy.state().seen == origin.head.order
    forged = signed(msgspec.structs.replace(parse_head(files["heads/1-2"]), checksum=9), new_key("data"))
    assert copy.refused(files | {"heads/1-2": forged}, version=2, overwrite=True) == Distrust.UNKNOWN_KEY
    changed = {p: d for p, d in files.items() if p != "trust/2"}
    assert copy.refused(changed, version=1) == Distrust.KEY_SET_SKIPPED
    assert old.public != origin.key().public


def test_what_is_given_may_be_a_file(tmp_path):
    key = new_key("data").public
    (tmp_path / "keys").write_text(f"# ours\n\n{key}\n")
    assert parse_given([str(tmp_path / "keys"), str(key)]) == [key, key]

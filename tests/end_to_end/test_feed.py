"""The change feed: where it begins, what it costs, whom it believes, and how it ends; `puller changes` and both iterators."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from puller import UNKNOWN, Feed, Omitted, Replica
from puller.errors import NotFound, NotOurs, TargetError, Untrusted, UsageError
from puller.wire.head import format_head, parse_head
from tests.conftest import publisher
from tests.conftest import puller as puller_command
from tests.plain import publish_records


def publish(folder, records, version):
    publish_records(folder, "bytes", records, 1000 + version)


def told(feed):
    return [(event.type, event.since, event.position, event.key, event.new) for event in feed]


@pytest.fixture
def data(tmp_path):
    """Three versions: a goes to and fro, b goes, c comes."""
    for version, records in enumerate(
        [{b"a": b"1", b"b": b"1"}, {b"a": b"2", b"b": b"1"}, {b"a": b"1", b"c": b"3"}], start=1
    ):
        publish(tmp_path / "data", records, version)
    return tmp_path / "data"


def test_where_it_begins(data):
    with Feed(str(data), follow=False) as feed:
        assert told(feed) == [
            ("reset", None, (1, 3), None, None),
            ("change", None, (1, 3), b"a", b"1"),
            ("change", None, (1, 3), b"c", b"3"),
            ("commit", None, (1, 3), None, None),
        ]
        assert list(feed) == []
    with Feed(str(data), since=1, follow=False) as feed:  # every key that was touched, also one that is as it was
        assert told(feed) == [
            ("change", (1, 1), (1, 3), b"a", b"1"),
            ("change", (1, 1), (1, 3), b"b", None),
            ("change", (1, 1), (1, 3), b"c", b"3"),
            ("commit", (1, 1), (1, 3), None, None),
        ]
    with Feed(str(data), since=3, follow=False) as feed:
        assert told(feed) == []
        publish(data, {b"a": b"4", b"c": b"3"}, 4)
        assert told(feed)[0] == ("change", (1, 3), (1, 4), b"a", b"4")
    with Feed(str(data), since=9, follow=False) as feed, pytest.raises(UsageError, match="no version 9 yet"):
        next(feed)


def test_of_a_copy_of_parts_these_are_told_whoever_pulled_it_and_all_of_them_where_others_are_held(data, tmp_path):
    copy, state = str(tmp_path / "copy.db"), str(tmp_path / "state")

    def feed(parts=None):
        with Replica(str(data), copy, parts=parts) as replica, replica.feed(state, follow=False) as feed:
            found = [(event.type, event.key, event.new) for event in feed]
            if found:
                feed.ack()
            return found

    assert feed(["a"]) == [("reset", None, None), ("change", b"a", b"1"), ("commit", None, None)]
    publish(data, {b"a": b"2", b"c": b"4"}, 4)
    with Replica(str(data), copy) as replica:
        replica.pull()
    assert feed() == [("change", b"a", b"2"), ("commit", None, None)]  # by diffs, which name c as well
    with Replica(str(data), copy, parts=["a", "c"]) as replica:
        replica.pull()
    assert feed() == [("reset", None, None), ("change", b"a", b"2"), ("change", b"c", b"4"), ("commit", None, None)]
    publish(data, {b"a": b"2", b"c": b"5"}, 5)
    assert feed(["c"]) == [("reset", None, None), ("change", b"c", b"5"), ("commit", None, None)]
    assert feed() == []


def test_an_earlier_commit_is_remembered_with_the_parts_that_were_told_at_it(data, tmp_path):
    copy, state = str(tmp_path / "copy.db"), str(tmp_path / "state")
    with Replica(str(data), copy, parts=["a"]) as replica, replica.feed(state, follow=False) as feed:
        assert [event.type for event in feed] == ["reset", "change", "commit"]
        publish(data, {b"a": b"2", b"b": b"1", b"c": b"3"}, 4)
        assert [next(feed).type, next(feed).type] == ["change", "commit"]
        feed.ack((1, 3))
        assert feed.position == (1, 3)
    with Replica(str(data), copy, parts=[]) as replica:
        replica.pull()
        with replica.feed(state, follow=False) as feed:  # c was there before, and no diff since names it
            expected = [None, b"a", b"b", b"c", None]
            assert [event.key for event in feed] == expected
            publish(data, {b"a": b"5", b"b": b"1", b"c": b"3"}, 5)
            assert next(feed).key == b"a"
            feed.ack()  # the commit after it was made, and not taken yet
        with replica.feed(state, follow=False) as feed:
            assert (feed.position, [event.key for event in feed]) == ((1, 4), [b"a", None])
    with Feed(str(data), follow=False) as feed, pytest.raises(UsageError, match="only what was committed"):
        assert [event.type for event in feed][-1] == "commit"
        feed.ack((1, 2))


def test_all_is_told_anew_where_no_diffs_lead_on(data, tmp_path):
    state = str(tmp_path / "state")
    with Feed(str(data), state=state, follow=False) as feed:
        assert told(feed)[0][0] == "reset"
        feed.ack()
    publish(data, {b"a": b"9"}, 4)
    publish(tmp_path / "other/data", {b"a": b"9"}, 4)
    head = parse_head((data / "HEAD").read_bytes())
    snapshot = parse_head((tmp_path / "other/data/HEAD").read_bytes()).snapshot
    shutil.copytree(tmp_path / "other/data/chunks", data / "chunks", dirs_exist_ok=True)
    cut = msgspec.structs.replace(head, time=head.time + 1, snapshot=snapshot, snapshot_version=4, diffs=[], log=None)
    (data / "HEAD").write_bytes(format_head(cut))
    with Feed(str(data), state=state, follow=False) as feed:
        assert feed.position == (1, 3)
        assert told(feed) == [
            ("reset", None, (1, 4), None, None),
            ("change", None, (1, 4), b"a", b"9"),
            ("commit", None, (1, 4), None, None),
        ]


def test_only_what_was_committed_can_be_acknowledged(data, tmp_path):
    state = str(tmp_path / "state")
    with Feed(str(data), state=state, follow=False) as feed:
        with pytest.raises(UsageError):
            feed.ack()
        next(feed)
        with pytest.raises(UsageError):
            feed.ack((1, 3))
        assert list(feed)[-1].type == "commit"
        feed.ack((1, 3))
        with pytest.raises(UsageError):
            feed.ack((1, 4))
        with pytest.raises(TargetError, match="another process"):
            Feed(str(data), state=state)


def test_what_is_no_state_file_is_left_alone(data, tmp_path):
    other = tmp_path / "cfg.json"
    for content in (b"[]", b"", b"{", b"\xff", b'{"format": 1, "name": "mine"}', b'{"mine": 1}'):
        other.write_bytes(content)
        with pytest.raises(
            NotOurs, match=r"cfg.json is no state file of `puller changes`; nothing was told. Name another"
        ):
            Feed(str(data), state=str(other), follow=False)
        assert not (tmp_path / "cfg.json.lock").exists()
    with pytest.raises(NotOurs, match="is no state file"):
        Feed(str(data), state=str(tmp_path), follow=False)
    assert puller_command("changes", "--state", other, data, check=3).out == ""
    assert other.read_bytes() == b'{"mine": 1}'


def test_only_a_damaged_state_file_may_be_deleted(data, tmp_path):
    state = tmp_path / "state"
    with Feed(str(data), state=str(state), follow=False) as feed:
        list(feed)
        feed.ack()
    whole = state.read_bytes()
    for damaged, says in (
        (whole[:-20], r"is damaged \(.*\); nothing was told. Delete it, and all records are told anew"),
        (whole.replace(b'"format": 1', b'"format": 2'), "newer release of headwater; nothing was told. Upgrade"),
    ):
        state.write_bytes(damaged)
        with pytest.raises(TargetError, match=says):
            Feed(str(data), state=str(state), follow=False)
    state.write_bytes(whole)
    with Feed(str(data), state=str(state), follow=False) as feed:
        assert list(feed) == []


@pytest.mark.parametrize("wide", [False, True])
def test_a_damaged_diff_is_gone_round(tmp_path, wide):
    """Eight versions: single diffs lead on, and a wide one over all of them."""
    records = {b"%04d" % n: b"%d" % n for n in range(4000)}
    for version in range(1, 9):
        records[b"%04d" % version] = b"changed"
        publish(tmp_path / "data", records, version)
    diffs = parse_head((tmp_path / "data/HEAD").read_bytes()).diffs
    damaged = [diff for diff in diffs if (diff.b - diff.a > 1) == wide and diff.b > 2]
    assert damaged
    for diff in damaged[-1:]:
        name = diff.tree.ref.sha256.hex()
        (tmp_path / "data/diffs" / name[:2] / f"{name}.zst").write_bytes(b"damaged")
    with Feed(str(tmp_path / "data"), since=2, follow=False) as feed:
        events = list(feed)
    found = {event.key: event.new for event in events if event.type == "change"}
    assert (events[0].type, events[-1].position) == ("change", (1, 8))
    assert {key for key in found if found[key] == b"changed"} >= {b"%04d" % n for n in range(3, 9)}
    assert found.items() <= records.items()


def test_whom_it_believes(tmp_path):
    rows, dest, theirs, state = tmp_path / "rows.jsonl", tmp_path / "d", tmp_path / "theirs/d", tmp_path / "state"
    rows.write_text('{"k": 1}\n')
    done, key = [], []
    for place in (dest, theirs):
        publisher("publish", rows, place, "--key", "k")
        key.append(publisher("key", "show", "-q", place).out.strip())

    def told(address=dest, **options):
        with Feed(str(address), follow=False, warn=done.append, **options) as feed:
            found = [event.type for event in feed]
            if found:
                feed.ack()
            return found

    assert told(state=str(state)) == ["reset", "change", "commit"]
    assert "the key that it met first" in done.pop()
    assert told(state=str(state), trust=key[0]) == []
    assert told(trust=key[0]) == ["reset", "change", "commit"]
    assert done == []
    rows.write_text('{"k": 2}\n')
    publisher("publish", rows, theirs, "--allow-shrink")
    for options in (
        {"address": theirs, "state": str(state)},
        {"trust": key[1]},
        {"state": str(state), "trust": key[1]},
    ):
        with pytest.raises(Untrusted) as refused:
            told(**options)
        assert refused.value.reason in ("unknown-key", "key-set-forged")
    assert told(state=str(state)) == []


def test_an_older_head_is_passed_over_and_a_fork_refused(data, tmp_path):
    state, warnings = str(tmp_path / "state"), []
    shutil.copytree(data, tmp_path / "lagging")
    publish(data, {b"a": b"4"}, 4)
    with Feed(str(data), state=state, follow=False) as feed:
        list(feed)
        feed.ack()
    with Feed(str(tmp_path / "lagging"), state=state, follow=False, warn=warnings.append) as feed:
        assert list(feed) == []
    assert "older than version 4" in warnings[0]
    assert len(warnings) == 1
    publish(tmp_path / "lagging", {b"a": b"forked"}, 4)
    with Feed(str(tmp_path / "lagging"), state=state, follow=False) as feed, pytest.raises(Untrusted, match="forked"):
        next(feed)


def test_an_encrypted_dataset(tmp_path):
    rows, dest = tmp_path / "rows.jsonl", tmp_path / "secret"
    rows.write_text('{"k": 1, "v": "x"}\n')
    publisher("publish", rows, dest, "--key", "k", "--encrypt")
    found = puller_command("changes", dest)
    assert json.loads(found.out.splitlines()[1])["new"] == {"k": 1, "v": "x"}
    assert puller_command("changes", dest, env={"PATH": "", "HOME": str(tmp_path)}, check=2).out == ""


def test_what_it_costs(nginx, tmp_path):
    big = random.Random(1).randbytes(3_000_000)
    records = {b"%d" % n: b"%d" % n for n in range(100)} | {b"big": big}
    publish(nginx.root, records, 1)
    publish(nginx.root, records | {b"7": b"changed", b"big": big[::-1]}, 2)
    with Feed(nginx.url, since=1, follow=False, values="small") as feed:
        events = list(feed)
        requests = nginx.requests()
        assert [event.key for event in events[:-1]] == [b"7", b"big"]
        assert isinstance(events[1].new, Omitted)
        assert events[1].new.size == len(big)
        assert len(requests) == 2  # HEAD, and the diff; no pieces
        assert sum(size for *_, size in requests) < 10_000
        assert list(feed) == []
        assert [status for _, status, _ in nginx.requests()] == [304]
    with Feed(nginx.url, since=1, follow=False, values="none") as feed:
        assert [type(event.new) for event in feed][:-1] == [Omitted, Omitted]
    with Feed(nginx.url, since=1, follow=False) as feed:
        assert list(feed)[1].new == big[::-1]


@pytest.mark.slow
def test_schemas_that_rows_survive_and_others(tmp_path):
    """New columns change no row; others tell everything anew."""
    rows, dest, state = tmp_path / "d.jsonl", tmp_path / "d", tmp_path / "state"

    def changes(text):
        rows.write_text(text)
        publisher("publish", rows, dest, "--key", "k", "--allow-shrink")
        return [json.loads(line) for line in puller_command("changes", "--state", state, dest).out.splitlines()]

    changes('{"k": 1, "a": 1}\n{"k": 2}\n')
    types = [(line["type"], line.get("key")) for line in changes('{"k": 1, "a": 1}\n{"k": 2, "b": 1}\n')]
    assert types == [("change", [2]), ("commit", None)]
    with Feed(str(dest), since=1, follow=False) as feed:  # the schema of version 1 is not known
        assert next(feed).type == "reset"
    shutil.rmtree(dest)
    state.unlink()
    changes('{"k": 1, "a": 1}\n')


def test_a_replica_tells_old_values_until_somebody_else_pulls_it(data, tmp_path):
    path, state = str(tmp_path / "copy.db"), str(tmp_path / "state")
    with Replica(str(data), path) as replica, replica.feed(state, follow=False) as feed:
        assert [event.old for event in feed] == [None] * 4
        publish(data, {b"a": b"4", b"c": b"3"}, 4)
        assert [(event.key, event.old, event.new) for event in feed] == [(b"a", b"1", b"4"), (None, None, None)]
        feed.ack()
        publish(data, {b"a": b"5", b"c": b"3"}, 5)
        puller_command("pull", data, path)
        assert [(event.key, event.old, event.new) for event in feed] == [(b"a", UNKNOWN, b"5"), (None, None, None)]
        assert replica[b"a"] == b"5"
    publish(data, {b"a": b"6", b"c": b"3"}, 6)
    lines = [json.loads(x) for x in puller_command("changes", "--target", path, data).out.splitlines()]
    assert [(line["type"], line.get("old")) for line in lines] == [("change", "NQ=="), ("commit", None)]
    with Replica(str(data), path) as replica, replica.feed(state, follow=False) as feed:  # on from the last ack
        assert [(event.since, event.position) for event in feed] == [((1, 4), (1, 6))] * 2


def test_a_folder_is_free_for_other_pulls_while_its_changes_are_told(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "copy"
    source.mkdir()

    def change(text):
        (source / "a").write_text(text)
        (source / "b").write_text(text)
        publisher("publish", source, dest, "--unsigned")

    change("1")
    with Replica(str(dest), str(copy)) as replica, replica.feed(follow=False) as feed:
        assert [event.type for event in feed] == ["reset", "change", "change", "commit"]
        change("2")
        assert next(feed).key == "a"
        change("3")
        with Replica(str(dest), str(copy)) as other:
            assert other.pull().after == (1, 3)
        rest = [*feed, *feed]  # what was under way, then what the other pull brought
        assert rest[-1].position == (1, 3)
        mirror = {event.key: event.new.content for event in rest if event.type == "change"}
        assert mirror == {"a": b"3", "b": b"3"}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "puller.cli", "changes", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # so that `communicate` gets what `readline` left
    )


def test_sigterm_ends_it_cleanly_and_the_next_run_goes_on(data, tmp_path):
    state = tmp_path / "state"
    process = start("--follow", "--interval", "1s", "-q", "--state", state, data)
    lines = [process.stdout.readline() for _ in range(4)]
    publish(data, {b"a": b"4", b"c": b"3"}, 4)
    lines += [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    rest, err = process.communicate(timeout=20)
    assert (process.returncode, rest, err) == (0, b"", b"")
    assert [json.loads(line)["type"] for line in lines] == ["reset", *["change"] * 2, "commit", "change", "commit"]
    assert json.loads(state.read_text())["position"] == [1, 4]
    assert puller_command("changes", "--state", state, data).out == ""


def kills(data, tmp_path, times, seed):
    """Nothing is left out: what all runs printed, applied in order, is the dataset at each commit."""
    r = random.Random(seed)
    state, published = tmp_path / "state", {}
    records = {}
    mirror, position, commits = {}, None, 0

    def advance():
        for _ in range(r.randint(1, 3)):
            for key in r.sample(range(3000), 300):
                records[b"%d" % key] = b"%d" % r.randint(0, 9)
            for key in r.sample(sorted(records), 20):
                del records[key]
            published[len(published) + 1] = {k.decode(): v.decode() for k, v in records.items()}
            publish(data, records, len(published))

    for number in range(times + 1):
        advance()
        process = (
            start("--state", state, "--follow", "--interval", "1s", data)
            if number < times
            else start("--state", state, data)
        )
        first = b""
        if number < times:
            moment = r.choice(["starting", "writing", "committing", "committing"])
            if moment == "starting":
                time.sleep(r.uniform(0, 0.3))
            while moment != "starting" and not first:
                first = process.stdout.read(r.randint(1, 65536))
            while moment == "committing" and b'"commit"' not in first:
                first += process.stdout.read(65536)
            time.sleep(r.choice([0, 0.001, 0.005, 0.02]))
            process.kill()
        rest, _ = process.communicate(timeout=60)
        out = first + rest
        begun = False
        for line in map(json.loads, out[: out.rfind(b"\n") + 1].splitlines()):
            if line["type"] == "reset":
                mirror = {}
                begun = True
            elif line["type"] == "change":
                mirror[line["key"]] = line["new"]
            else:
                commits += 1
                since = line["from"] and line["from"]["version"]
                assert begun or since is not None
                assert since is None or (position is not None and since <= position)
                position = line["version"]
                found = {decoded(k): decoded(v) for k, v in mirror.items() if v is not None}
                assert found == published[position]
    assert position == len(published)
    return commits


def decoded(text):
    import base64

    return base64.b64decode(text).decode()


@pytest.mark.slow
def test_killed_at_many_moments_nothing_is_left_out(tmp_path):
    assert kills(tmp_path / "data", tmp_path, 60, 2) > 30


def test_the_asynchronous_iterator_is_cancelled_cleanly_and_loses_nothing(data):
    async def consume():
        found = []
        async with Feed(str(data), interval=0.01) as feed:
            task = asyncio.create_task(anext(feed))
            await asyncio.sleep(0)
            task.cancel()  # while the first poll is under way
            with pytest.raises(asyncio.CancelledError):
                await task
            async for event in feed:
                found.append(event)
                if event.type == "commit":
                    break
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(feed), 0.05)
            publish(data, {b"a": b"4", b"c": b"3"}, 4)
            found += [await anext(feed), await anext(feed)]
            waiting = asyncio.create_task(anext(feed))
            await asyncio.sleep(0.02)
        with pytest.raises(StopAsyncIteration):  # closing ends it
            await waiting
        return found

    before = threading.active_count()
    found = asyncio.run(asyncio.wait_for(consume(), 20))
    assert [event.type for event in found] == ["reset", "change", "change", "commit", "change", "commit"]
    while threading.active_count() > before:  # those that fetched end by themselves
        time.sleep(0.01)


def test_a_host_that_is_away_is_asked_again_and_nothing_piles_up(data, tmp_path):
    warnings = []
    with Feed(str(tmp_path / "nowhere"), warn=warnings.append) as feed, pytest.raises(NotFound):
        next(feed)
    with Feed(str(data), interval=0.001, warn=warnings.append) as feed:
        first = [next(feed) for _ in range(4)]
        assert first[-1].type == "commit"
        for version in range(4, 12):  # versions that nobody asked for come as one
            publish(data, {b"a": b"%d" % version}, version)
        data.rename(tmp_path / "away")
        thread = threading.Thread(target=lambda: (time.sleep(0.1), (tmp_path / "away").rename(data)))
        thread.start()
        events = [next(feed) for _ in range(3)]
        thread.join()
    assert [(event.type, event.since, event.key) for event in events] == [
        ("change", (1, 3), b"a"),
        ("change", (1, 3), b"c"),
        ("commit", (1, 3), None),
    ]
    assert "not signed" in warnings[0]
    assert "asked again in" in warnings[1]

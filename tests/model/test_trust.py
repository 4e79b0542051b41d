"""Whatever a host serves, in whatever order, a copy with a pin never goes back, and holds only what was signed under it."""

from __future__ import annotations

import contextlib
import hashlib
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from publisher import epochs
from publisher.keys import new_key
from publisher.signing import following
from puller.errors import HeadwaterError, NotFound
from puller.fetch import Answer, Patience
from puller.pull import Options, pull
from puller.targets.memory import MemoryTarget
from puller.trust import load
from puller.wire.head import format_head, parse_head
from puller.wire.keyset import format_key_set
from tests.fault.test_forgeries import Origin, signed
from tests.signed_note import open_note


class Host:
    """A fetcher whose host serves one of many states, chosen anew at each pull."""

    is_local = False
    requests = received = 0

    def __init__(self, files):
        self.files = files

    def fetch(self, path, size, check=None):
        if path not in self.files:
            raise NotFound(path)
        return self.files[path][: size + 1]

    def fetch_head(self, etag):
        tag = hashlib.sha256(self.files["HEAD"]).hexdigest()
        return Answer(None if etag == tag else self.files["HEAD"], tag)

    def close(self):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What an honest publisher had on its host at each step, what liars make of it, and the records of each version."""
    root = tmp_path_factory.mktemp("served")
    origin = Origin(root, "bytes")
    honest, states, stolen = [], {}, []

    def step(files, word):
        honest.append(files)
        states[origin.head.epoch, origin.head.version] = origin.records(word)

    step(origin.publish("one"), "one")
    step(origin.publish("two"), "two")
    stolen.append(origin.key())
    step(origin.rotate(), "two")
    step(origin.publish("three"), "three")
    stolen.append(origin.key())
    step(origin.revoke(origin.key().public.id), "three")
    step(origin.publish("four"), "four")
    epochs.restart(origin.store, origin.keyring, wanted=epochs.Wanted(), now=lambda: origin.clock)
    step(origin.files(), "four")
    step(origin.publish("five"), "five")

    lies, thief = [], new_key("data")
    for files in honest:
        made: list[dict[str, bytes]] = []
        head = parse_head(files["HEAD"])
        far = {"version": head.version + 7, "time": head.time + 9, "snapshot_version": head.version + 7}
        for key in (thief, *stolen):
            if key in stolen and head.epoch == 1:
                continue  # then the key was good
            made += [{"HEAD": signed(msgspec.structs.replace(head, **change), key)} for change in (far, {"epoch": 9})]
            made.append({"HEAD": signed(msgspec.structs.replace(head, trust=head.trust + 1), key)})
        made += [{"HEAD": signed(msgspec.structs.replace(head, epoch=9), key)} for key in (*stolen, origin.key())]
        keys = following(
            load(files[f"trust/{head.trust}"], "a key set"),
            epoch=head.epoch,
            now=5,
            keys=[thief.public],
            roots=[thief.public],
            threshold=1,
        )
        text = format_key_set(keys)
        forged = {f"trust/{keys.number}": f"{text}\n{thief.sign(text)}".encode()}
        made.append(forged | {"HEAD": signed(msgspec.structs.replace(head, trust=keys.number, **far), thief)})
        made.append({"HEAD": format_head(msgspec.structs.replace(head, trust=0))})
        made.append({"HEAD": format_head(msgspec.structs.replace(head, trust=0, **far))})
        made.append({"HEAD": files["HEAD"].replace(b'"version":', b'"version":1')})
        made.append({f"trust/{n}": honest[-1]["trust/3"] for n in range(1, 5)})
        lies += [files | lie for lie in made]
    mixed = [a | {"HEAD": b["HEAD"]} for a in honest for b in honest]
    broken = [{path: data for path, data in files.items() if not path.startswith("chunks")} for files in honest]
    return honest, mixed + broken, lies, states


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_sequence_of_heads_takes_a_copy_back(served, data):
    honest, odd, lies, states = served
    target = MemoryTarget()
    first = data.draw(st.sampled_from(honest))
    pull("memory", Host(first), lambda head: target, Options(), now=lambda: 2_000_000, patience=lambda: Patience(0))
    before = target.state()
    for files in data.draw(st.lists(st.one_of(*map(st.sampled_from, (honest, odd, lies))), max_size=12)):
        options = Options(overwrite=data.draw(st.booleans()), dry_run=data.draw(st.booleans()))
        with contextlib.suppress(HeadwaterError):
            pull(
                "memory", Host(files), lambda head: target, options, now=lambda: 2_000_000, patience=lambda: Patience(0)
            )
        after = target.state()
        records = {key: value for keys, values in target.records() for key, value in zip(keys, values, strict=True)}
        assert after.position >= before.position
        assert after.seen >= before.seen
        assert after.pins.number >= before.pins.number > 0
        assert records == states[after.position]
        if after.verified != before.verified:
            assert hashlib.sha256(files["HEAD"]).hexdigest() == after.verified
            number = parse_head(files["HEAD"]).trust
            keys = json.loads(honest[-1][f"trust/{number}"].split(b"\n")[1])["keys"]
            assert open_note(files["HEAD"], keys)[1] == keys
        before = after
    pull(
        "memory", Host(honest[-1]), lambda head: target, Options(), now=lambda: 2_000_000, patience=lambda: Patience(0)
    )
    assert target.state().position == (3, 2)

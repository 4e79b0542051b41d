"""The test vectors: made anew without a difference, and read by the product. (The independent reader has its own test.)"""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import msgspec
import pytest

from publisher.diffs import LISTED, choose_listed, fit
from puller import trust
from puller.errors import HeadwaterError, Invalid, NotFound, SecretError, Unsupported, Untrusted
from puller.secret import unlock
from puller.wire import files, nodes
from puller.wire import rows as wire
from puller.wire.checksum import record_hash
from puller.wire.cipher import Cipher, parse_secret
from puller.wire.codec import decompress
from puller.wire.head import MAX_WRITTEN, Head, format_head, parse_head
from puller.wire.keys import decode_key
from puller.wire.links import decode_links
from tests.vectors import generate

HERE = Path(generate.__file__).parent
VECTORS = json.loads((HERE / "vectors.json").read_text()) | json.loads((HERE / "frames.json").read_text())
MIB = 1 << 20


def blob(text):
    return None if text is None else bytes.fromhex(text)


def read_leaf(v, data):
    bounds = {"lower": blob(v.get("lower") or ""), "upper": blob(v.get("upper"))}
    keys, _ = nodes.decode_leaf(data, deletions=v.get("deletions", False), **bounds)
    assert v.get("keys") in (None, [key.hex() for key in keys])


def read_index(v, data):
    nodes.decode_index(data, level=v["level"], lower=blob(v.get("lower") or ""), upper=blob(v.get("upper")))


def read_log(v, data):
    assert nodes.encode_log(nodes.decode_log(data)) == data


def read_head(v, data):
    assert parse_head(data).version == v["version"]


def read_key(v, data):
    table, key = decode_key(data)
    assert (table, list(map(generate.tagged, key))) == (v["table"], v["key"])


def read_row(v, data):
    wire.decode_columns(wire.decode_schema(blob(VECTORS["row"]["schema"]))[0], [data])


def read_schema(v, data):
    assert wire.encode_schema(wire.decode_schema(data)) == data


def read_path(v, data):
    files.check_path(data)


def read_file_value(v, data):
    files.check_values([b"key"], [data])


def read_frame(v, data):
    content = decompress(data, v["raw"], dictionary=blob(v.get("dictionary")))
    assert content == blob(v["content"])


def read_patch(v, data):
    leaf = nodes.decode_patch(data)
    values = leaf.values(nodes.patch_dictionary([blob(x) for x in v["old"]]))
    if values is None:
        raise Invalid("the dictionary does not fit")
    assert v["values"] in (None, [x if x is None or isinstance(x, nodes.Large) else x.hex() for x in values])


def read_key_set(v, data):
    assert trust.load(data, "the key set").keys.number == v["number"]


def read_trust(v, data):
    def get(path):
        found = v["sets"].get(path.rpartition("/")[2])
        if found is None:
            raise NotFound(path)
        return bytes.fromhex(found)

    pins = None if v["pinned"] is None else trust.Pins(blob(v["pinned"]))
    head = parse_head(data)
    try:
        pinned = trust.Keeper(get, pins, trust.parse_given(v["given"])).accept(head, data)
    except Untrusted as error:
        if error.reason != v.get("reason", error.reason):
            raise RuntimeError(error.reason) from error
        raise
    assert pinned.number == head.trust


def read_secret(v, data):
    parse_secret(data.decode("latin-1"))


def read_encrypted(v, data):
    cipher = Cipher(parse_secret(VECTORS["encrypted"]["secret"]))
    assert cipher.decrypt(data) == blob(v["frame"])
    assert [[area, sha256.hex(), stored] for area, sha256, stored in decode_links(data)] == v["links"]
    assert cipher.encrypt(blob(v["frame"]), decode_links(data)[::-1]) == data


def read_sealed(v, data, secret=VECTORS["sealed"]["secret"]):
    head = parse_head(data)
    assert (head.kind, head.checksum, head.records) == ("", 0, 0) or head.encryption is None
    try:
        opened, _ = unlock(head, secret)
    except SecretError as error:
        raise Invalid(str(error)) from error
    found = {"kind": opened.kind, "checksum": f"{opened.checksum:032x}", "records": opened.records}
    assert found | {"version": opened.version} == {name: v[name] for name in [*found, "version"]}
    assert parse_head(format_head(opened)) == head


READERS = {name.removeprefix("read_"): reader for name, reader in list(globals().items()) if name.startswith("read_")}
CASES = [(part, kind, v) for part in READERS for kind in ("good", "bad") for v in VECTORS[part][kind]]


@pytest.mark.parametrize(("part", "kind", "v"), CASES, ids=[f"{p}-{k}-{v['name'][:50]}" for p, k, v in CASES])
def test_vector(part, kind, v):
    if kind == "good":
        READERS[part](v, bytes.fromhex(v["data"]))
        return
    with pytest.raises(Invalid):
        READERS[part](v, bytes.fromhex(v["data"]))


def test_record_hashes():
    for v in VECTORS["record_hash"]:
        assert record_hash(blob(v["key"]), blob(v["value"])).hex() == v["hash"]


def test_vectors_are_made_anew_without_a_difference():
    assert generate.vectors() == json.loads((HERE / "vectors.json").read_text())


def test_unknown_formats_and_needs_say_upgrade():
    for v in VECTORS["head"]["bad"]:
        if any(word in v["name"] for word in ("another version", "unknown need", "another kind")):
            with pytest.raises(Unsupported, match="upgrade headwater"):
                parse_head(bytes.fromhex(v["data"]))


def test_a_value_in_a_leaf_has_at_most_a_mebibyte():
    nodes.decode_leaf(nodes.encode_leaf([b"k"], [bytes(MIB)]))
    with pytest.raises(Invalid):
        nodes.decode_leaf(nodes.encode_leaf([b"k"], [bytes(MIB + 1)]))


PARTS = ["leaf", "index", "log", "head", "schema", "patch", "key_set", "trust", "secret", "encrypted", "sealed"]


@pytest.mark.parametrize("part", PARTS)
def test_mutations_never_raise_anything_else(part):
    """Every byte of every good vector flipped, removed or doubled: read, or refused."""
    for v in VECTORS[part]["good"]:
        data = bytes.fromhex(v["data"])
        for at in range(0, len(data), max(1, len(data) // 300)):
            for changed in (
                data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :],
                data[:at] + data[at + 1 :],
                data[: at + 1] + data[at:],
                data[:at],
            ):
                with contextlib.suppress(HeadwaterError, AssertionError):
                    READERS[part](v | {"keys": None, "values": None}, changed)


def test_head_at_version_100_million_has_room_for_everything():
    """Every level of diffs (of 4) but one, the newest eight of the lowest with patches, and two Ed25519 signatures."""
    version, diffs, serial = 10**8, [], iter(range(1000))

    def tree(size):
        ref = nodes.Ref(next(serial).to_bytes(32, "big"), min(size, 16 * MIB), min(3 * size, 16 * MIB))
        return nodes.Tree(ref, int(size > 8 * MIB), 1 + size // (8 * MIB) * 2, size)

    for level in range(14):
        width = 4**level
        for n in range(LISTED[level] if level < len(LISTED) else 1):
            b = (version // width - n) * width
            diffs.append(nodes.Diff(b - width, b, tree(40_000 * width), tree(15_000) if level == 0 else None))
    head = Head(
        name="vulnerability-data.example.org",
        epoch=12,
        version=version,
        time=1_800_000_000,
        kind="table",
        checksum=2**128 - 1,
        records=2_000_000_000,
        snapshot_version=version - 1000,
        snapshot=tree(10**13),
        diffs=diffs,
        log=nodes.Ref(bytes(32), 123_456, 234_567),
        interval=30,
        publish_id="ab" * 16,
        trust=12,
    )
    assert len({d.b - d.a for d in head.diffs}) == 14
    signature = "\u2014 vulnerability-data.example.org " + base64.b64encode(bytes(68)).decode() + "\n"
    for expires in (None, 1_800_003_600):
        fitted = fit(msgspec.structs.replace(head, expires=expires, diffs=choose_listed(diffs)))
        refreshed = msgspec.structs.replace(fitted, expires=1_800_003_600)
        data = format_head(refreshed) + 2 * signature.encode()
        assert len(data) <= MAX_WRITTEN
        assert parse_head(data) == refreshed
        assert len(diffs) - len(fitted.diffs) <= 1  # the log has it

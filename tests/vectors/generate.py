"""Makes the test vectors: python -m tests.vectors.generate

`vectors.json` has, for each part of the format, good vectors (bytes and what they mean) and bad ones (bytes and the rule of
SPEC.md that they break). A test makes them anew and fails on any difference. `frames.json` holds compressed frames: these are
kept as they are, since compressors may change.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import xxhash
import zstandard

from publisher.keys import SigningKey
from puller.wire import nodes
from puller.wire.checksum import record_hash
from puller.wire.cipher import Cipher, Secret
from puller.wire.codec import Ref, compress, encode
from puller.wire.head import parse_head
from puller.wire.keys import encode_key
from puller.wire.links import Link, encode_links
from puller.wire.nodes import Diff, Log, Segment, Tree
from puller.wire.note import ed25519_key
from puller.wire.rows import Column, Index, Json, Table, encode_row, encode_schema

HERE = Path(__file__).parent
H = bytes(range(32))
REF = [H, 100, 200]
MIB = 1024 * 1024


def entry(bound: bytes = b"", **changes: Any) -> list[Any]:
    fields = {"bound": bound, "ref": REF, "level": 0, "records": 3, "large": 0, "checksum": bytes(16)} | changes
    return list(fields.values())


def large(**changes: Any) -> list[Any]:
    two = [piece(MIB), piece(MIB)]
    fields = {"size": 2 * MIB, "hash": bytes(16), "sha256": H, "depth": 0, "entries": two} | changes
    return list(fields.values())


def piece(raw: int, bases: Any = (), **changes: Any) -> list[Any]:
    bases = bases if bases is None else list(bases)
    return list(({"sha256": H, "stored": 10, "raw": raw, "check": bytes(16), "bases": bases} | changes).values())


def nested(levels: int, raw: int) -> list[Any]:
    found = piece(raw)
    for _ in range(levels):
        found = piece(raw, [found])
    return found


def sublist(size: int, raw: int = 100) -> list[Any]:
    return [H, 10, raw, size]


def leaf(*records: tuple[bytes, Any]) -> bytes:
    return encode([[k for k, _ in records], [v for _, v in records]])


def good_leaves() -> list[dict]:
    return [
        case("empty", encode([[], []]), deletions=False, lower=b"", upper=None, keys=[]),
        case("one", leaf((b"a", b"1")), deletions=False, lower=b"", upper=None, keys=[b"a"]),
        case("bytewise order", leaf((b"", b""), (b"a", b""), (b"a\0", b""), (b"b", b""), (b"\xff", b"")), keys=None),
        case("range", leaf((b"b", b""), (b"c", b"")), lower=b"b", upper=b"d", keys=[b"b", b"c"]),
        case("deleted", leaf((b"a", None)), deletions=True, keys=[b"a"]),
        case("large", leaf((b"a", large())), keys=[b"a"]),
        case("longest key", leaf((b"k" * 4096, b"")), keys=None),
        case(
            "large, pieces on pieces eight deep",
            leaf((b"a", large(entries=[nested(8, MIB), piece(MIB)]))),
            keys=[b"a"],
        ),
    ]


def bad_leaves() -> list[dict]:
    return [
        case("trailing bytes (4.3)", leaf((b"a", b"1")) + b"\0"),
        case("cut off (4.3)", leaf((b"a", b"1"))[:-1]),
        case("nothing (4.3)", b""),
        case("another type (4.3)", encode({"keys": []})),
        case("three elements (4.3)", encode([[b"a"], [b"1"], []])),
        case("one element (4.3)", encode([[]])),
        case("a text for a key (4.3)", encode([["a"], [b"1"]])),
        case("a text for a value (4.3)", encode([[b"a"], ["1"]])),
        case("a number for a value (4.3)", encode([[b"a"], [1]])),
        case("nesting without end (4.3)", b"\x92\x91\xc4\x01a\x91" + b"\x91" * 2000 + b"\xc0"),
        case("fewer values (5.1)", encode([[b"a", b"b"], [b"1"]])),
        case("descending (5.1)", leaf((b"b", b""), (b"a", b""))),
        case("twice the same key (5.1)", leaf((b"a", b""), (b"a", b""))),
        case("below its range (5.1)", leaf((b"a", b"")), lower=b"b"),
        case("at its upper bound (5.1)", leaf((b"b", b"")), upper=b"b"),
        case("deleted in a snapshot (5.1)", leaf((b"a", None))),
        case("a key too long (5.1)", leaf((b"k" * 4097, b""))),
    ] + [case(c["name"], leaf((b"a", msgspec.msgpack.decode(bytes.fromhex(c["data"]))))) for c in bad_large()]


def bad_large() -> list[dict]:
    whole = 2 * MIB
    return [
        case("large, of 1 MiB (5.3)", encode(large(size=MIB, entries=[piece(MIB)]))),
        case("large, hash too short (5.3)", encode(large(hash=bytes(15)))),
        case("large, SHA-256 too short (5.3)", encode(large(sha256=H[1:]))),
        case("large, negative depth (5.3)", encode(large(depth=-1))),
        case("large, too deep (5.3)", encode(large(depth=5, entries=[sublist(whole)]))),
        case("large, no entries (5.3)", encode(large(entries=[]))),
        case("large, six elements (5.3)", encode([*large(), 0])),
        case("large, four elements (5.3)", encode(large()[:4])),
        case("large, pieces do not add up (5.3)", encode(large(entries=[piece(MIB)]))),
        case("large, lists do not add up (5.3)", encode(large(depth=1, entries=[sublist(MIB)]))),
        case("large, a list of nothing (5.3)", encode(large(depth=1, entries=[sublist(whole), sublist(0)]))),
        case("large, entry that is no array (5.3)", encode(large(entries=[b"x"]))),
        case("large, a piece at depth 1 (5.3)", encode(large(depth=1))),
        case("large, a list at depth 0 (5.3)", encode(large(entries=[sublist(whole)]))),
        case("large, size beyond 2^53-1 (5.3)", encode(large(size=2**53, depth=1, entries=[sublist(2**53)]))),
        case("large, entries over 64 KiB (5.3)", encode(large(size=1200 * 1000, entries=[piece(1000)] * 1200))),
        case("piece, hash too short (5.4)", encode(large(entries=[piece(whole, check=bytes(15))]))),
        case("piece, nine deep (5.4)", encode(large(entries=[nested(9, whole)]))),
        case("piece, bases over 8 MiB (5.4)", encode(large(entries=[piece(whole, [piece(4 * MIB)] * 3)]))),
        case(
            "piece, bases over eight times its size (5.4)",
            encode(large(entries=[piece(whole - 9), piece(9, [piece(73)])])),
        ),
        case("piece, 65 files (5.4)", encode(large(entries=[piece(whole, [piece(1)] * 64)]))),
        case("piece, built from over 64 MiB (5.4)", encode(large(entries=[piece(whole, [nested(8, 4 * MIB)] * 2)]))),
        case("piece, nil for bases (5.4)", encode(large(entries=[piece(whole, bases=None)]))),
        case("piece, four elements (5.4)", encode(large(entries=[piece(whole)[:4]]))),
        case("reference, hash too short (4.2)", encode(large(entries=[piece(whole, sha256=H[1:])]))),
        case("reference, stored 0 (4.2)", encode(large(entries=[piece(whole, stored=0)]))),
        case("reference, stored over 16 MiB (4.2)", encode(large(entries=[piece(whole, stored=16 * MIB + 1)]))),
        case("reference, raw over 16 MiB (4.2)", encode(large(size=17 * MIB, entries=[piece(17 * MIB)]))),
        case("reference, negative (4.2)", encode(large(entries=[piece(whole, stored=-1)]))),
        case("reference, float (4.2)", encode(large(entries=[piece(whole, stored=1.0)]))),
        case("reference, true (4.2)", encode(large(entries=[piece(whole, stored=True)]))),
    ]


def indexes() -> tuple[list[dict], list[dict]]:
    good = [
        case("one", encode([entry()]), level=1),
        case("two", encode([entry(), entry(b"m")]), level=1),
        case("inner range", encode([entry(b"b"), entry(b"c")]), level=1, lower=b"b", upper=b"d"),
        case("uneven levels", encode([entry(level=2), entry(b"m")]), level=3),
    ]
    bad = [
        case("empty (5.2)", encode([]), level=1),
        case("first bound above its own (5.2)", encode([entry(b"a")]), level=1),
        case("descending bounds (5.2)", encode([entry(), entry(b"b"), entry(b"a")]), level=1),
        case("twice the same bound (5.2)", encode([entry(), entry()]), level=1),
        case("bound at the upper bound (5.2)", encode([entry(), entry(b"d")]), level=1, upper=b"d"),
        case("level of its own (5.2)", encode([entry(level=1)]), level=1),
        case("negative level (5.2)", encode([entry(level=-1)]), level=1),
        case("no records (5.2)", encode([entry(records=0)]), level=1),
        case("checksum too short (5.2)", encode([entry(checksum=bytes(15))]), level=1),
        case("a text for a bound (5.2)", encode([["", *entry()[1:]]]), level=1),
        case("five elements (5.2)", encode([entry()[:5]]), level=1),
        case("seven elements (5.2)", encode([[*entry(), 0]]), level=1),
        case("bound too long (5.2)", encode([entry(), entry(b"k" * 4097)]), level=1),
        case("reference with a hash too short (4.2)", encode([entry(ref=[H[1:], 1, 1])]), level=1),
        case("reference of 16 MiB and a byte (4.2)", encode([entry(ref=[H, 16 * MIB + 1, 1])]), level=1),
        case("trailing bytes (4.3)", encode([entry()]) + b"\xc0", level=1),
    ]
    return good, bad


TREE = Tree(Ref(H, 100, 200), 2, 7, 1000)


def logs() -> tuple[list[dict], list[dict]]:
    form = nodes.tree_form(TREE)
    log = Log([Diff(1, 2, TREE, TREE), Diff(0, 8, TREE)], [Segment(0, 8, 3, Ref(H, 1, 2))])
    good = [
        case("empty", encode([[], []])),
        case("lone leaf", encode([[[0, 1, REF]], []])),
        case("diffs, a patch and a segment", nodes.encode_log(log)),
    ]
    bad = [
        case("one element (5.8)", encode([[]])),
        case("three elements (5.8)", encode([[], [], []])),
        case("a diff that leads nowhere (5.6)", encode([[[2, 2, form]], []])),
        case("a diff that leads back (5.6)", encode([[[2, 1, form]], []])),
        case("a patch beside a wide diff (5.6)", encode([[[0, 2, form, form]], []])),
        case("a diff of five (5.6)", encode([[[0, 1, form, form, form]], []])),
        case("a tree of five (5.5)", encode([[[0, 1, [H, 1, 1, 0, 1]]], []])),
        case("a tree 16 levels high (5.5)", encode([[[0, 1, [H, 1, 1, 16, 1, 1]]], []])),
        case("a tree with a text for a hash (5.5)", encode([[[0, 1, [H.hex(), 1, 1, 0, 1, 1]]], []])),
        case("a version beyond 2^53-1 (1)", encode([[[0, 2**53, form]], []])),
        case("a segment that covers nothing (5.8)", encode([[], [[3, 3, 1, REF]]])),
        case("a segment wider than itself (5.8)", encode([[], [[0, 3, 4, REF]]])),
        case("a segment of no width (5.8)", encode([[], [[0, 3, 0, REF]]])),
        case("a text for a diff (5.8)", encode([["x"], []])),
        case("a segment of three (5.8)", encode([[], [[0, 3, 1]]])),
    ]
    return good, bad


HEAD: dict[str, Any] = {
    "epoch": 1,
    "version": 42,
    "time": 1_800_000_000,
    "kind": "table",
    "checksum": "00" * 15 + "2a",
    "records": 3,
    "snapshot": {"version": 40, "tree": [H.hex(), 100, 200, 0, 1, 100]},
    "diffs": [[40, 41, [H.hex(), 1, 2, 0, 1, 1]], [41, 42, [H.hex(), 1, 2, 0, 1, 1], [H.hex(), 1, 2, 0, 1, 1]]],
    "log": [H.hex(), 5, 6],
    "interval": 30,
    "publish_id": "ab" * 16,
    "trust": 0,
    "needs": [],
}
SIGNATURE = "\u2014 key.example/a aGFzaHNpZ25hdHVyZQ==\n"


def head(changes: dict | None = None, *, first: str = "headwater/1 name", end: str = "\n", text: str = "") -> bytes:
    fields = {k: v for k, v in (HEAD | (changes or {})).items() if v is not ...}
    return f"{first}\n{text or json.dumps(fields)}\n{end}".encode()


def heads() -> tuple[list[dict], list[dict]]:
    good = [
        case("plain", head(), version=42),
        case("signed twice", head(end=f"\n{SIGNATURE}{SIGNATURE}"), version=42),
        case("nested 32 deep", head(text=json.dumps(HEAD)[:-1] + ',"x":' + "[" * 31 + "]" * 31 + "}"), version=42),
        case("no log", head({"log": None}), version=42),
        case("log left out", head({"log": ...}), version=42),
        case("expires", head({"expires": 5}), version=42),
        case("keep", head({"keep": 604800}), version=42),
        case("unknown names", head({"new": {"x": [None, True, "é"]}}), version=42),
        case("largest numbers", head({"version": 2**53 - 1, "epoch": 2**53 - 1}), version=2**53 - 1),
        case("over 4096 bytes", head({"pad": "x" * 4096}), version=42),
        case("longest name", head(first="headwater/1 A" + "." * 62 + "z"), version=42),
        case(
            "spaces in the JSON",
            head(text=" " + json.dumps(HEAD, indent=None, separators=(" , ", " : ")) + "\t".replace("\t", " ")),
            version=42,
        ),
    ]
    line = json.dumps(HEAD)
    bad = [
        case("a web page (7.1)", b"<html>\n\n</html>\n"),
        case("nothing (7.1)", b""),
        case("no empty line (7.1)", head(end="")),
        case("cut off (7.1)", head(end=f"\n{SIGNATURE}")[:-1]),
        case("over 16384 bytes (7.1)", head({"pad": "x" * 16384})),
        case("not UTF-8 (7.1)", head().replace(b"name", b"n\xffme", 1)),
        case("a tab (7.1)", head(text=line.replace(" ", "\t", 1))),
        case("carriage returns (7.1)", head().replace(b"\n", b"\r\n")),
        case("another version (7.1)", head(first="headwater/2 name")),
        case("another version, of another form (7.1)", b"headwater/2\n\t\xff" + bytes(20_000)),
        case("no name (7.1)", head(first="headwater/1")),
        case("an empty name (7.1)", head(first="headwater/1 ")),
        case("a name with a space (7.1)", head(first="headwater/1 na me")),
        case("a name with a slash (7.1)", head(first="headwater/1 na/me")),
        case("a name beginning with a dot (7.1)", head(first="headwater/1 .name")),
        case("a name of 65 (7.1)", head(first="headwater/1 " + "n" * 65)),
        case("three lines (7.1)", head(text=line + "\n{}")),
        case("a malformed signature line (7.1)", head(end="\n- key aGFzaHNpZ25hdHVyZQ==\n")),
        case("a signature that is no base64 (7.1)", head(end="\n\u2014 key !!!!\n")),
        case("a signature without padding (7.1)", head(end="\n\u2014 key aGFzaHNpZ25hdHVyZQ\n")),
        case("a signature of four bytes (7.1)", head(end="\n\u2014 key aGFzaA==\n")),
        case("a key name with a plus (7.1)", head(end="\n\u2014 k+y aGFzaHNpZ25hdHVyZQ==\n")),
        case("a signature without a key name (7.1)", head(end="\n\u2014  aGFzaHNpZ25hdHVyZQ==\n")),
        case("duplicate names (7.2)", head(text='{"epoch":1,' + line[1:])),
        case("duplicate names, one escaped (7.2)", head(text='{"\\u0065poch":1,' + line[1:])),
        case("duplicate names further in (7.2)", head(text=line[:-1] + ',"x":{"a":1,"a":2}}')),
        case("an array (7.2)", head(text="[]")),
        case("a fraction (7.2)", head(text=line.replace('"epoch": 1', '"epoch": 1.0'))),
        case("an exponent (7.2)", head(text=line.replace('"epoch": 1', '"epoch": 1e3'))),
        case("a fraction in an unknown name (7.2)", head(text=line[:-1] + ',"x":0.5}')),
        case("NaN (7.2)", head(text=line[:-1] + ',"x":NaN}')),
        case("-0 (7.2)", head(text=line[:-1] + ',"x":-0}')),
        case("2^53 (7.2)", head({"records": 2**53})),
        case("a lone byte order mark (7.2)", head(text="\ufeff" + line)),
        case("two values (7.2)", head(text=line + "{}")),
        case("version 0 (7.2)", head({"version": 0})),
        case("a negative epoch (7.2)", head({"epoch": -1})),
        case("true for a number (7.2)", head({"epoch": True})),
        case("a text for a number (7.2)", head({"records": "3"})),
        case("interval 0 (7.2)", head({"interval": 0})),
        case("another kind (7.2)", head({"kind": "graph"})),
        case("upper-case checksum (7.2)", head({"checksum": "AB" * 16})),
        case("short checksum (7.2)", head({"checksum": "00" * 15})),
        case("short publish_id (7.2)", head({"publish_id": "ab"})),
        case("a snapshot beyond the version (7.2)", head({"snapshot": HEAD["snapshot"] | {"version": 43}})),
        case("snapshot version 0 (7.2)", head({"snapshot": HEAD["snapshot"] | {"version": 0}})),
        case("a diff beyond the version (7.2)", head({"diffs": [[42, 43, [H.hex(), 1, 2, 0, 1, 1]]]})),
        case("upper-case hash in a tree (5.5)", head({"diffs": [[40, 41, [H.hex().upper(), 1, 2, 0, 1, 1]]]})),
        case("a log of two (7.2)", head({"log": [H.hex(), 5]})),
        case("expires as text (7.2)", head({"expires": "soon"})),
        case("an unknown need (7.3)", head({"needs": ["teleportation"]})),
        case("an unknown need and an unknown kind (7.3)", head({"needs": ["teleportation"], "kind": "graph"})),
        case("a lone surrogate (7.2)", head(text=line[:-1] + ',"x":"\\ud800"}')),
        case("a lone surrogate in a name (7.2)", head(text=line[:-1] + ',"\\udfff":1}')),
        case("nested 33 deep (7.2)", head(text=line[:-1] + ',"x":' + "[" * 32 + "]" * 32 + "}")),
        case("nested without end (7.2)", head(text=line[:-1] + ',"x":' + "[" * 3000 + "]" * 3000 + "}")),
        case("null for expires (7.2)", head({"expires": None})),
        case("keep as text (7.2)", head({"keep": "7d"})),
        case("keep over 9,000,000,000 (7.2)", head({"keep": 9_000_000_001})),
        case("null for keep (7.2)", head({"keep": None})),
        case("a signature with bits unused (7.1)", head(end="\n\u2014 key aGFzaHNpZ25hdHVyZR==\n")),
        case("a need that is no text (7.2)", head({"needs": [1]})),
        case("a need that is an object (7.2)", head({"needs": [{}]})),
        case(
            "an unknown need and a fraction (7.3)", head(text=json.dumps(HEAD | {"needs": ["teleportation"], "x": 0.5}))
        ),
        case("a time after 2255 (7.2)", head({"time": 9_000_000_001})),
        case("an interval of over a week (7.2)", head({"interval": 604_801})),
        case("a key name with an em space (7.1)", head(end="\n\u2014 k\u2003y aGFzaHNpZ25hdHVyZQ==\n")),
    ]
    bad += [case(f"without {name} (7.2)", head({name: ...})) for name in HEAD if name != "log"]
    bad += sealed_heads()[2]
    return good, bad


def keys() -> tuple[list[dict], list[dict]]:
    values: list[tuple[str, tuple]] = [
        ("t", (n,)) for n in (0, 1, -1, 255, 256, -255, -256, 65535, 65536, 2**63 - 1, -(2**63), None, False, True)
    ]
    values += [("t", (f,)) for f in (0.0, 1.5, -1.5, 5e-324, -5e-324, 1.7976931348623157e308, math.inf, -math.inf)]
    values += [("t", ("",)), ("t", ("a\0b",)), ("t", ("\U0001f600",)), ("t", (b"",)), ("t", (b"\0\xff\0",)), ("", (1,))]
    values += [("t\0u", ("de", 3)), ("t", ("de", 3, None))]
    good = [
        case(repr((table, key)), encode_key(table, key), table=table, key=list(map(tagged, key)))
        for table, key in values
    ]
    t = b"\x30t\0"
    bad = [
        case("no primary key (9.2)", t),
        case("no table (9.2)", b"\x14\x14"),
        case("cut off text (9.2)", t + b"\x30a"),
        case("cut off integer (9.2)", t + b"\x16\x01"),
        case("cut off float (9.2)", t + b"\x21\x80"),
        case("unknown element (9.2)", t + b"\x40"),
        case("integer with a zero in front (9.2)", t + b"\x16\x00\x01"),
        case("negative integer too long (9.2)", t + b"\x12\xff\x00"),
        case("zero as a positive integer (9.2)", t + b"\x15\x00"),
        case("2^63 (9.2)", t + b"\x1c" + (2**63).to_bytes(8, "big")),
        case("below -2^63 (9.2)", t + b"\x0c" + (2**63 - 2).to_bytes(8, "big")),
        case("NaN (9.2)", t + b"\x21\xff\xf8" + bytes(6)),
        case("negative zero (9.2)", t + b"\x21\x7f" + b"\xff" * 7),
        case("text that is not UTF-8 (9.2)", t + b"\x30\xff\0"),
        case("text with a surrogate (9.2)", t + b"\x30\xed\xa0\x80\0"),
    ]
    return good, bad


def tagged(value: Any) -> Any:
    """A value with its type, as JSON."""
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if isinstance(value, float):
        return {"float64": struct.pack(">d", value).hex()}
    return value


ROWS = Table("t", [Column("id", "int64"), Column("i", "int64"), Column("f", "float64"), Column("a", "any")], [0])
SCHEMA = [ROWS, Table("u", [Column("x", "text"), Column("y", "blob")], [1, 0], [Index("by x", True, [0])])]


def rows() -> tuple[list[dict], list[dict]]:
    good = [
        case("empty", encode_row([None, None, None])),
        case("numbers", encode_row([1, 1.0, 1])),
        case("extremes", encode_row([-(2**63), -0.0, 2**63 - 1])),
        case("NaN", encode_row([None, math.nan, math.nan])),
        case("any text", encode_row([None, None, "é\0"])),
        case("any blob", encode_row([None, None, b"\xff"])),
        case("any boolean", encode_row([None, None, True])),
        case("any JSON", encode_row([None, None, Json(1, b'{"a":[1.0]}')])),
    ]
    bad = [
        case("ends in nil (9.3)", encode([1, None])),
        case("too many values (9.3)", encode([1, 1.0, 1, 1])),
        case("long array form (9.3)", b"\xdc\x00\x01\x01"),
        case("long integer form (9.3)", b"\x91\xd0\x01"),
        case("int for a float (9.3)", encode([1, 1])),
        case("float for an int (9.3)", encode([1.0])),
        case("true for an int (9.3)", encode([True])),
        case("float 32 (9.3)", b"\x92\x01\xca\x3f\x80\x00\x00"),
        case("2^63 (9.3)", encode([2**63])),
        case("another NaN (9.3)", b"\x92\xc0\xcb\x7f\xf8" + bytes(5) + b"\x01"),
        case("negative NaN (9.3)", b"\x92\xc0\xcb\xff\xf8" + bytes(6)),
        case("signalling NaN (9.3)", b"\x92\xc0\xcb\x7f\xf0" + bytes(5) + b"\x01"),
        case("empty JSON (9.3)", encode([None, None, Json(1, b"")])),
        case("ext of another type (9.3)", encode([None, None, Json(2, b"1")])),
        case("JSON that is not UTF-8 (9.3)", encode([None, None, Json(1, b"\xff")])),
        case("text that is not UTF-8 (4.3)", b"\x93\xc0\xc0\xa1\xff"),
        case("unsigned form of a negative number's place (9.3)", b"\x91\xd1\x01\x2c"),
        case("half a row (9.3)", b"\x91"),
        case("two rows (9.3)", b"\x91\x01\x91\x02"),
        case("an array (9.3)", encode([None, None, [1]])),
        case("a map (9.3)", encode([None, None, {"a": 1}])),
        case("no array (9.3)", encode({})),
        case("trailing bytes (4.3)", encode([1]) + b"\xc0"),
        case("nothing (4.3)", b""),
    ]
    return good, bad


def schemas() -> tuple[list[dict], list[dict]]:
    column = [["a", "int64"], ["b", "text"]]
    good = [case("no tables", encode([])), case("two tables", encode_schema(SCHEMA))]
    bad = [
        case("a table twice (9.1)", encode([["t", column, [0], []], ["t", column, [0], []]])),
        case("a column twice (9.1)", encode([["t", [["a", "text"], ["a", "text"]], [0], []]])),
        case("unknown type (9.1)", encode([["t", [["a", "int32"]], [0], []]])),
        case("no key (9.1)", encode([["t", column, [], []]])),
        case("a key beyond the columns (9.1)", encode([["t", column, [2], []]])),
        case("a negative key (9.1)", encode([["t", column, [-1], []]])),
        case("a key column twice (9.1)", encode([["t", column, [0, 0], []]])),
        case("JSON in the key (9.1)", encode([["t", [["a", "json"]], [0], []]])),
        case("an index over nothing (9.1)", encode([["t", column, [0], [["i", False, []]]]])),
        case("an index beyond the columns (9.1)", encode([["t", column, [0], [["i", False, [2]]]]])),
        case("an index with a number for unique (9.1)", encode([["t", column, [0], [["i", 1, [0]]]]])),
        case("4,097 columns (9.1)", encode([["t", [[str(n), "any"] for n in range(4097)], [0], []]])),
        case("65 indexes (9.1)", encode([["t", column, [0], [["i", False, [0]]] * 65]])),
        case("three elements (9.1)", encode([["t", column, [0]]])),
        case("five elements (9.1)", encode([["t", column, [0], [], 0]])),
        case("long form (9.1)", b"\xdc\x00\x00"),
        case("trailing bytes (4.3)", encode([]) + b"\xc0"),
        case("a blob for a name (9.1)", encode([[b"t", column, [0], []]])),
    ]
    return good, bad


def paths() -> tuple[list[dict], list[dict]]:
    good = [
        "a",
        "a/b",
        "é",
        ".a",
        "..a",
        "a..",
        "...",
        "a b",
        "x" * 255,
        ".headwaters",
        "a/.headwater",
        "con",
        "a\\b",
        "-rf",
        "~",
    ]
    bad = {
        "": "empty",
        "/a": "absolute",
        "a/": "slash at the end",
        "a//b": "empty component",
        ".": "dot",
        "a/./b": "dot",
        "..": "dots",
        "a/../b": "dots",
        "a\nb": "control character",
        "a\0b": "zero byte",
        "a\x7fb": "DEL",
        ".headwater": "reserved",
        ".headwater/x": "reserved",
        ".Headwater": "reserved without case",
        ".headwater. /x": "reserved with dots and spaces behind",
        ".head\u200cwater": "reserved with an ignorable character",
        "\ufeff.headwater": "reserved with an ignorable character in front",
        "x" * 256: "component too long",
        "a/" + "é" * 128: "component too long in bytes",
    }
    return (
        [case(path, path.encode()) for path in good],
        [case(f"{why} (8.1)", path.encode()) for path, why in bad.items()] + [case("not UTF-8 (8.1)", b"a\xff")],
    )


def file_values() -> tuple[list[dict], list[dict]]:
    good = [b"f", b"fcontent", b"x", b"x#!", b"la", b"l../../b", b"l" + b"d" * 4095, b"d"]
    bad = {b"": "empty", b"g": "unknown type", b"da": "folder with content", b"l": "link to nowhere"}
    bad |= {b"la\0": "link with a zero byte", b"l" + b"d" * 4096: "link too long"}
    return [case(v[:1].decode(), v) for v in good], [case(f"{why} (8.2)", v) for v, why in bad.items()]


def frames() -> tuple[list[dict], list[dict]]:
    raw = b"content of a frame, content of a frame"
    plain = compress(raw)
    dictionary = b"\x37\xa4\x30\xec content of a frame"
    patched = compress(raw, 3, dictionary)
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    parameters = zstandard.ZstdCompressionParameters(window_log=25, write_content_size=True, enable_ldm=False)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(16 * MIB) + b"x" * MIB * 9)
    unchecked = zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT),
        write_dict_id=False,
    ).compress(raw)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    good = [
        case("plain", plain, raw=len(raw), content=raw),
        case("with a checksum", zstandard.ZstdCompressor(write_checksum=True).compress(raw), raw=len(raw), content=raw),
        case("with a dictionary", patched, raw=len(raw), content=raw, dictionary=dictionary),
    ]
    bad = [
        case("empty content (4.2)", compress(b""), raw=0),
        case("another size declared (4.1)", plain, raw=len(raw) - 1),
        case("no content size (4.1)", unknown, raw=len(raw)),
        case("window over 16 MiB (4.1)", wide[:200], raw=25 * MIB),
        case("a second frame (4.1)", plain + plain, raw=len(raw)),
        case("a skippable frame behind (4.1)", plain + skippable, raw=len(raw)),
        case("a skippable frame in front (4.1)", skippable + plain, raw=len(raw)),
        case("trailing bytes (4.1)", plain + b"x", raw=len(raw)),
        case("cut off (4.1)", plain[:-3], raw=len(raw)),
        case("nothing (4.1)", b"", raw=0),
        case("no frame (4.1)", raw, raw=len(raw)),
        case("a dictionary and no checksum (4.1)", unchecked, raw=len(raw), dictionary=dictionary),
        case("another dictionary (4.1)", patched, raw=len(raw), dictionary=dictionary[:-1] + b"X"),
        case("a dictionary that was not used (4.1)", patched, raw=len(raw)),
    ]
    return good, bad


def patches() -> tuple[list[dict], list[dict]]:
    names, old, new = [b"a", b"b", b"c"], [b"old value of a", None, b"c"], [b"new value of a", b"b", None]
    dictionary = nodes.patch_dictionary(old)
    good = [case("patch", nodes.encode_patch(names, new, dictionary), old=old, values=new)]
    check = xxhash.xxh3_128_digest(dictionary)

    def patch(k: Any, v: Any, c: bytes = check, d: bytes = dictionary) -> bytes:
        return encode((compress(encode(k)), c, compress(encode(v), 3, d)))

    bad = [
        case("keys descend (5.7)", patch([b"b", b"a", b"c"], new), old=old),
        case("fewer values (5.7)", patch(names, new[:2]), old=old),
        case("hash too short (5.7)", patch(names, new, check[:15]), old=old),
        case("two elements (5.7)", encode((b"", check)), old=old),
        case("a text among the values (5.7)", patch(names, [b"", "x", None]), old=old),
        case(
            "values frame without a checksum (4.1)",
            encode((compress(encode(names)), check, compress(encode(new)))),
            old=old,
        ),
        case("keys frame too large (5.7)", patch([bytes(9 * MIB)], new), old=old),
        case("values frame too large (5.7)", patch(names, [bytes(MIB)] * 9), old=old),
    ]
    names, old, new = [b"a", b"b", b"c"], [b"a", None, None], [b"A", large(entries=[piece(MIB), piece(MIB)]), None]
    dictionary = nodes.patch_dictionary(old)
    start = [compress(encode(names)), xxhash.xxh3_128_digest(dictionary), compress(encode(new), 3, dictionary)]
    few = [[0, 1], [2**53 - 1, 1]]

    def moved(found: Any, *more: Any) -> bytes:
        return encode([*start, compress(encode(found)), *more])

    def one(bases: Any, raw: int = MIB) -> bytes:
        return moved([[1, [[0, piece(raw, bases)]]]])

    good += [
        case("a piece made from a range", one([[5, 100]]), old=old, values=None),
        case("ranges and pieces", one([[0, 1], piece(100, [piece(9)]), [2**53 - 1, 7 * MIB]]), old=old, values=None),
        case("4,096 ranges", one([[n, 1] for n in range(4096)]), old=old, values=None),
        case("no ranges", moved([[1, [[0, piece(MIB)], [1, nested(8, MIB)]]]]), old=old, values=None),
    ]
    bad += [
        case(
            "ranges, in a value (5.4)",
            patch(names, [None, large(entries=[piece(2 * MIB, few)]), None]),
            old=[b"old value of a", None, b"c"],
        ),
        case("an empty range (5.7)", one([[5, 0]]), old=old),
        case("a range before the value (5.7)", one([[-1, 5]]), old=old),
        case("a range beyond 2^53-1 (1)", one([[2**53, 5]]), old=old),
        case("a range of three (5.7)", one([[1, 2, 3]]), old=old),
        case("a range of texts (5.7)", one([["1", "2"]]), old=old),
        case("ranges over 8 MiB (5.7)", one([[0, 8 * MIB], [0, 1]], 2 * MIB), old=old),
        case("ranges over eight times the piece (5.7)", one([[0, 7], [0, 2]], 1), old=old),
        case("4,097 ranges (5.7)", one([[n, 1] for n in range(4097)]), old=old),
        case("a range below a base (5.7)", one([piece(MIB, few)]), old=old),
        case("a piece in a patch, 65 files (5.7)", one([*few, *[piece(1)] * 64]), old=old),
        case("a piece in a patch, nine deep (5.7)", moved([[1, [[0, nested(9, MIB)]]]]), old=old),
        case("no pieces (5.7)", moved([]), old=old),
        case("no pieces for a value (5.7)", moved([[1, []]]), old=old),
        case("pieces for a value that is not large (5.7)", moved([[0, [[0, piece(MIB)]]]]), old=old),
        case("pieces for a deleted key (5.7)", moved([[2, [[0, piece(MIB)]]]]), old=old),
        case("pieces beyond the keys (5.7)", moved([[3, [[0, piece(MIB)]]]]), old=old),
        case("pieces for a negative key (5.7)", moved([[-2, [[0, piece(MIB)]]]]), old=old),
        case("pieces for a key twice (5.7)", moved([[1, [[0, piece(MIB)]]]] * 2), old=old),
        case("pieces descend (5.7)", moved([[1, [[1, piece(MIB)], [0, piece(MIB)]]]]), old=old),
        case("a negative piece (5.7)", moved([[1, [[-1, piece(MIB)]]]]), old=old),
        case("nil for a pieces frame (5.7)", encode([*start, None]), old=old),
        case("an empty pieces frame (4.1)", encode([*start, b""]), old=old),
        case("five elements (5.7)", moved([[1, [[0, piece(MIB)]]]], b""), old=old),
        case("pieces frame too large (5.7)", encode([*start, compress(bytes(9 * MIB))]), old=old),
    ]
    return good, bad


SECRET = Secret("name", bytes(range(100, 132)))
SEALED: dict[str, Any] = {k: v for k, v in HEAD.items() if k not in ("kind", "checksum", "records")}


def secrets() -> tuple[list[dict], list[dict]]:
    text = SECRET.text
    start, name, id_, key = text.split("+", 3)
    texts = {
        "another word": text.replace("SECRET", "KEY", 1),
        "nothing": "",
        "the key alone": key,
        "another id": text.replace(id_, f"{int(id_, 16) ^ 1:08x}"),
        "an id in capitals": f"{start}+{name}+{id_.upper()}+{key}",
        "another name": f"{start}+eman+{id_}+{key}",
        "another key": f"{start}+{name}+{id_}+B{key[1:]}",
        "a name that there cannot be": f"{start}+na me+{id_}+{key}",
        "a key of 31 bytes": f"{start}+{name}+{id_}+{key[:40]}ow==",
        "bits unused": f"{start}+{name}+{id_}+{key[:-2]}{chr(ord(key[-2]) + 1)}=",
        "no padding": text[:-1],
        "two lines": f"{text}\n{text}",
    }
    return [case("secret", text.encode()), case("with a newline", f"{text}\n".encode())], [
        case(f"{why} (11.1)", bad.encode()) for why, bad in texts.items()
    ]


def encrypted() -> tuple[list[dict], list[dict]]:
    cipher, other = Cipher(SECRET), Cipher(Secret("eman", SECRET.key))
    links = [Link("diffs", H, 7), Link("chunks", bytes(32), 16 * MIB), Link("chunks", H, 5), Link("chunks", H, 5)]
    one, two = (encode_links([link])[4:] for link in links[1:3])
    data, alone = cipher.encrypt(b"frame", links), cipher.encrypt(b"frame")

    def made(*items: bytes, count: int | None = None) -> bytes:
        """Properly encrypted, with links as they are given."""
        clear = (len(items) if count is None else count).to_bytes(4, "big") + b"".join(items)
        return clear + cipher._encrypt(b"frame", b"headwater-file/1 name\n" + clear)

    def flipped(at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    ordered = [[area, sha256, stored] for area, sha256, stored in sorted(set(links))]
    good = [
        case("links", data, frame=b"frame", links=ordered),
        case("no links", alone, frame=b"frame", links=[]),
        case("an empty frame", cipher.encrypt(b""), frame=b"", links=[]),
    ]
    end = 4 + 3 * 37
    places = {"number of links": 3, "an area": 4, "a hash": 5, "a size": 40, "the nonce": end, "text": end + 12}
    bad = [
        *(case(f"another bit in {what} (11.3)", flipped(at)) for what, at in (places | {"the tag": -1}).items()),
        case("links left out (11.3)", alone[:4] + data[end:]),
        case("links of another file (11.3)", data[:end] + alone[4:]),
        case("cut off in the tag (11.3)", data[:-1]),
        case("cut off in the links (11.3)", data[:60]),
        case("cut off behind the nonce (11.3)", data[: end + 12]),
        case("cut off in the number of links (11.3)", data[:3]),
        case("nothing (11.3)", b""),
        case("trailing bytes (11.3)", data + b"\0"),
        case("more links than bytes (11.3)", made(one, count=2**32 - 1)),
        case("links descend (11.3)", made(two, one)),
        case("a link twice (11.3)", made(one, one)),
        case("a file twice, with two sizes (11.3)", made(two[:33] + b"\0\0\0\1", two)),
        case("an area that there is not (11.3)", made(b"\2" + one[1:])),
        case("a link of size 0 (4.2)", made(one[:33] + bytes(4))),
        case("a link of over 16 MiB (4.2)", made(one[:33] + (16 * MIB + 1).to_bytes(4, "big"))),
        case("another dataset's, with the same key (11.1)", other.encrypt(b"frame", links)),
        case("another secret's (11.1)", Cipher(Secret("name", bytes(32))).encrypt(b"frame", links)),
        case("not encrypted (11.3)", compress(b"frame" * 20)),
    ]
    return good, bad


def sealed_head(changes: dict | None = None, sealed: Any = None, **options: Any) -> bytes:
    fields = SEALED | {"needs": ["encryption"], "encryption": {"key": SECRET.id}, "sealed": sealed or seal()}
    return head({"kind": ..., "checksum": ..., "records": ...} | fields | (changes or {}), **options)


def seal(kind: str = "table", records: int = 3, cipher: Cipher | None = None, **changes: Any) -> str:
    """What is sealed in a HEAD that differs from ours by some changes."""
    plain = msgspec.structs.replace(parse_head(head()), kind=kind, records=records, **changes)
    return base64.b64encode((cipher or Cipher(SECRET)).seal(plain).sealed).decode()


def sealed_heads() -> tuple[list[dict], list[dict], list[dict]]:
    """Good ones, those that only the secret shows to be bad, and those that anybody must refuse."""
    meaning = {"kind": "table", "checksum": HEAD["checksum"], "records": 3, "version": 42}
    moved = {"snapshot": Tree(Ref(bytes(32), 100, 200), 0, 1, 100)}
    later = {"time": 1_800_000_100, "expires": 5, "interval": 31, "log": ..., "diffs": []}
    good = [
        case("sealed", sealed_head(), **meaning),
        case("signed", sealed_head(end=f"\n{SIGNATURE}"), **meaning),
        case("what may change in a version changed", sealed_head(later), **meaning),
        case("unknown names", sealed_head({"x": 1, "encryption": {"key": SECRET.id, "x": 1}}), **meaning),
        case(
            "another kind and number", sealed_head(sealed=seal("bytes", 0)), **meaning | {"kind": "bytes", "records": 0}
        ),
    ]
    text = seal()
    bad = [
        case("another bit (11.2)", sealed_head(sealed=("B" if text[0] == "A" else "A") + text[1:])),
        case("sealed for another version (11.2)", sealed_head(sealed=seal(version=43))),
        case("sealed for another epoch (11.2)", sealed_head(sealed=seal(epoch=2))),
        case("sealed for another publish_id (11.2)", sealed_head(sealed=seal(publish_id="ac" * 16))),
        case("sealed for a snapshot of another version (11.2)", sealed_head(sealed=seal(snapshot_version=41))),
        case("sealed for another snapshot (11.2)", sealed_head(sealed=seal(**moved))),
        case("sealed with another secret (11.2)", sealed_head(sealed=seal(cipher=Cipher(Secret("name", bytes(32)))))),
        case("sealed for another name (11.2)", sealed_head(sealed=seal(name="eman"))),
        case("an unknown kind (7.2)", sealed_head(sealed=seal("graph"))),
        case("2^53 records (7.2)", sealed_head(sealed=seal(records=2**53))),
        case("another secret's id (11.2)", sealed_head({"encryption": {"key": "00000000"}})),
        case("not encrypted (11)", head()),
    ]
    refused = [
        case("sealed, and a kind (11.2)", sealed_head({"kind": "table"})),
        case("sealed, and a checksum (11.2)", sealed_head({"checksum": HEAD["checksum"]})),
        case("sealed, and a number of records (11.2)", sealed_head({"records": 3})),
        case("sealed, and null for a kind (11.2)", sealed_head({"kind": None})),
        case("encrypted, and nothing sealed (11.2)", sealed_head({"sealed": ...})),
        case("encrypted, with what secret is not said (11.2)", sealed_head({"encryption": ...})),
        case("encrypted, without an id (11.2)", sealed_head({"encryption": {}})),
        case("encrypted, a text for an object (11.2)", sealed_head({"encryption": SECRET.id})),
        case("encrypted, an id in capitals (11.2)", sealed_head({"encryption": {"key": "ABCDEF01"}})),
        case("encrypted, an id of nine (11.2)", sealed_head({"encryption": {"key": "abcdef012"}})),
        case("sealed, without the need (7.2)", sealed_head({"needs": []})),
        case("sealed, no base64 (11.2)", sealed_head(sealed="!" + text[1:])),
        case("sealed, cut off (11.2)", sealed_head(sealed=text[:68])),
        case("sealed, too long (11.2)", sealed_head(sealed=text * 3)),
        case("sealed, bits unused (11.2)", sealed_head(sealed=text[:72] + "AAB=")),
        case("encrypted, and an unknown need (7.3)", sealed_head({"needs": ["encryption", "teleportation"]})),
    ]
    return good, bad, refused


def case(name: str, data: bytes, **fields: Any) -> dict:
    return {"name": name, "data": data.hex()} | {k: plain(v) for k, v in fields.items()}


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return [plain(v) for v in value] if isinstance(value, list) else value


def both(pair: tuple[list[dict], list[dict]]) -> dict:
    return {"good": pair[0], "bad": pair[1]}


ROOT, OTHER, SIGNER, THIEF = (
    SigningKey(name, bytes([n] * 32)) for n, name in enumerate(("root", "other", "name", "name"))
)


def key_set(
    before: bytes | None = None, *, by: tuple[SigningKey, ...] = (ROOT,), first: str = "", **changes: Any
) -> bytes:
    """A key set that follows `before`, signed; `changes` replace fields, or leave them out where they are `...`."""
    number = 1 if before is None else json.loads(before.split(b"\n")[1])["number"] + 1
    fields = {
        "number": number,
        "epoch": 1,
        "time": 1_800_000_000,
        "previous": None if before is None else hashlib.sha256(before).hexdigest(),
        "keys": [str(SIGNER.public)],
        "roots": [str(ROOT.public)],
        "threshold": 1,
    }
    text = f"{first or 'headwater-trust/1 name'}\n{json.dumps({k: v for k, v in (fields | changes).items() if v is not ...})}\n"
    return f"{text}\n{''.join(key.sign(text) for key in by)}".encode()


def signed_head(*by: SigningKey, **changes: Any) -> bytes:
    data = head({"trust": 1} | changes)
    return data + "".join(key.sign(data[:-1].decode()) for key in by).encode()


def key_sets() -> tuple[list[dict], list[dict]]:
    vkey, public = str(SIGNER.public), SIGNER.public.data
    encoded = base64.b64encode(public).decode()
    alien = "new+00000000+" + base64.b64encode(b"\x06" + bytes(50)).decode()
    two = key_set(key_set())
    good = [
        case("the first", key_set(), number=1),
        case("the second", two, number=2),
        case("unknown names", key_set(new={"x": 1}), number=1),
        case("a key of another type", key_set(keys=[vkey, alien]), number=1),
        case("two roots, of which one must sign", key_set(roots=[str(ROOT.public), str(OTHER.public)]), number=1),
        case("a signature line of an unknown key", key_set(by=(ROOT, THIEF)), number=1),
    ]
    bad = [
        case("another version (7.5)", key_set(first="headwater-trust/2 name")),
        case("a HEAD (7.5)", head()),
        case("no name (7.5)", key_set(first="headwater-trust/1")),
        case("not signed (7.5)", key_set(by=())),
        case("signed by another key (7.5)", key_set(by=(OTHER,))),
        case("signed by one of two that must (7.5)", key_set(roots=[str(ROOT.public), str(OTHER.public)], threshold=2)),
        case(
            "signed twice by one of two that must (7.5)",
            key_set(by=(ROOT, ROOT), roots=[str(ROOT.public), str(OTHER.public)], threshold=2),
        ),
        case("a signature that does not verify (7.5)", key_set().replace(b"1800000000", b"1800000001")),
        case("cut off (7.1)", key_set()[:-1]),
        case("over 65536 bytes (7.5)", key_set(pad="x" * 65536)),
        case("over 100 signature lines (7.5)", key_set() + SIGNATURE.encode() * 100),
        case("number 0 (7.5)", key_set(number=0)),
        case("a first one with a previous one (7.5)", key_set(previous="00" * 32)),
        case("a second one without (7.5)", key_set(number=2)),
        case("previous left out (7.5)", key_set(previous=...)),
        case("upper-case previous (7.5)", key_set(number=2, previous="AB" * 32)),
        case("no keys (7.5)", key_set(keys=[])),
        case("65 keys (7.5)", key_set(keys=[str(ed25519_key("name", bytes([n] * 32))) for n in range(65)])),
        case("a key twice (7.5)", key_set(keys=[vkey, vkey])),
        case("a key under two names (7.5)", key_set(keys=[vkey, str(ed25519_key("n", public[1:]))])),
        case("a key with a wrong hash (7.5)", key_set(keys=[f"name+00000000+{encoded}"])),
        case(
            "a key with an upper-case hash (7.5)",
            key_set(keys=[vkey.replace(SIGNER.public.id, SIGNER.public.id.upper())]),
        ),
        case("a key without a hash (7.5)", key_set(keys=[f"name+{encoded}"])),
        case("an Ed25519 key of 31 bytes (7.5)", key_set(keys=[str(ed25519_key("name", bytes(31)))])),
        case("no base64 (7.5)", key_set(keys=["name+00000000+!!!!"])),
        case("a private key (7.5)", key_set(keys=[SIGNER.text])),
        case("a number for a key (7.5)", key_set(keys=[1])),
        case("threshold 0 (7.5)", key_set(threshold=0)),
        case("a threshold above the roots (7.5)", key_set(threshold=2)),
        case("duplicate names (7.2)", key_set().replace(b'"epoch"', b'"number"')),
        case("a fraction (7.2)", key_set(threshold=1.0)),
    ]
    return good, bad


def trusts() -> tuple[list[dict], list[dict]]:
    """HEADs as they are served with key sets, to a reader that pinned one or was given keys; the bad ones have a reason."""
    one = key_set()
    two = key_set(one, by=(ROOT, OTHER), roots=[str(OTHER.public)])
    three = key_set(two, by=(OTHER,), epoch=2, roots=[str(OTHER.public)])
    new_epoch = {"epoch": 2, "version": 1, "snapshot": HEAD["snapshot"] | {"version": 1}, "diffs": [], "trust": 3}

    def trust(
        name: str, data: bytes, *sets: bytes, pinned: bytes | None = None, given: tuple = (), reason: str = ""
    ) -> dict:
        served = {str(n): blob.hex() for n, blob in enumerate(sets, 1) if blob}
        fields = {"sets": served, "pinned": pinned, "given": [str(key.public) for key in given]}
        return case(name, data, **fields, **({"reason": reason} if reason else {}))

    good = [
        trust("first contact", signed_head(SIGNER), one),
        trust("first contact, the root given", signed_head(SIGNER), one, given=(ROOT,)),
        trust("first contact, an older root given", signed_head(SIGNER, trust=2), one, two, given=(ROOT,)),
        trust("first contact, one of two given", signed_head(SIGNER, trust=2), one, two, given=(THIEF, OTHER)),
        trust("pinned", signed_head(SIGNER), one, pinned=one),
        trust("signed by an unknown key, too", signed_head(THIEF, SIGNER), one, pinned=one),
        trust("pinned, one set on", signed_head(SIGNER, trust=2), b"", two, pinned=one),
        trust("pinned, two sets on, in a new epoch", signed_head(SIGNER, **new_epoch), b"", two, three, pinned=one),
        trust("not signed", head()),
    ]
    forged = key_set(one, by=(THIEF,), roots=[str(THIEF.public)], keys=[str(THIEF.public)])
    half = key_set(one, by=(OTHER,), roots=[str(OTHER.public)])
    bad = [
        trust("not signed, a key given (7.5)", head(), given=(ROOT,), reason="unsigned"),
        trust("not signed, pinned (7.5)", head(), one, pinned=one, reason="unsigned"),
        trust("no signature, though it names a set (7.5)", head({"trust": 1}), one, pinned=one, reason="unsigned"),
        trust("signed by another key (7.5)", signed_head(THIEF), one, pinned=one, reason="unknown-key"),
        trust("signed by the root (7.5)", signed_head(ROOT), one, pinned=one, reason="unknown-key"),
        trust(
            "another text (7.5)", signed_head(SIGNER).replace(b": 42", b": 43"), one, pinned=one, reason="bad-signature"
        ),
        trust(
            "a good and a bad signature (7.5)",
            signed_head(SIGNER) + SIGNER.sign("else").encode(),
            one,
            pinned=one,
            reason="bad-signature",
        ),
        trust("another key given (7.5)", signed_head(SIGNER), one, given=(OTHER,), reason="unknown-key"),
        trust("the signing key given (7.5)", signed_head(SIGNER), one, given=(SIGNER,), reason="unknown-key"),
        trust("an earlier set (7.5)", signed_head(SIGNER), one, two, pinned=two, reason="key-set-rollback"),
        trust(
            "a set left out (7.5)",
            signed_head(SIGNER, **new_epoch),
            b"",
            b"",
            three,
            pinned=one,
            reason="key-set-skipped",
        ),
        trust(
            "another set in its place (7.5)",
            signed_head(SIGNER, trust=2),
            b"",
            three,
            pinned=one,
            reason="key-set-skipped",
        ),
        trust("a forged set (7.5)", signed_head(THIEF, trust=2), b"", forged, pinned=one, reason="key-set-forged"),
        trust(
            "a set without the old root (7.5)",
            signed_head(SIGNER, trust=2),
            b"",
            half,
            pinned=one,
            reason="key-set-forged",
        ),
        trust(
            "a set after another one (7.5)",
            signed_head(SIGNER, trust=2),
            b"",
            key_set(one, by=(ROOT,), previous="00" * 32),
            pinned=one,
            reason="key-set-forged",
        ),
        trust(
            "an epoch without a set (7.5)",
            signed_head(SIGNER, **new_epoch | {"trust": 1}),
            one,
            pinned=one,
            reason="epoch",
        ),
        trust(
            "a set back in epochs (7.5)",
            signed_head(SIGNER, trust=2, epoch=0),
            b"",
            key_set(one, epoch=0),
            pinned=one,
            reason="epoch",
        ),
        trust(
            "the set of another dataset (7.5)",
            signed_head(SIGNER),
            key_set(first="headwater-trust/1 else"),
            reason="other-dataset",
        ),
    ]
    return good, bad


def vectors() -> dict:
    """All vectors that are the same each time."""
    pairs = [(b"", b""), (b"a.txt", b"fhello"), (b"k" * 4096, bytes(1000)), (b"\0", b"\xff")]
    return {
        "record_hash": [{"key": k.hex(), "value": v.hex(), "hash": record_hash(k, v).hex()} for k, v in pairs],
        "leaf": {"good": good_leaves(), "bad": bad_leaves()},
        "index": both(indexes()),
        "log": both(logs()),
        "head": both(heads()),
        "secret": both(secrets()),
        "encrypted": both(encrypted()) | {"secret": SECRET.text},
        "sealed": both(sealed_heads()[:2]) | {"secret": SECRET.text},
        "key": both(keys()),
        "row": both(rows()) | {"schema": encode_schema([ROWS]).hex()},
        "schema": both(schemas()),
        "path": both(paths()),
        "file_value": both(file_values()),
        "key_set": both(key_sets()),
        "trust": both(trusts()),
    }


def write() -> None:
    """Write both files."""
    (HERE / "vectors.json").write_text(json.dumps(vectors(), indent=0, ensure_ascii=True) + "\n")
    compressed = {"frame": both(frames()), "patch": both(patches())}
    (HERE / "frames.json").write_text(json.dumps(compressed, indent=0) + "\n")


if __name__ == "__main__":
    write()

"""A small dataset of kind `files` that uses every feature of the format, written with the codec's own functions.

The publisher uses only part of them; readers must know them all: deep and uneven indexes, lists of pieces, pieces stored as
patches on others, wide diffs, patches (one of them a tree, one with pieces made from ranges), a log with nested segments,
unknown fields, two signatures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path

import msgspec
import xxhash

from puller.wire import nodes
from puller.wire.checksum import record_hash, run_sum
from puller.wire.codec import CHUNKS, DIFFS, Ref, compress, encode, path_of
from puller.wire.nodes import (
    Diff,
    Entry,
    Large,
    Log,
    PatchedLarge,
    PatchPiece,
    Piece,
    Range,
    Segment,
    Sublist,
    Tree,
)

VERSIONS = 20
SNAPSHOT = 4


class Writer:
    """Puts files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stored(self, area: str, data: bytes, raw: int) -> Ref:
        ref = Ref(hashlib.sha256(data).digest(), len(data), raw)
        path = self.root / path_of(area, ref.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return ref

    def put(self, area: str, raw: bytes) -> Ref:
        return self.stored(area, compress(raw), len(raw))

    def tree(self, area: str, records: dict, leaf_size: int = 3, encode_leaf=None) -> Tree:
        """A tree with tiny leaves; the indexes have three entries each, and levels are uneven at the end."""
        keys = sorted(records)
        groups = [keys[n : n + leaf_size] for n in range(0, len(keys), leaf_size)] or [[]]
        entries = []
        for group in groups:
            values = [records[k] for k in group]
            raw = (encode_leaf or nodes.encode_leaf)(group, values)
            large = sum(value.size for value in values if isinstance(value, nodes.Large))
            checksum = run_sum(group, values).to_bytes(16, "big")
            bound = group[0] if entries else b""
            entries.append(Entry(bound, self.put(area, raw), 0, len(group), large, checksum))
        files, size, level = len(entries), sum(e.ref.stored for e in entries), 0
        while len(entries) > 1:
            level += 1
            parents = []
            for n in range(0, len(entries), 3):
                part = entries[n : n + 3]
                if len(part) == 1 and parents:
                    parents.append(part[0])
                    continue
                checksum = sum(int.from_bytes(e.checksum, "big") for e in part) % (1 << 128)
                parents.append(
                    Entry(
                        part[0].bound,
                        self.put(area, nodes.encode_index(part)),
                        level,
                        sum(e.records for e in part),
                        sum(e.large for e in part),
                        checksum.to_bytes(16, "big"),
                    )
                )
            entries = parents
            files, size = files + len(entries), size + sum(e.ref.stored for e in entries)
        return Tree(entries[0].ref, entries[0].level, files, size)

    def patch(self, before: dict, changes: dict, leaf_size: int) -> Tree:
        def leaf(keys, values):
            return nodes.encode_patch(keys, values, nodes.patch_dictionary([before.get(k) for k in keys]))

        return self.tree(DIFFS, changes, leaf_size, leaf)

    def piece(self, content: bytes, bases: list[Piece] = (), dictionary: bytes | None = None) -> Piece:
        ref = self.stored(CHUNKS, compress(content, 1, dictionary), len(content))
        return Piece(ref.sha256, ref.stored, ref.raw, xxhash.xxh3_128_digest(content), list(bases))

    def large(self, key: bytes, content: bytes, r: random.Random) -> Large:
        """A large value of three pieces, the last two as patches on earlier ones, two lists deep."""
        third = len(content) // 3
        parts = [content[:third], content[third : 2 * third], content[2 * third :]]
        base = bytearray(parts[1])
        base[100] ^= 0xFF
        older = self.piece(bytes(base))
        middle = self.piece(parts[1], [older], bytes(8) + base)
        first = self.piece(parts[0])
        last = self.piece(parts[2], [first, middle], bytes(8) + parts[0] + parts[1])
        below = []
        for group in ([first, middle], [last]):
            ref = self.put(CHUNKS, encode(group))
            below.append(Sublist(ref.sha256, ref.stored, ref.raw, sum(piece.raw for piece in group)))
        ref = self.put(CHUNKS, encode(below))
        entries = msgspec.Raw(encode([Sublist(ref.sha256, ref.stored, ref.raw, len(content))]))
        digest = record_hash(key, content)
        return Large(len(content), digest, hashlib.sha256(content).digest(), 2, entries)

    def patched(self, value: Large, content: bytes, old: bytes) -> PatchedLarge:
        """The value with its last two pieces made from ranges of the old one, the first of them from a piece as well."""
        third = len(content) // 3
        parts = [content[third : 2 * third], content[2 * third :]]
        ranges = [Range(0, 600_000), Range(len(old) - 600_000, 600_000)]
        held = [old[item.offset :][: item.raw] for item in ranges]
        base = self.piece(parts[0][:1000])
        instead = {}
        for n, (part, bases, known) in enumerate(
            [(parts[0], [ranges[1], base], held[1] + parts[0][:1000]), (parts[1], ranges, b"".join(held))]
        ):
            ref = self.stored(CHUNKS, compress(part, 1, bytes(8) + known), len(part))
            instead[n + 1] = PatchPiece(ref.sha256, ref.stored, ref.raw, xxhash.xxh3_128_digest(part), bases)
        return PatchedLarge(value.size, value.record_hash, value.sha256, value.depth, value.entries, instead)


def craft(root: Path) -> list[dict[bytes, bytes]]:
    """Write the dataset; return its states, with whole values, by version (index 0 is empty)."""
    r = random.Random(42)
    w = Writer(root)
    big = b"x" + r.randbytes(700_000) + bytes(700_000) + r.randbytes(200_000)
    stored: dict = {b"d%d/f%02d" % (n % 3, n): b"f" + b"some text %d " % n * 20 for n in range(40)}
    stored[b"big"] = w.large(b"big", big, r)
    moved = big[:1] + big[900_000:] + big[1:900_000]
    after = w.large(b"big", moved, r)
    stored[b"empty"] = b"d"
    stored[b"link"] = b"ld0/f00"
    states, changes = [{}, dict(stored)], [{}, dict(stored)]
    for version in range(2, VERSIONS + 1):
        change: dict = {}
        for n in r.sample(range(40), 5):
            key = b"d%d/f%02d" % (n % 3, n)
            old = states[-1].get(key)
            change[key] = None if old and r.random() < 0.3 else (old or b"f") + b"v%d" % version
        if version == 10:
            change[b"big"] = None
        if version == 11:
            change[b"big"] = stored[b"big"]
        if version == 14:
            change[b"big"] = after
        if version in (12, 13):
            change[b"back"] = b"fand gone" if version == 12 else None
        changes.append(change)
        states.append({k: v for k, v in (states[-1] | change).items() if v is not None})

    def span(a: int, b: int) -> dict:
        merged: dict = {}
        for version in range(a + 1, b + 1):
            merged |= changes[version]
        return merged

    diffs = []
    for b in range(2, VERSIONS + 1):
        patch = None
        if b % 2 == 0:
            instead = {b"big": w.patched(after, moved, big)} if b == 14 else {}
            patch = w.patch(states[b - 1], changes[b] | instead, leaf_size=2 if b % 4 == 0 else 100)
        diffs.append(Diff(b - 1, b, w.tree(DIFFS, changes[b]), patch))
        if b % 8 == 0:
            diffs.append(Diff(b - 8, b, w.tree(DIFFS, span(max(b - 8, 0), b))))
    old, middle, new = diffs[:7], diffs[7:13], diffs[13:]
    inner = Segment(0, 8, 8, w.put(DIFFS, nodes.encode_log(Log(old, []))))
    b = max(d.b for d in old + middle)
    outer = Segment(0, b, 8, w.put(DIFFS, nodes.encode_log(Log(middle, [inner]))))
    log = w.put(DIFFS, nodes.encode_log(Log(new, [outer])))
    current = states[VERSIONS]
    tree = w.tree(CHUNKS, states[SNAPSHOT])
    fields = {
        "epoch": 3,
        "version": VERSIONS,
        "time": 1_800_000_000,
        "kind": "files",
        "checksum": f"{run_sum(sorted(current), [current[k] for k in sorted(current)]):032x}",
        "records": len(current),
        "snapshot": {"version": SNAPSHOT, "tree": nodes.tree_form(tree, bytes.hex), "unknown": {"a": [True]}},
        "diffs": [nodes.diff_form(diff, bytes.hex) for diff in new[-2:]],
        "log": [log.sha256.hex(), log.stored, log.raw],
        "interval": 30,
        "publish_id": xxhash.xxh3_128_hexdigest(b"crafted"),
        "trust": 0,
        "needs": [],
        "expires": 1_900_000_000,
        "unknown": None,
    }
    signatures = "".join(
        f"\u2014 {name} {base64.b64encode(b'hash' + r.randbytes(64)).decode()}\n" for name in ("one.example", "two")
    )
    text = f"headwater/1 crafted\n{json.dumps(fields)}\n\n{signatures}"
    (root / "HEAD").write_bytes(text.encode())
    whole = {stored[b"big"].sha256: big, after.sha256: moved}
    return [{k: whole[v.sha256] if isinstance(v, Large) else v for k, v in state.items()} for state in states]

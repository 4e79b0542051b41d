"""What the immutable files hold (SPEC 5): leaves, indexes, large values, patches, logs.

Each `decode_*` checks everything that SPEC lets a reader check without other files, and raises Invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import ge
from typing import Any

import msgspec
import xxhash

from puller.errors import Invalid
from puller.wire.codec import (
    MAX_INLINE,
    MAX_INTEGER,
    MAX_KEY,
    Ref,
    check_ref,
    compress,
    decoder,
    decompress,
    encode,
)

MAX_LEVEL = 15
MAX_DEPTH = 4
MAX_NESTING = 8
MAX_PIECE_FILES = 64
MAX_BASES = 8 * 1024 * 1024
MAX_PATCH = 4 * 1024 * 1024


class Large(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value over 1 MiB (SPEC 5.3): its size in bytes, record hash, and its pieces, `depth` lists below."""

    size: int
    record_hash: bytes
    depth: int
    entries: list[Any]


Value = bytes | None | Large
Run = tuple[list[bytes], list[Value]]
"""Keys in strictly ascending order, and the value of each; None means deleted (only in diffs)."""


class Piece(msgspec.Struct, frozen=True):
    """A file with a part of a large value, and the pieces its dictionary is made of, in order (SPEC 5.4)."""

    ref: Ref
    bases: tuple[Piece, ...] = ()


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A line of an index (SPEC 5.2). `large` is the total size in bytes of the large values in its range."""

    bound: bytes
    ref: Ref
    level: int
    records: int
    large: int
    checksum: bytes


class Tree(msgspec.Struct, frozen=True):
    """The root of a tree, with the number of its files and their stored bytes as hints for planning (SPEC 5.5)."""

    ref: Ref
    level: int
    files: int
    bytes: int


class Diff(msgspec.Struct, frozen=True):
    """The diff (a, b], and the patch beside it where there is one (SPEC 5.6)."""

    a: int
    b: int
    tree: Tree
    patch: Tree | None = None


class Segment(msgspec.Struct, frozen=True):
    """A further log file, whose diffs lie within (a, b]; none of them is wider than `widest` (SPEC 5.8)."""

    a: int
    b: int
    widest: int
    ref: Ref


class Log(msgspec.Struct, frozen=True):
    """All retained diffs: those listed here, and those in further files (SPEC 5.8)."""

    diffs: list[Diff]
    segments: list[Segment]


_Leaf = tuple[list[bytes], list[bytes | None | Large]]
_decode_leaf = decoder(_Leaf)
_decode_index = decoder(list[Entry])
_decode_list = decoder(list[Any])
_decode_patch = decoder(tuple[bytes, bytes, bytes])
_decode_keys = decoder(list[bytes])
_decode_values = decoder(list[bytes | None | Large])


def is_ascending(keys: Sequence[bytes]) -> bool:
    """Whether the keys ascend strictly."""
    return not any(map(ge, keys, keys[1:]))


def check_run(keys: list[bytes], values: list[Value], *, lower: bytes, upper: bytes | None, deletions: bool) -> Run:
    """Return the run if it keeps the rules of SPEC 5.1 for a leaf that covers [lower, upper)."""
    if len(keys) != len(values):
        raise Invalid(f"a leaf has {len(keys)} keys and {len(values)} values")
    if not keys:
        return keys, values
    if not is_ascending(keys):
        raise Invalid("the keys of a leaf do not ascend")
    if keys[0] < lower or (upper is not None and keys[-1] >= upper):
        raise Invalid("a leaf holds a key outside its range")
    if max(map(len, keys)) > MAX_KEY:
        raise Invalid("a key is longer than 4096 bytes")
    types = set(map(type, values))
    if type(None) in types and not deletions:
        raise Invalid("a snapshot holds a deletion")
    for value in values if Large in types else ():
        if isinstance(value, Large):
            check_large_value(value)
    if max((len(v) for v in values if type(v) is bytes), default=0) > MAX_INLINE:
        raise Invalid("a value over 1 MiB stands in a leaf")
    return keys, values


def decode_leaf(raw: bytes, *, lower: bytes = b"", upper: bytes | None = None, deletions: bool = False) -> Run:
    """The records of a leaf (SPEC 5.1)."""
    keys, values = _decode_leaf(raw)
    return check_run(keys, values, lower=lower, upper=upper, deletions=deletions)


def encode_leaf(keys: list[bytes], values: list[Value]) -> bytes:
    """The MessagePack of a leaf (SPEC 5.1)."""
    return encode((keys, values))


def decode_index(raw: bytes, *, level: int, lower: bytes = b"", upper: bytes | None = None) -> list[Entry]:
    """The entries of an index at `level`, which covers [lower, upper) (SPEC 5.2)."""
    entries: list[Entry] = _decode_index(raw)
    if not entries:
        raise Invalid("an index has no entry")
    bounds = [entry.bound for entry in entries]
    if bounds[0] != lower or not is_ascending(bounds) or (upper is not None and bounds[-1] >= upper):
        raise Invalid("the bounds of an index do not ascend from its own to the next")
    for entry in entries:
        check_ref(entry.ref)
        if not 0 <= entry.level < level:
            raise Invalid(f"an index of level {level} names a file of level {entry.level}")
        if len(entry.bound) > MAX_KEY or len(entry.checksum) != 16:
            raise Invalid("an index has a bound or a checksum of a wrong length")
        if not (0 <= entry.records <= MAX_INTEGER and 0 <= entry.large <= MAX_INTEGER):
            raise Invalid("an index has a number out of bounds")
    return entries


def encode_index(entries: list[Entry]) -> bytes:
    """The MessagePack of an index (SPEC 5.2)."""
    return encode(entries)


def large_bytes(values: Sequence[Value]) -> int:
    """The total size in bytes of the large values among `values`."""
    return sum(value.size for value in values if isinstance(value, Large))


def check_large_value(value: Large) -> Large:
    """Return `value` if it keeps the rules of SPEC 5.3."""
    if not MAX_INLINE < value.size <= MAX_INTEGER or len(value.record_hash) != 16:
        raise Invalid("a large value has a wrong size or record hash")
    if not 0 <= value.depth <= MAX_DEPTH:
        raise Invalid(f"a large value is {value.depth} lists deep")
    if not value.entries:
        raise Invalid("a large value has no pieces")
    if value.depth:
        list_refs(value.entries)
    elif sum(piece.ref.raw for piece in pieces(value.entries)) != value.size:
        raise Invalid("the pieces of a large value do not add up to its size")
    return value


def pieces(entries: list[Any]) -> list[Piece]:
    """The pieces that a list at depth 0 names (SPEC 5.4)."""
    found = []
    for entry in entries:
        piece, files = _piece(entry, 0)
        if files > MAX_PIECE_FILES:
            raise Invalid(f"a piece is made from {files} files")
        found.append(piece)
    return found


def _piece(entry: Any, nesting: int) -> tuple[Piece, int]:
    if not isinstance(entry, list) or len(entry) not in (3, 4) or nesting > MAX_NESTING:
        raise Invalid("a piece is not [sha256, stored, raw] or [sha256, stored, raw, bases], at most eight deep")
    ref = _ref(entry[:3])
    if len(entry) == 3:
        return Piece(ref), 1
    if not isinstance(entry[3], list) or not entry[3]:
        raise Invalid("a patched piece names no bases")
    files, bases = 1, []
    for base in entry[3]:
        piece, n = _piece(base, nesting + 1)
        bases.append(piece)
        files += n
    if sum(base.ref.raw for base in bases) > MAX_BASES:
        raise Invalid("the bases of a piece are larger than 8 MiB")
    return Piece(ref, tuple(bases)), files


def _ref(entry: Any) -> Ref:
    try:
        return check_ref(msgspec.convert(entry, Ref))
    except msgspec.ValidationError as error:
        raise Invalid(f"a reference is not [sha256, stored, raw]: {error}") from error


def list_refs(entries: list[Any]) -> list[Ref]:
    """The files that a list at depth 1 or more names (SPEC 5.3)."""
    return [_ref(entry) for entry in entries]


def decode_list(raw: bytes) -> list[Any]:
    """A file with a list of the entries of a large value (SPEC 5.3)."""
    entries: list[Any] = _decode_list(raw)
    if not entries:
        raise Invalid("a list of pieces is empty")
    return entries


def piece_entry(piece: Piece) -> list[Any]:
    """The MessagePack form of a piece (SPEC 5.4)."""
    entry: list[Any] = [piece.ref.sha256, piece.ref.stored, piece.ref.raw]
    if piece.bases:
        entry.append([piece_entry(base) for base in piece.bases])
    return entry


def build_piece(piece: Piece, stored: Callable[[Ref], bytes]) -> bytes:
    """The raw bytes of a piece; `stored` gives the verified bytes of a file (SPEC 5.4)."""
    frame = stored(piece.ref)
    if not piece.bases:
        return decompress(frame, piece.ref.raw)
    dictionary = b"".join(build_piece(base, stored) for base in piece.bases)
    return decompress(frame, piece.ref.raw, dictionary=dictionary)


def patch_dictionary(old: Sequence[Value]) -> bytes:
    """The dictionary of a patch (SPEC 5.7): the old values of its keys, nil where absent or large."""
    return encode([value if isinstance(value, bytes) else None for value in old])


def encode_patch(keys: list[bytes], values: list[Value], dictionary: bytes, level: int = 3) -> bytes:
    """The MessagePack of a leaf of a patch (SPEC 5.7)."""
    check = xxhash.xxh3_128_digest(dictionary)
    return encode((compress(encode(keys), level), check, compress(encode(values), level, dictionary)))


class PatchLeaf(msgspec.Struct, frozen=True):
    """A leaf of a patch whose values are still to be decompressed (SPEC 5.7)."""

    keys: list[bytes]
    check: bytes
    frame: bytes
    lower: bytes
    upper: bytes | None

    def values(self, dictionary: bytes) -> list[Value] | None:
        """The values of the keys, or None if `dictionary` is not the one the patch was made with."""
        if xxhash.xxh3_128_digest(dictionary) != self.check:
            return None
        values: list[Value] = _decode_values(decompress(self.frame, None, MAX_PATCH, dictionary))
        return check_run(self.keys, values, lower=self.lower, upper=self.upper, deletions=True)[1]


def decode_patch(raw: bytes, *, lower: bytes = b"", upper: bytes | None = None) -> PatchLeaf:
    """A leaf of a patch (SPEC 5.7)."""
    frame, check, values = _decode_patch(raw)
    if len(check) != 16:
        raise Invalid("the hash of a patch's dictionary is not 16 bytes long")
    keys: list[bytes] = _decode_keys(decompress(frame, None, MAX_PATCH))
    check_run(keys, [None] * len(keys), lower=lower, upper=upper, deletions=True)
    return PatchLeaf(keys, check, values, lower, upper)


def tree_form(tree: Tree, name: Callable[[bytes], Any] = bytes) -> list[Any]:
    """`[sha256, stored, raw, level, files, bytes]`, or the first three for a lone leaf (SPEC 5.5); `name` renders the hash."""
    form = [name(tree.ref.sha256), tree.ref.stored, tree.ref.raw]
    lone = (tree.level, tree.files, tree.bytes) == (0, 1, tree.ref.stored)
    return form if lone else [*form, tree.level, tree.files, tree.bytes]


def parse_tree(form: Any, name: Callable[[Any], bytes]) -> Tree:
    """The tree that `tree_form` gives; `name` reads the hash."""
    if not isinstance(form, list) or len(form) not in (3, 6):
        raise Invalid("a tree is not [sha256, stored, raw] or [sha256, stored, raw, level, files, bytes]")
    stored, raw, *rest = (_natural(n, "a tree's number") for n in form[1:])
    level, files, size = rest or (0, 1, stored)
    if level > MAX_LEVEL:
        raise Invalid(f"a tree is {level} levels high")
    return Tree(check_ref(Ref(name(form[0]), stored, raw)), level, files, size)


def diff_form(diff: Diff, name: Callable[[bytes], Any] = bytes) -> list[Any]:
    """`[a, b, tree]` or `[a, b, tree, patch]` (SPEC 5.6)."""
    form: list[Any] = [diff.a, diff.b, tree_form(diff.tree, name)]
    if diff.patch is not None:
        form.append(tree_form(diff.patch, name))
    return form


def parse_diff(form: Any, name: Callable[[Any], bytes]) -> Diff:
    """The diff that `[a, b, tree]` or `[a, b, tree, patch]` stands for."""
    if not isinstance(form, list) or len(form) not in (3, 4):
        raise Invalid("a diff is not [a, b, tree] or [a, b, tree, patch]")
    a, b = _natural(form[0], "a version"), _natural(form[1], "a version")
    if not a < b:
        raise Invalid(f"a diff leads from {a} to {b}")
    if len(form) == 4 and b != a + 1:
        raise Invalid("a patch stands beside a diff over several versions")
    return Diff(a, b, parse_tree(form[2], name), parse_tree(form[3], name) if len(form) == 4 else None)


def _natural(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise Invalid(f"{what} is not a whole number between 0 and 2^53-1")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise Invalid("a hash is not bytes")
    return value


def encode_log(log: Log) -> bytes:
    """The MessagePack of a log (SPEC 5.8)."""
    segments = [[s.a, s.b, s.widest, [s.ref.sha256, s.ref.stored, s.ref.raw]] for s in log.segments]
    return encode([[diff_form(diff) for diff in log.diffs], segments])


def decode_log(raw: bytes) -> Log:
    """A log (SPEC 5.8)."""
    form = _decode_list(raw)
    if len(form) != 2 or not isinstance(form[0], list) or not isinstance(form[1], list):
        raise Invalid("a log is not [diffs, segments]")
    segments = []
    for item in form[1]:
        if not isinstance(item, list) or len(item) != 4:
            raise Invalid("a segment is not [a, b, widest, reference]")
        a, b, widest = (_natural(n, "a segment's number") for n in item[:3])
        if not a < b or not 0 < widest <= b - a:
            raise Invalid(f"a segment covers ({a}, {b}] with diffs of {widest} versions")
        segments.append(Segment(a, b, widest, _ref(item[3])))
    return Log([parse_diff(diff, _bytes) for diff in form[0]], segments)

"""What the immutable files hold (SPEC 5): leaves, indexes, large values, patches, logs.

Each `decode_*` checks everything that SPEC lets a reader check without other files, and raises Invalid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from operator import ge
from typing import Annotated, Any

import msgspec
import xxhash

from puller.errors import Corrupt, Invalid, Stale
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
MAX_PIECE_WORK = 64 * 1024 * 1024
MAX_PATCH = 8 * 1024 * 1024
MAX_RANGES = 4096
MAX_NODE = 4 * 1024 * 1024
MAX_ENTRIES = 64 * 1024
MAX_LOG_NESTING = 8
DICTIONARY_START = bytes(8)
_PAIR = b"\x92"
"""How the MessagePack of an array of two begins."""


class Large(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value over 1 MiB (SPEC 5.3): its size in bytes, record hash, SHA-256, and its pieces, `depth` lists below."""

    size: int
    record_hash: bytes
    sha256: bytes
    depth: int
    entries: msgspec.Raw

    def pieces(self) -> list[Piece]:
        """The pieces, at depth 0."""
        return decode_pieces(bytes(self.entries), self.size)

    def lists(self) -> list[Sublist]:
        """The files with the entries one level down, at other depths."""
        return decode_sublists(bytes(self.entries), self.size)


class PatchedLarge(Large, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A large value that came with a patch (SPEC 5.7). It is never encoded as such: see `plain`.

    `instead` has, by the number of the piece that each stands for, pieces for readers that hold the value at version a.
    """

    instead: dict[int, PatchPiece]

    def plain(self) -> Large:
        """The value for readers that do not."""
        return Large(self.size, self.record_hash, self.sha256, self.depth, self.entries)


Value = bytes | None | Large
Run = tuple[list[bytes], list[Value]]
"""Keys in strictly ascending order, and the value of each; None means deleted (only in diffs)."""


def has_large(values: Sequence[Value]) -> bool:
    """Whether there are large values among some."""
    return not set(map(type, values)).isdisjoint((Large, PatchedLarge))


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file with a part of a large value (SPEC 5.4).

    `check` is the xxh3_128 of the part; `bases` are the pieces that its dictionary is made of, in order.
    """

    sha256: bytes
    stored: int
    raw: int
    check: bytes
    bases: list[Piece]

    @property
    def ref(self) -> Ref:
        """The file."""
        return Ref(self.sha256, self.stored, self.raw)

    def files(self) -> list[Ref]:
        """The files that the piece is built from, as often as they are named."""
        return [self.ref, *(ref for base in self.bases for ref in base.files())]


class Range(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`raw` bytes from an offset of the value that the key has at version a (SPEC 5.7)."""

    offset: int
    raw: int


class PatchPiece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A piece in a patch (SPEC 5.7): one whose bases may be ranges, too."""

    sha256: bytes
    stored: int
    raw: int
    check: bytes
    bases: list[Piece | Range]

    @property
    def ref(self) -> Ref:
        """The file."""
        return Ref(self.sha256, self.stored, self.raw)

    def files(self) -> list[Ref]:
        """The files that the piece is built from, as often as they are named."""
        return [self.ref, *(ref for base in self.bases if isinstance(base, Piece) for ref in base.files())]


AnyPiece = Piece | PatchPiece


class Sublist(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file with entries of a large value, whose contents have `size` bytes together (SPEC 5.3)."""

    sha256: bytes
    stored: int
    raw: int
    size: int

    @property
    def ref(self) -> Ref:
        """The file."""
        return Ref(self.sha256, self.stored, self.raw)


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


class _PatchPieceForm(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    sha256: bytes
    stored: int
    raw: int
    check: bytes
    bases: list[msgspec.Raw]


class _PatchForm(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    keys: bytes
    check: bytes
    values: bytes
    instead: bytes | msgspec.UnsetType = msgspec.UNSET


class _DiffForm(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    a: int
    b: int
    tree: list[int | bytes]
    patch: list[int | bytes] | msgspec.UnsetType = msgspec.UNSET


_Key = Annotated[bytes, msgspec.Meta(max_length=MAX_KEY)]
_Value = Annotated[bytes, msgspec.Meta(max_length=MAX_INLINE)] | None | Large
_decode_leaf = decoder(tuple[list[_Key], list[_Value]])
_decode_plain_leaf = decoder(tuple[list[_Key], list[Annotated[bytes, msgspec.Meta(max_length=MAX_INLINE)]]])
_decode_index = decoder(list[Entry])
_decode_pieces = decoder(list[Piece])
_decode_sublists = decoder(list[Sublist])
_decode_log = decoder(tuple[list[_DiffForm], list[tuple[int, int, int, Ref]]])
_decode_patch = decoder(_PatchForm)
_decode_instead = decoder(list[tuple[int, list[tuple[int, _PatchPieceForm]]]])
_decode_base = decoder(Piece)
_decode_range = decoder(Range)
_decode_keys = decoder(list[_Key])
_decode_values = decoder(list[_Value])


def is_ascending(keys: Sequence[bytes]) -> bool:
    """Whether the keys ascend strictly."""
    return not any(map(ge, keys, keys[1:]))


def _check_keys(keys: list[bytes], values: list[Value], lower: bytes, upper: bytes | None) -> None:
    if len(keys) != len(values):
        raise Invalid(f"a leaf has {len(keys)} keys and {len(values)} values")
    if not is_ascending(keys):
        raise Invalid("the keys of a leaf do not ascend")
    if keys and (keys[0] < lower or (upper is not None and keys[-1] >= upper)):
        raise Invalid("a leaf holds a key outside its range")


def check_run(keys: list[bytes], values: list[Value], *, lower: bytes, upper: bytes | None, deletions: bool) -> Run:
    """Return the run if it keeps the rules of SPEC 5.1 for a leaf that covers [lower, upper); its decoder saw to lengths."""
    _check_keys(keys, values, lower, upper)
    types = set(map(type, values))
    if type(None) in types and not deletions:
        raise Invalid("a snapshot holds a deletion")
    for value in () if types <= {bytes, type(None)} else values:
        if isinstance(value, Large):
            check_large_value(value)
    return keys, values


def decode_leaf(raw: bytes, *, lower: bytes = b"", upper: bytes | None = None, deletions: bool = False) -> Run:
    """The records of a leaf (SPEC 5.1)."""
    if not deletions:  # most leaves hold nothing but plain values; then there is nothing to look for in them
        with contextlib.suppress(Invalid):
            keys, values = _decode_plain_leaf(raw)
            _check_keys(keys, values, lower, upper)
            return keys, values
    keys, values = _decode_leaf(raw)
    return check_run(keys, values, lower=lower, upper=upper, deletions=deletions)


def encode_leaf(keys: list[bytes], values: list[Value]) -> bytes:
    """The MessagePack of a leaf (SPEC 5.1)."""
    return encode((keys, values))


def decode_index(raw: bytes, *, level: int, lower: bytes = b"", upper: bytes | None = None) -> list[Entry]:
    """The entries of an index at `level`, which covers [lower, upper) (SPEC 5.2)."""
    if len(raw) > MAX_NODE:
        raise Invalid("an index is larger than 4 MiB")
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
        if not (0 < entry.records <= MAX_INTEGER and 0 <= entry.large <= MAX_INTEGER):
            raise Invalid("an index has a number out of bounds")
    return entries


def encode_index(entries: list[Entry]) -> bytes:
    """The MessagePack of an index (SPEC 5.2)."""
    return encode(entries)


def check_large_value(value: Large) -> Large:
    """Return `value` if it keeps the rules of SPEC 5.3."""
    if not MAX_INLINE < value.size <= MAX_INTEGER or len(value.record_hash) != 16 or len(value.sha256) != 32:
        raise Invalid("a large value has a wrong size or hash")
    if len(bytes(value.entries)) > MAX_ENTRIES:
        raise Invalid("a large value lists more pieces than 64 KiB hold")
    if not 0 <= value.depth <= MAX_DEPTH:
        raise Invalid(f"a large value is {value.depth} lists deep")
    if value.depth:
        value.lists()
    else:
        value.pieces()
    return value


def decode_pieces(raw: bytes, size: int) -> list[Piece]:
    """The pieces that a list at depth 0 names, whose contents have `size` bytes together (SPEC 5.4)."""
    found: list[Piece] = _decode_pieces(raw)
    for piece in found:
        check_piece(piece)
    if not found or sum(piece.raw for piece in found) != size:
        raise Invalid("the pieces of a large value do not add up to its size")
    return found


def decode_sublists(raw: bytes, size: int) -> list[Sublist]:
    """The files that a list at depth 1 or more names, whose contents have `size` bytes together (SPEC 5.3)."""
    found: list[Sublist] = _decode_sublists(raw)
    for item in found:
        check_ref(item.ref)
    if not found or min(item.size for item in found) < 1 or sum(item.size for item in found) != size:
        raise Invalid("the lists of a large value do not add up to its size")
    return found


def check_piece(piece: AnyPiece, nesting: int = 0) -> None:
    """Raise Invalid for a piece that breaks the rules of SPEC 5.4, or 5.7 where it has ranges."""
    check_ref(piece.ref)
    if len(piece.check) != 16 or nesting > MAX_NESTING:
        raise Invalid("a piece has a wrong hash, or is nested more than eight deep")
    for base in piece.bases:
        if isinstance(base, Piece):
            check_piece(base, nesting + 1)
        elif base.raw < 1 or not 0 <= base.offset <= MAX_INTEGER or len(piece.bases) > MAX_RANGES:
            raise Invalid("a piece has a range that is empty or out of bounds, or more than 4,096 of them")
    bases = sum(base.raw for base in piece.bases)
    if bases > MAX_BASES or bases > 8 * piece.raw:
        raise Invalid("the bases of a piece are larger than 8 MiB, or than eight times the piece")
    if nesting == 0 and piece.bases:
        files = piece.files()
        if len(files) > MAX_PIECE_FILES or sum(ref.raw for ref in files) > MAX_PIECE_WORK:
            raise Invalid("a piece is built from more than 64 files, or 64 MiB")


Held = Callable[[bytes, int], bytes | None]
"""Gives the content of a piece, checked against its xxh3_128, from that and its size in bytes; None where it is not held."""


Old = Callable[[int, int], bytes]
"""Gives bytes of a value's earlier version, from their offset and number, unchecked. Raises Stale where they are not held."""


def build_piece(
    piece: AnyPiece, frame_of: Callable[[Ref], bytes], held: Held | None = None, old: Old | None = None
) -> bytes:
    """The content of a piece (SPEC 5.4, 5.7). Raises Corrupt, or Stale where what `old` gives may be at fault.

    `frame_of` gives the verified frame in a file; it is asked for those only that `held` does not make needless. A
    piece with ranges needs `old`.
    """
    if held is not None and (found := held(piece.check, piece.raw)) is not None:
        return found
    dictionary = None
    if piece.bases:
        parts = (build_piece(b, frame_of, held) if isinstance(b, Piece) else _range(b, old) for b in piece.bases)
        dictionary = DICTIONARY_START + b"".join(parts)
    frame = frame_of(piece.ref)
    try:
        content = decompress(frame, piece.raw, dictionary=dictionary)
        if xxhash.xxh3_128_digest(content) != piece.check:
            raise Corrupt("the content of a piece is not what its entry declares")
    except Corrupt as error:
        if isinstance(piece, PatchPiece):
            raise Stale("what is held of a value is not what a patch was made for") from error
        raise
    return content


def _range(part: Range, old: Old | None) -> bytes:
    if old is None:
        raise Stale("a patch needs a value that is not held")
    return old(part.offset, part.raw)


def patch_dictionary(old: Sequence[Value]) -> bytes:
    """The dictionary of a patch (SPEC 5.7): the old values of its keys, nil where absent or large."""
    return encode([value if isinstance(value, bytes) else None for value in old])


def encode_patch(keys: list[bytes], values: Sequence[Value], dictionary: bytes, level: int = 3) -> bytes:
    """The MessagePack of a leaf of a patch (SPEC 5.7)."""
    check = xxhash.xxh3_128_digest(dictionary)
    plain = [value.plain() if isinstance(value, PatchedLarge) else value for value in values]
    parts = [compress(encode(keys), level), check, compress(encode(plain), level, dictionary)]
    instead = [(n, sorted(v.instead.items())) for n, v in enumerate(values) if isinstance(v, PatchedLarge)]
    return encode([*parts, compress(encode(instead), level)] if instead else parts)


class PatchLeaf(msgspec.Struct, frozen=True):
    """A leaf of a patch whose values are still to be decompressed (SPEC 5.7).

    `instead` has, by the number of a key, the pieces that stand in its value for others.
    """

    keys: list[bytes]
    check: bytes
    frame: bytes
    lower: bytes
    upper: bytes | None
    instead: dict[int, dict[int, PatchPiece]]

    def values(self, dictionary: bytes) -> list[Value] | None:
        """The values of the keys, or None if `dictionary` is not the one the patch was made with."""
        if xxhash.xxh3_128_digest(dictionary) != self.check:
            return None
        values: list[Value] = _decode_values(decompress(self.frame, None, MAX_PATCH, dictionary))
        check_run(self.keys, values, lower=self.lower, upper=self.upper, deletions=True)
        for number, pieces in self.instead.items():
            value = values[number]
            if not isinstance(value, Large):
                raise Invalid("a patch has pieces for a value that is not large")
            values[number] = PatchedLarge(
                value.size, value.record_hash, value.sha256, value.depth, value.entries, pieces
            )
        return values


def decode_patch(raw: bytes, *, lower: bytes = b"", upper: bytes | None = None) -> PatchLeaf:
    """A leaf of a patch (SPEC 5.7)."""
    form = _decode_patch(raw)
    if len(form.check) != 16:
        raise Invalid("the hash of a patch's dictionary is not 16 bytes long")
    keys: list[bytes] = _decode_keys(decompress(form.keys, None, MAX_PATCH))
    check_run(keys, [None] * len(keys), lower=lower, upper=upper, deletions=True)
    instead = {}
    if form.instead is not msgspec.UNSET:
        instead = _instead(_decode_instead(decompress(form.instead, None, MAX_PATCH)), len(keys))
    return PatchLeaf(keys, form.check, form.values, lower, upper, instead)


def _instead(found: list[tuple[int, list[tuple[int, _PatchPieceForm]]]], keys: int) -> dict[int, dict[int, PatchPiece]]:
    """The pieces that stand in a patch for others, by the numbers of key and piece."""
    for numbers in ([n for n, _ in found], *([n for n, _ in pieces] for _, pieces in found)):
        if not numbers or numbers[0] < 0 or any(map(ge, numbers, numbers[1:])):
            raise Invalid("the pieces of a patch do not ascend")
    if found[-1][0] >= keys:
        raise Invalid("a patch has pieces for more values than there are")
    return {n: {m: _patch_piece(form) for m, form in pieces} for n, pieces in found}


def _patch_piece(form: _PatchPieceForm) -> PatchPiece:
    bases = [(_decode_range if bytes(raw).startswith(_PAIR) else _decode_base)(raw) for raw in form.bases]
    piece = PatchPiece(form.sha256, form.stored, form.raw, form.check, bases)
    check_piece(piece)
    return piece


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
    return encode([[diff_form(diff) for diff in log.diffs], [[s.a, s.b, s.widest, s.ref] for s in log.segments]])


def decode_log(raw: bytes, within: Segment | None = None) -> Log:
    """A log (SPEC 5.8); `within` is the segment that names it, where it is not HEAD that does."""
    if len(raw) > MAX_NODE:
        raise Invalid("a log is larger than 4 MiB")
    diffs, segments = _decode_log(raw)
    log = Log([_diff(form) for form in diffs], [Segment(*segment) for segment in segments])
    for s in log.segments:
        check_ref(s.ref)
        if not 0 <= s.a < s.b <= MAX_INTEGER or not 0 < s.widest <= s.b - s.a:
            raise Invalid(f"a segment covers ({s.a}, {s.b}] with diffs of {s.widest} versions")
    spans = [(d.a, d.b, d.b - d.a) for d in log.diffs] + [(s.a, s.b, s.widest) for s in log.segments]
    if within is not None and any(a < within.a or b > within.b or w > within.widest for a, b, w in spans):
        raise Invalid("a log holds diffs that its segment does not cover")
    return log


def _diff(form: _DiffForm) -> Diff:
    trees = [form.tree] if form.patch is msgspec.UNSET else [form.tree, form.patch]
    return parse_diff([form.a, form.b, *trees], _bytes)

"""Which files a file names: where garbage collection must not overlook one."""

from __future__ import annotations

import msgspec

from puller.wire import nodes
from puller.wire.codec import DIFFS, seal
from puller.wire.graph import Graph
from puller.wire.nodes import Diff, PatchedLarge, PatchPiece, Piece, Range, Tree


def piece(n, bases=()):
    return Piece(bytes([n]) * 32, 10, 2_000_000, bytes(16), list(bases))


def test_a_patch_names_the_pieces_that_stand_in_it_for_others_and_their_bases():
    own = piece(1)
    instead = PatchPiece(bytes([2]) * 32, 10, own.raw, own.check, [Range(0, 5), piece(3, [piece(4)])])
    value = PatchedLarge(own.raw, bytes(16), bytes(32), 0, msgspec.Raw(nodes.encode([own])), {0: instead})
    ref, stored = seal(nodes.encode_patch([b"k"], [value], nodes.patch_dictionary([None])))
    tree = Tree(ref, 0, 1, ref.stored)
    _, patch = Graph().diff(Diff(1, 2, tree, tree))
    assert patch.leads
    assert [(node.area, node.ref.sha256[0], node.leads) for node in patch.below(stored)] == [
        ("chunks", 2, False),
        ("chunks", 3, False),
        ("chunks", 4, False),
    ]
    assert patch.area == DIFFS

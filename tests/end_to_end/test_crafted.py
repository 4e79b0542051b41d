"""The product reads everything the format allows, also what its publisher does not write yet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from msgspec import structs

from puller.fetch import FolderFetcher
from puller.runs import merge
from puller.tree import Reader
from puller.wire import nodes
from puller.wire.checksum import run_sum
from puller.wire.codec import DIFFS
from puller.wire.head import parse_head
from puller.wire.nodes import PatchedLarge
from tests import crafted as crafting
from tests import independent_reader
from tests.conftest import puller, tree
from tests.crafted import SNAPSHOT, VERSIONS, craft


def part_of(content, offset, size):
    return content[offset : offset + size]


def files(state):
    return {key.decode(): (value[:1].decode(), value[1:]) for key, value in state.items()}


@pytest.fixture(scope="module")
def crafted(tmp_path_factory):
    root = tmp_path_factory.mktemp("crafted") / "data"
    root.mkdir()
    return root, craft(root)


def test_bootstrap_reads_every_feature(crafted, tmp_path):
    root, states = crafted
    done = puller("pull", "--json", root, tmp_path / "c").json
    assert done["way"] == "bootstrap"
    assert done["planned_diffs"] < VERSIONS - SNAPSHOT
    assert tree(tmp_path / "c") == files(states[VERSIONS])
    assert puller("verify", tmp_path / "c").status == 0


def test_diffs_from_every_version_lead_to_head(crafted):
    """A diff is right on any state, also on one whose keys come from different versions."""
    root, states = crafted
    head = parse_head((root / "HEAD").read_bytes())
    with ThreadPoolExecutor(2) as pool:
        reader = Reader(FolderFetcher(str(root)), pool)
        diffs = reader.listed(reader.log(head.log), 0, VERSIONS, least=1)
        assert len(diffs) == VERSIONS - 1 + VERSIONS // 8
        for diff in diffs:
            for version in range(diff.a, diff.b + 1):
                mixed = {
                    k: v
                    for n, k in enumerate(
                        sorted(states[diff.a].keys() | states[diff.b].keys() | states[version].keys())
                    )
                    if (v := states[(diff.a, version, diff.b)[n % 3]].get(k)) is not None
                }
                for keys, values in merge([reader.diff(diff)]):
                    for key, value in zip(keys, values, strict=True):
                        if value is None:
                            mixed.pop(key, None)
                        else:
                            whole = value if isinstance(value, bytes) else b"".join(reader.large(key, value))
                            mixed[key] = whole
                assert mixed == states[diff.b]


def test_patches_give_what_their_diffs_give(crafted):
    root, states = crafted
    head = parse_head((root / "HEAD").read_bytes())
    patches = moved = 0
    with ThreadPoolExecutor(2) as pool:
        reader = Reader(FolderFetcher(str(root)), pool)
        log = reader.log(head.log)
        diffs = log.diffs + reader.log(log.segments[0].ref).diffs
        for diff in diffs:
            if diff.patch is None:
                continue
            patches += 1
            old = states[diff.a]
            expected = dict(pair for keys, values in reader.diff(diff) for pair in zip(keys, values, strict=True))
            found = {}
            for leaf in reader.leaves(DIFFS, diff.patch):
                patch = nodes.decode_patch(reader.load(DIFFS, leaf.ref), lower=leaf.lower, upper=leaf.upper)
                held = [old.get(k) if len(old.get(k) or b"") <= 1 << 20 else None for k in patch.keys]
                dictionary = nodes.patch_dictionary(held)
                assert patch.values(dictionary + b"\0") is None
                found |= dict(zip(patch.keys, patch.values(dictionary), strict=True))
            assert {k: v.plain() if isinstance(v, PatchedLarge) else v for k, v in found.items()} == expected
            for key, value in found.items():
                if isinstance(value, PatchedLarge):
                    held = partial(part_of, old[key])
                    assert b"".join(reader.large(key, value, None, held)) == states[diff.b][key]
                    moved += 1
    assert (patches, moved) == (6, 1)


def test_checksum_of_every_version(crafted):
    root, states = crafted
    head = parse_head((root / "HEAD").read_bytes())
    state = states[VERSIONS]
    assert head.checksum == run_sum(sorted(state), [state[k] for k in sorted(state)])
    assert head.order == (3, VERSIONS, 1_800_000_000)


@pytest.mark.parametrize("what", ["record hash", "piece hash", "index count", "leaf count", "sublist size"])
def test_what_shows_only_when_files_are_read_together(tmp_path, monkeypatch, what):
    """A dataset whose files are fine one by one, and do not fit each other, is refused."""
    if what == "record hash":
        real = crafting.record_hash
        monkeypatch.setattr(crafting, "record_hash", lambda key, value: real(key, value)[::-1])
    elif what == "piece hash":
        real_piece = crafting.Writer.piece
        monkeypatch.setattr(crafting.Writer, "piece", lambda *a: structs.replace(real_piece(*a), check=bytes(16)))
    elif what == "sublist size":
        monkeypatch.setattr(
            crafting, "Sublist", lambda sha, stored, raw, size: nodes.Sublist(sha, stored, raw, size + 1)
        )
    else:
        real_entry = crafting.Entry

        def entry(bound, ref, level, records, large, checksum):
            wrong = level == (1 if what == "index count" else 0)
            return real_entry(bound, ref, level, records + wrong, large, checksum)

        monkeypatch.setattr(crafting, "Entry", entry)
    (tmp_path / "d").mkdir()
    crafting.craft(tmp_path / "d")
    assert puller("pull", tmp_path / "d", tmp_path / "c", check=5).err
    assert not (tmp_path / "c").exists()
    with pytest.raises(independent_reader.Refused):
        independent_reader.Dataset(tmp_path / "d").records()

"""Large values whose content moved: pieces made from ranges of the earlier value are found, small, and never trusted."""

from __future__ import annotations

import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from publisher import moved
from publisher.build import Sink
from publisher.changes import Changed
from publisher.earlier import Earlier
from publisher.large import Stored, put_stream
from publisher.patches import PatchBuilder
from puller.errors import Invalid, Stale
from puller.targets.base import Opening
from puller.targets.staging import Stager
from puller.wire.codec import CHUNKS, Ref
from puller.wire.nodes import Large, PatchedLarge, PatchPiece, Range, Tree, check_piece
from tests.unit.test_large import KEY, Dataset, small_pieces, text

RECORD = 170


@pytest.fixture(scope="module", autouse=True)
def small():
    with small_pieces(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(moved, "DEAR", 4 << 10)
        yield


@pytest.fixture
def dataset():
    with ThreadPoolExecutor(2) as pool:
        yield Dataset(pool)


def publish(dataset: Dataset, content: bytes) -> tuple[PatchedLarge, moved.Moved | None, Stored]:
    """Publish a second version; the value as it stands in the patch, with its pieces put, and what a follower needs without."""
    before = dataset.value
    sink = Sink(dataset.store, CHUNKS, None)
    stored = put_stream(
        KEY, b"", io.BytesIO(content), sink, dataset.pool, Earlier(before, dataset.reader, sink, dataset.pool)
    )
    found = moved.find_moved(stored, lambda: io.BytesIO(content), before, dataset.reader, dataset.pool)
    for path, data in [] if found is None else found.files:
        dataset.store.put(path, data)
    v = stored.value
    instead = {} if found is None else found.instead
    return PatchedLarge(v.size, v.record_hash, v.sha256, v.depth, v.entries, instead), found, stored


def pages(content: bytes, seed: int, number: int, rows: int) -> bytes:
    """Runs of records from all over a content, as a database's new pages have them."""
    r = random.Random(seed)
    starts = [r.randrange(len(content) // RECORD - rows) * RECORD for _ in range(number)]
    return b"".join(b"%07d head of the page" % n + content[at : at + rows * RECORD] for n, at in enumerate(starts))


def read(dataset: Dataset, value: Large, old: bytes) -> bytes:
    return b"".join(dataset.reader.large(KEY, value, None, lambda offset, size: old[offset : offset + size]))


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.integers(30, 200), st.integers(12, 40), st.booleans())
def test_records_that_moved_are_found_again(seed, number, rows, within):
    with ThreadPoolExecutor(2) as pool:
        dataset = Dataset(pool)
        content = text(seed, 1_700_000)
        dataset.publish(content)
        new = pages(content, seed, number, rows)
        after = content[:800_000] + new + content[800_000:] if within else content + new
        value, found, stored = publish(dataset, after)
        assert read(dataset, value, content) == after
        assert read(dataset, value.plain(), content) == after
        refs = {piece.ref for piece in value.instead.values()}
        replaced = {stored.pieces[n].ref for n in value.instead} & stored.refs
        for n, piece in value.instead.items():
            check_piece(piece)
            assert (piece.raw, piece.check) == (stored.pieces[n].raw, stored.pieces[n].check)
        if len(new) > 300_000:
            assert sum(ref.stored for ref in refs) < 0.35 * sum(ref.stored for ref in replaced)
            assert found.cost[1] < 0.5 * stored.cost[1]
            assert found.cost[1] == found.same + sum(ref.stored for ref in refs)


def test_what_is_new_is_left_alone(dataset):
    content = text(1, 1_700_000)
    dataset.publish(content)
    reads = []
    get = dataset.store.get
    dataset.store.get = lambda path: reads.append(path) or get(path)
    _, found, _ = publish(dataset, content + random.Random(1).randbytes(400_000))
    assert found is None
    assert len(reads) < 20  # a sample of the earlier value, not all of it


def test_an_earlier_value_that_is_too_large_is_not_searched(dataset, monkeypatch):
    content = text(2, 1_700_000)
    dataset.publish(content)
    monkeypatch.setattr(moved, "WORTH", 1)
    monkeypatch.setattr(moved, "_marks", None)
    assert publish(dataset, content + pages(content, 2, 200, 12))[1] is None


def test_a_source_that_changes_while_it_is_read_gives_no_piece(dataset):
    content = text(3, 1_700_000)
    dataset.publish(content)
    after = content + pages(content, 3, 200, 12)
    before, sink = dataset.value, Sink(dataset.store, CHUNKS, None)
    stored = put_stream(KEY, b"", io.BytesIO(after), sink, dataset.pool)
    readings = [after, after[:-300_000] + bytes(300_000)]
    found = moved.find_moved(stored, lambda: io.BytesIO(readings.pop(0)), before, dataset.reader, dataset.pool)
    last = len(stored.pieces) - 1
    assert found is None or last not in found.instead


@pytest.fixture
def changed(dataset) -> tuple[Dataset, bytes, bytes, PatchedLarge]:
    content = b"f" + text(4, 1_700_000)
    dataset.publish(content)
    dataset.follow()
    after = content + pages(content, 4, 200, 20)
    value, found, _ = publish(dataset, after)
    assert len(found.instead) >= 4
    return dataset, content, after, value


def wrong(content: bytes):
    return lambda offset, size: content[offset : offset + size - 1] + b"\0"


def missing(offset: int, size: int) -> bytes:
    raise Stale("gone")


@pytest.mark.parametrize("kind", ["wrong", "missing", "short"])
def test_a_value_that_is_not_the_earlier_one_is_noticed_and_done_without(changed, tmp_path, kind):
    dataset, content, after, value = changed
    old = {"wrong": wrong(content), "missing": missing, "short": lambda o, n: content[o : o + n][: n // 2]}[kind]
    with pytest.raises(Stale):
        list(dataset.reader.large(KEY, value, None, old))
    path = str(tmp_path / "staged").encode()
    fetched = dataset.reader.fetcher.received
    opening = Opening("files", replace=False, time=1, large=dataset.reader.large)
    Stager(opening).write_large(path, KEY, value, lambda check, raw: dataset.held.get(check), old)
    assert (tmp_path / "staged").read_bytes() == after[1:]
    assert dataset.reader.fetcher.received - fetched < 700_000  # pieces that are held are still used


def test_pieces_that_spoil_the_value_are_done_without(changed, tmp_path):
    dataset, content, after, value = changed
    path = str(tmp_path / "staged").encode()
    opening = Opening("files", replace=False, time=1, large=dataset.reader.large)
    spoilt = {piece.check: b"f" + bytes(piece.raw - 1) for piece in dataset.reader.pieces(value)}
    good = lambda offset, size: content[offset : offset + size]  # noqa: E731
    Stager(opening).write_large(path, KEY, value, lambda check, raw: spoilt.get(check), good)
    assert (tmp_path / "staged").read_bytes() == after[1:]


def test_pieces_must_be_those_they_stand_for(changed):
    dataset, content, _, value = changed
    first, second, *_ = sorted(value.instead)
    for instead in ({first: value.instead[second]}, {10**6: value.instead[first]}):
        other = PatchedLarge(*[getattr(value, name) for name in Large.__struct_fields__], instead)
        with pytest.raises(Invalid, match=r"another content|more pieces"):
            read(dataset, other, content)


def test_ranges_keep_the_limits():
    r = random.Random(5)
    marks = dict.fromkeys(range(7000), 256)
    places = {n: [r.randrange(10**9) for _ in range(r.randint(0, 4))] for n in marks}
    for raw in (1000, 100_000, 2_000_000, 16 << 20):
        ranges = moved._choose(marks, places, raw, 10**9)
        assert all(part.offset >= 0 and part.raw > 0 and part.offset + part.raw <= 10**9 for part in ranges)
        check_piece(PatchPiece(bytes(32), 1, raw, bytes(16), list(ranges)))
        assert [part.offset for part in ranges] == sorted(part.offset for part in ranges)
    assert moved._choose({1: 300}, {1: [0]}, 100_000, 10**9) == [Range(0, 300 + moved.MARGIN)]


def test_what_is_held_is_cut_across_pieces(dataset):
    content = text(6, 1_700_000)
    dataset.publish(content)
    before = moved._Before(dataset.value, dataset.reader, dataset.pool)
    ranges = {
        Range(0, 1),
        Range(len(content) - 1, 1),
        Range(5, 1_690_000),
        *(Range(n, 40_000) for n in range(0, 1_600_000, 7777)),
    }
    found = before.parts(ranges)
    assert found == {part: content[part.offset : part.offset + part.raw] for part in ranges}


@pytest.mark.parametrize(("cost", "kept"), [(9_800_000, True), (9_950_000, False)])
def test_a_patch_is_kept_for_what_it_saves(dataset, cost, kept):
    """Of ten megabytes, nine and a half are fetched in any case."""
    dataset.publish(text(7, 1_200_000))
    before = dataset.value
    dataset.publish(text(8, 1_200_000))
    now, number = dataset.value, dataset.value.record_hash
    piece = PatchPiece(bytes(32), 9, 100_000, bytes(16), [Range(0, 9)])
    found = moved.Moved({0: piece}, [("chunks/name", b"frame")], (20, cost), 9_500_000)
    patch = PatchBuilder(dataset.store, dataset.pool, None, {number: (20, 10_000_000)}, {number: found})
    patch.change(Changed([KEY], [now], [before]))
    tree = patch.beside(Tree(Ref(bytes(32), 100, 100), 0, 21, 10_000_100), None)
    assert (tree is not None) == kept == ("chunks/name" in dataset.store.files)
    if tree is not None:
        assert 0 < tree.bytes - cost < 2000
        ((_, (value,)),) = dataset.reader.patch(tree, lambda keys: [None for _ in keys])
        assert value == PatchedLarge(now.size, number, now.sha256, 0, now.entries, {0: piece})
